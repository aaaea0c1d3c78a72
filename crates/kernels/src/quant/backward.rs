//! How gradients flow back through weights of a file: products with their columns.

use super::decode::dequantise_rows;
use super::nf4::Nf4;
use super::product::{Quantised, WIDENED};
use super::types::GgmlType;
use crate::gemm::blocked;
use crate::gemm::units::{Halves, Plain, Widened};
use crate::gemm::{Mat, MatMut, Operand, Start, gemm_bf16, gemm_f32};
use crate::isa::isa;
use crate::scratch::with_scratch;
use half::{bf16, f16};
use std::ops::Range;

/// Rows that are decoded together are a multiple of this: as many as any product adds up at once.
const STEP: usize = 32;

/// The gradient of the inputs of [`matmul_quantised`](super::matmul_quantised) from that of its outputs:
/// `out[i][j] = start + sum over o of dy[i][o] w[o][j]`. `dy` is `[m, rows]`, `out` is `[m, cols]`. Halves are read where they
/// lie, others decoded some rows at a time. Products are those of f32, or with `in_bf16` of operands rounded to bf16. Panics
/// where sizes do not agree, or types cannot be decoded.
pub fn matmul_quantised_backward(out: &mut [f32], dy: &[f32], w: Quantised<'_>, start: Start<'_>, in_bf16: bool) {
    let (c, dy) = operands("matmul_quantised_backward", out, dy, [w.rows, w.cols]);
    if let (GgmlType::F16, Ok(own)) = (w.ty, bytemuck::try_cast_slice::<u8, f16>(w.bytes)) {
        let own = Mat::rows(own, w.rows, w.cols);
        return match in_bf16 {
            true => gemm_bf16(c, Operand::F32(dy), Operand::F16(own), start),
            false => blocked::product::<Plain, Halves>(isa(), c, dy, own, start),
        };
    }
    if let (GgmlType::Bf16, Ok(own)) = (w.ty, bytemuck::try_cast_slice::<u8, bf16>(w.bytes)) {
        let own = Mat::rows(own, w.rows, w.cols);
        return match in_bf16 {
            true => gemm_bf16(c, Operand::F32(dy), Operand::Bf16(own), start),
            false => blocked::product::<Plain, Widened>(isa(), c, dy, own, start),
        };
    }
    by_rows(c, dy, start, in_bf16, |rows, wide| dequantise_rows(w.ty, w.part(rows), wide));
}

/// The same for weights in NF4, `[rows, cols]`.
pub fn matmul_nf4_backward(out: &mut [f32], dy: &[f32], w: &Nf4, cols: usize, start: Start<'_>, in_bf16: bool) {
    let rows = w.count().checked_div(cols).unwrap_or(0);
    assert_eq!(rows * cols, w.count(), "matmul_nf4_backward: {} weights, {cols} columns", w.count());
    let (c, dy) = operands("matmul_nf4_backward", out, dy, [rows, cols]);
    by_rows(c, dy, start, in_bf16, |rows, wide| w.decode_rows(rows, cols, wide));
}

/// Both as matrices.
fn operands<'a>(
    op: &str,
    out: &'a mut [f32],
    dy: &'a [f32],
    [rows, cols]: [usize; 2],
) -> (MatMut<'a, f32>, Mat<'a, f32>) {
    let m = dy.len().checked_div(rows).unwrap_or(0);
    assert!(
        rows > 0 && dy.len() == m * rows && out.len() == m * cols,
        "{op}: {} gradients for weights [{rows}, {cols}] into {}",
        dy.len(),
        out.len()
    );
    (MatMut::rows(out, m, cols), Mat::rows(dy, m, rows))
}

/// The product with a matrix, of which `widen` writes some rows at a time: sums continue from one piece to the next.
fn by_rows(
    c: MatMut<'_, f32>,
    dy: Mat<'_, f32>,
    start: Start<'_>,
    in_bf16: bool,
    widen: impl Fn(Range<usize>, &mut [f32]),
) {
    let (m, n, k) = (c.rows, dy.cols, c.cols);
    if m == 0 || k == 0 {
        return;
    }
    let together = (WIDENED / k / STEP).max(1) * STEP;
    with_scratch(together.min(n) * k, |wide: &mut [f32]| {
        for first in (0..n).step_by(together) {
            let rows = first..n.min(first + together);
            let wide = &mut wide[..rows.len() * k];
            widen(rows.clone(), wide);
            let a = Mat::strided(&dy.data[first..], m, rows.len(), n, 1);
            let b = Mat::rows(wide, rows.len(), k);
            let c = MatMut::rows(&mut *c.data, m, k);
            let start = if first == 0 { start } else { Start::Sum };
            match in_bf16 {
                true => gemm_bf16(c, Operand::F32(a), Operand::F32(b), start),
                false => gemm_f32(c, a, b, start),
            }
        }
    });
}
