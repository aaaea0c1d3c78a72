//! Which element type matrix products take their operands in.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Precision of matrix products. Parameters, gradients, optimizer state, norms, softmax and losses are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 operands.
    #[default]
    F32,
    /// bf16 operands and saved activations, f32 accumulation (Micikevicius et al. 2018, with bfloat16).
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    /// `f32`, `bf16`, or `auto`: bf16 where the processor multiplies it natively.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "auto" if loam_kernels::isa::has_fast_bf16() => Ok(Self::Bf16),
            "auto" => Ok(Self::F32),
            other => Err(format!("unknown precision `{other}`: expected auto, f32 or bf16")),
        }
    }
}

thread_local! {
    static CURRENT: Cell<Option<Precision>> = const { Cell::new(None) };
}
/// Whether it is bf16 where nothing else was said.
static IS_BF16: AtomicBool = AtomicBool::new(false);

/// Sets what is in force on every thread outside of [`with_precision`]: f32 unless this says otherwise. For a program to
/// say once, when it starts.
pub fn set_default_precision(precision: Precision) {
    IS_BF16.store(precision == Precision::Bf16, Ordering::Relaxed);
}

/// Runs `work` with matrix products in `precision`; backward uses what its forward used.
pub fn with_precision<R>(precision: Precision, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Precision>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(Some(precision)));
    work()
}

/// The precision in force on this thread.
pub fn precision() -> Precision {
    CURRENT.get().unwrap_or_else(|| match IS_BF16.load(Ordering::Relaxed) {
        true => Precision::Bf16,
        false => Precision::F32,
    })
}
