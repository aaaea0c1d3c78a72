//! GPTQ: rounding column by column, the error of each carried over to those that are still to come.

use std::sync::atomic::{AtomicBool, Ordering};

use loam_kernels::gemm::{Mat, MatMut, Start, gemm_f32};
use loam_tensor::GgmlType;
use rayon::prelude::*;

use crate::grid::{Fixed, Grid};
use crate::linalg::{damped, upper_of_inverse};
use crate::statistics::Statistics;

/// Columns whose errors are carried over to the others together, at least.
const TOGETHER: usize = 128;

/// How a layer is rounded.
#[derive(Clone, Copy, Debug)]
pub struct GptqSettings {
    /// Share of the Hessian's mean diagonal that is added to its diagonal.
    pub damping: f64,
    /// Whether the search for scales weighs columns by their inputs, too; else scales are those of plain rounding.
    pub weighs_scales: bool,
}

impl Default for GptqSettings {
    fn default() -> Self {
        Self { damping: 0.01, weighs_scales: false }
    }
}

/// Rounds a weight `[rows, width]` to a type whose scales are found as the type's own encoder does, for what the columns
/// have become when their block's turn comes. Returns the blocks, row after row; `None` where the Hessian `X^T X` is
/// singular in spite of its damping, or the type has no levels.
///
/// Frantar et al. 2022, "GPTQ", algorithm 1: with `u` the upper Cholesky factor of the inverse Hessian, column i gets
/// `q_i = round(w_i)`, and every later column j loses `(w_i - q_i) / u_ii * u_ij`.
pub fn gptq(weight: &[f32], rows: usize, inputs: &Statistics, ty: GgmlType, settings: GptqSettings) -> Option<Vec<u8>> {
    let (grid, width) = (Grid::new(ty)?, inputs.width);
    let (block, block_bytes) = (ty.block_len(), ty.block_bytes());
    let row_bytes = ty.bytes(width)?;
    let u = upper_of_inverse(&damped(&inputs.gram, width, settings.damping), width)?;
    let u: Vec<f32> = u.iter().map(|&x| x as f32).collect();
    let importance = settings.weighs_scales.then(|| inputs.importance());
    let mut w = weight.to_vec();
    forget_unused(&mut w, inputs);
    let mut out = vec![0; rows * row_bytes];
    let step = TOGETHER.next_multiple_of(block);
    let failed = AtomicBool::new(false);
    let mut errors = vec![0.0_f32; rows * step];
    for start in (0..width).step_by(step) {
        let end = (start + step).min(width);
        let part = end - start;
        let rows_of = w.par_chunks_exact_mut(width).zip(errors.par_chunks_exact_mut(step));
        rows_of.zip(out.par_chunks_exact_mut(row_bytes)).for_each(|((w, errors), out)| {
            let mut fixed: Option<Fixed> = None;
            for i in start..end {
                if i % block == 0 {
                    let columns = i..i + block;
                    let importance = importance.as_ref().map(|all| &all[columns.clone()]);
                    fixed = Some(grid.fix(&w[columns], importance));
                }
                let Some(current) = fixed.as_mut() else { return };
                let error = (w[i] - current.choose(i % block, w[i])) / u[i * width + i];
                errors[i - start] = -error;
                let later = w[i + 1..end].iter_mut().zip(&u[i * width + i + 1..i * width + end]);
                later.for_each(|(w, u)| *w -= error * u);
                if (i + 1) % block == 0
                    && let Some(done) = fixed.take()
                {
                    out[i / block * block_bytes..][..block_bytes].copy_from_slice(&done.finish());
                }
            }
            if !w[end - 1].is_finite() {
                failed.store(true, Ordering::Relaxed);
            }
        });
        if end < width {
            let own = Mat::strided(&errors, rows, part, step, 1);
            let later = Mat::strided(&u[start * width + end..], part, width - end, width, 1);
            gemm_f32(MatMut::strided(&mut w[end..], rows, width - end, width, 1), own, later, Start::Sum);
        }
    }
    (!failed.load(Ordering::Relaxed)).then_some(out)
}

/// Columns that are multiplied with nothing but zeros hold zeros.
fn forget_unused(w: &mut [f32], inputs: &Statistics) {
    let width = inputs.width;
    for (j, _) in inputs.squares.iter().enumerate().filter(|(_, square)| **square == 0.0) {
        w.iter_mut().skip(j).step_by(width).for_each(|x| *x = 0.0);
    }
}
