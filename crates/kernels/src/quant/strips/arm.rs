//! The loops over strips on 64-bit ARM, with the dot instruction on bytes and without.

use super::lanes::Lanes;
use super::neon::{AtOnce, InSteps, Neon};
use super::{Strips, run, scratch_len};
use crate::isa::Isa;
use crate::quant::activations::Layout;
use crate::quant::product::{Job, Path, Run};
use std::arch::is_aarch64_feature_detected;
use std::ops::Range;

/// A type with a product on both.
pub(in crate::quant) trait OnVectors: Strips<Neon<InSteps>> + Strips<Neon<AtOnce>> {}
impl<F: Strips<Neon<InSteps>> + Strips<Neon<AtOnce>>> OnVectors for F {}

/// How activations lie that meet signed bytes: there is nothing to make up for.
pub(in crate::quant) fn signed_layout(isa: Isa) -> Layout {
    if isa == Isa::Neon { Layout::Moved32(0) } else { Layout::Words32 }
}

/// How a product is computed on an instruction set with vectors.
pub(in crate::quant) fn on_vectors<F: OnVectors>(isa: Isa, layout: Layout) -> Option<Path> {
    let run: Run = match isa {
        // SAFETY: the machine has the dot instruction; pieces of work share no columns.
        Isa::Neon if is_aarch64_feature_detected!("dotprod") => {
            |job, columns, memory| unsafe { run_at_once::<F>(job, columns, memory) }
        }
        // SAFETY: NEON is a part of this architecture; pieces of work share no columns.
        Isa::Neon => |job, columns, memory| unsafe { run::<Neon<InSteps>, F>(job, columns, memory, None) },
        _ => return None,
    };
    Some(Path { layout, group: Neon::<AtOnce>::GROUP, run, scratch: scratch_len })
}

/// [`run`] with the dot instruction.
///
/// # Safety
/// The machine must have it; no other thread may write these columns.
#[target_feature(enable = "neon,dotprod")]
unsafe fn run_at_once<F: Strips<Neon<AtOnce>>>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    // SAFETY: passed on from the caller.
    unsafe { run::<Neon<AtOnce>, F>(job, columns, memory, None) }
}
