//! How gradients flow back through weights of a file: products with their columns.

use super::decode::dequantise;
use super::product::Quantised;
use super::types::GgmlType;
use super::widened::Packed;
use crate::gemm::blocked;
use crate::gemm::units::{Halves, Plain, Widened};
use crate::gemm::{Mat, MatMut, Operand, Start, gemm_bf16, gemm_f32};
use crate::isa::isa;
use half::{bf16, f16};

/// The gradient of the inputs of [`matmul_quantised`](super::matmul_quantised) from that of its outputs:
/// `out[i][j] = start + sum over o of dy[i][o] w[o][j]`. `dy` is `[m, rows]`, `out` is `[m, cols]`. Halves are read where they
/// lie, others decoded some rows at a time. Products are those of f32, or with `in_bf16` of operands rounded to bf16. Panics
/// where sizes do not agree, or types cannot be decoded.
pub fn matmul_quantised_backward(out: &mut [f32], dy: &[f32], w: Quantised<'_>, start: Start<'_>, in_bf16: bool) {
    let dy = gradients("matmul_quantised_backward", out, dy, [w.rows, w.cols]);
    if let (GgmlType::F16, Ok(own)) = (w.ty, bytemuck::try_cast_slice::<u8, f16>(w.bytes)) {
        let (c, own) = (MatMut::rows(out, dy.rows, w.cols), Mat::rows(own, w.rows, w.cols));
        return match in_bf16 {
            true => gemm_bf16(c, Operand::F32(dy), Operand::F16(own), start),
            false => blocked::product::<Plain, Halves>(isa(), c, dy, own, start),
        };
    }
    if let (GgmlType::Bf16, Ok(own)) = (w.ty, bytemuck::try_cast_slice::<u8, bf16>(w.bytes)) {
        let (c, own) = (MatMut::rows(out, dy.rows, w.cols), Mat::rows(own, w.rows, w.cols));
        return match in_bf16 {
            true => gemm_bf16(c, Operand::F32(dy), Operand::Bf16(own), start),
            false => blocked::product::<Plain, Widened>(isa(), c, dy, own, start),
        };
    }
    w.packed().backward(out, dy, start, |c, dy, wide: Mat<'_, f32>, start| match in_bf16 {
        true => gemm_bf16(c, Operand::F32(dy), Operand::F32(wide), start),
        false => gemm_f32(c, dy, wide, start),
    });
}

/// The gradients of outputs as a matrix. Panics where they are not those of a product with such weights.
pub(super) fn gradients<'a>(op: &str, out: &[f32], dy: &'a [f32], [rows, cols]: [usize; 2]) -> Mat<'a, f32> {
    let m = dy.len().checked_div(rows).unwrap_or(0);
    assert!(
        rows * cols > 0 && dy.len() == m * rows && out.len() == m * cols,
        "{op}: {} gradients for weights [{rows}, {cols}] into {}",
        dy.len(),
        out.len()
    );
    Mat::rows(dy, m, rows)
}

impl<'a> Quantised<'a> {
    /// As what is decoded some rows at a time.
    pub(super) fn packed(self) -> Packed<impl Fn(usize, &mut [f32]) + Sync + 'a> {
        let decode = move |row: usize, out: &mut [f32]| {
            dequantise(self.ty, self.part(row..row + out.len() / self.cols), out);
        };
        Packed { rows: self.rows, cols: self.cols, decode }
    }
}
