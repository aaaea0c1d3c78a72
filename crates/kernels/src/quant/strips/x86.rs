//! The loops over strips on AVX2, on AVX-512 with VNNI, and on tiles.

use super::avx2::Avx2;
use super::avx512::Avx512;
use super::lanes::Lanes;
use super::on_tiles::{OnTiles, run_on_tiles, scratch_len_on_tiles};
use super::straight::few;
use super::{Strips, run, scratch_len};
use crate::isa::{Isa, has_byte_dot_on, has_tiles_on};
use crate::quant::activations::{Layout, ON_TILES};
use crate::quant::product::{Job, Path, Run};
use std::ops::Range;

/// A type with a product on all of them.
pub(in crate::quant) trait OnVectors: Strips<Avx2> + OnTiles {}
impl<F: Strips<Avx2> + OnTiles> OnVectors for F {}

/// How activations lie that meet signed bytes.
pub(in crate::quant) fn signed_layout(isa: Isa) -> Layout {
    if has_byte_dot_on(isa) { Layout::Moved32(128) } else { Layout::Words32 }
}

/// How a product is computed on an instruction set with vectors.
pub(in crate::quant) fn on_vectors<F: OnVectors>(isa: Isa, layout: Layout) -> Option<Path> {
    if has_tiles_on(isa) {
        // SAFETY: the machine has tiles, and AVX-512 with VNNI; pieces of work share no columns.
        let run: Run = |job, columns, memory| unsafe { run_on_tiles::<F>(job, columns, memory) };
        Some(Path { layout, group: ON_TILES, run, scratch: scratch_len_on_tiles })
    } else if has_byte_dot_on(isa) {
        // SAFETY: the machine has AVX-512 with VNNI; pieces of work share no columns.
        let run: Run = |job, columns, memory| unsafe { run_avx512::<F>(job, columns, memory) };
        Some(Path { layout, group: Avx512::GROUP, run, scratch: scratch_len })
    } else if isa >= Isa::Avx2 {
        // SAFETY: the machine has AVX2, FMA and F16C; pieces of work share no columns.
        let run: Run = |job, columns, memory| unsafe { run_avx2::<F>(job, columns, memory) };
        Some(Path { layout, group: Avx2::GROUP, run, scratch: scratch_len })
    } else {
        None
    }
}

/// [`run`] on AVX2.
///
/// # Safety
/// The machine must have AVX2, FMA and F16C; no other thread may write these columns.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<F: Strips<Avx2>>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    // SAFETY: passed on from the caller.
    unsafe { run::<Avx2, F>(job, columns, memory, None) }
}

/// [`run`] on AVX-512.
///
/// # Safety
/// The machine must have AVX-512 F, BW, DQ, VL and VNNI; no other thread may write these columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<F: OnTiles>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    // SAFETY: passed on from the caller.
    unsafe { run::<Avx512, F>(job, columns, memory, Some(few::<F>())) }
}
