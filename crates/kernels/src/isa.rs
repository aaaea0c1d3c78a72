//! Which instruction set the kernels run on.
//!
//! One binary serves every machine: the choice is made once, at first use, and every kernel then goes through the same
//! [`Isa`]. Kernels that are tested per instruction set take it as an argument, everything else asks [`isa`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// An instruction set that the kernels are compiled for. Those of one architecture are in ascending order: a machine that
/// has one has all before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Isa {
    /// Plain Rust, eight lanes in an array. Runs everywhere.
    Scalar,
    /// AVX2, FMA and F16C, eight lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, sixteen lanes.
    Avx512,
    /// The vectors of 64-bit ARM, eight lanes in two of them.
    Neon,
}

impl Isa {
    /// The name that [`force`] accepts.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// f32 values in a vector.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Scalar | Isa::Avx2 | Isa::Neon => 8,
            Isa::Avx512 => 16,
        }
    }

    /// Every instruction set, whether or not this machine has it.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon];

    /// Whether this machine can run it.
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Avx2 | Isa::Avx512 => cfg!(target_arch = "x86_64") && self <= best(),
            Isa::Neon => self == best(),
        }
    }
}

static CHOSEN: OnceLock<Isa> = OnceLock::new();
/// Whether AVX-512 was asked for by name, which is without tiles.
static WITHOUT_TILES: AtomicBool = AtomicBool::new(false);

/// The instruction set in use: the forced one, else the best one that the machine has.
#[inline]
pub fn isa() -> Isa {
    *CHOSEN.get_or_init(best)
}

/// Chooses the instruction set by name (`scalar`, `avx2`, `avx512`, `amx`, `neon`), before any kernel ran. `amx` is AVX-512
/// with tiles, `avx512` the same without them.
///
/// It fails where the machine lacks the instruction set, and where another one is already in use.
pub fn force(name: &str) -> Result<Isa, String> {
    let wanted = Isa::ALL
        .into_iter()
        .find(|i| i.name() == if name == "amx" { "avx512" } else { name })
        .ok_or_else(|| format!("unknown instruction set `{name}`: expected scalar, avx2, avx512, amx or neon"))?;
    if !wanted.is_supported() || name == "amx" && !crate::tiles::are_usable() {
        return Err(format!("this machine has no {name}: its best instruction set is {}", best().name()));
    }
    let chosen = *CHOSEN.get_or_init(|| wanted);
    if chosen != wanted {
        return Err(format!("instruction set {name} asked for, but {} is already in use", chosen.name()));
    }
    WITHOUT_TILES.store(name == "avx512", Ordering::Relaxed);
    Ok(wanted)
}

/// Whether bf16 operands are multiplied with the machine's own dot instruction: where it has one that is faster than
/// widening them to f32. Intel's cores with AVX-512 take two cycles for it, in which they do four multiply-adds in f32,
/// twice the products; AMD's do as many dots as multiply-adds.
pub fn has_bf16_dot() -> bool {
    has_bf16_dot_on(isa())
}

/// The same for a given instruction set.
pub(crate) fn has_bf16_dot_on(isa: Isa) -> bool {
    isa == Isa::Avx512 && cpu_has_bf16_dot()
}

/// Whether matrix products in bf16 run faster than in f32: on the dot instruction or on tiles.
pub fn has_fast_bf16() -> bool {
    has_bf16_dot() || has_tiles()
}

/// Whether the machine multiplies whole tiles of matrices (AMX, of bf16 and of bytes) and lets this process do so.
pub fn has_tiles() -> bool {
    has_tiles_on(isa())
}

/// The same for a given instruction set.
pub(crate) fn has_tiles_on(isa: Isa) -> bool {
    isa == Isa::Avx512 && crate::tiles::are_usable() && !WITHOUT_TILES.load(Ordering::Relaxed)
}

/// Whether bytes are multiplied with the machine's own dot instruction (VNNI) on 512-bit vectors.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_byte_dot_on(isa: Isa) -> bool {
    isa == Isa::Avx512 && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("f16c")
}

fn best() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    *BEST.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Scalar,
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Isa {
    Isa::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Isa {
    Isa::Scalar
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_bf16_dot() -> bool {
    // Asked once: `cpuid` leaves the virtual machine, which takes as long as a small product.
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| is_x86_feature_detected!("avx512bf16") && !is_made_by_intel())
}

#[cfg(target_arch = "x86_64")]
fn is_made_by_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_bf16_dot() -> bool {
    false
}

/// The instruction sets to test on this machine. What is missing is said, so that a skipped path is visible.
#[cfg(test)]
pub(crate) fn testable() -> Vec<Isa> {
    let (yes, no): (Vec<Isa>, Vec<Isa>) = Isa::ALL.into_iter().partition(|i| i.is_supported());
    for i in no {
        println!("SKIPPED: this machine has no {}", i.name());
    }
    yes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_instruction_set_is_supported() {
        assert!(isa().is_supported());
        assert!(testable().contains(&Isa::Scalar));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(force("sse9").unwrap_err().contains("unknown instruction set `sse9`"));
    }
}
