//! Copies between strided views: the innermost axis goes as a slice wherever it is contiguous.

use half::bf16;

use crate::dims::Dims;
use crate::raw::{DType, Raw};

/// Calls `row(dst_start, src_start)` for every row of the last axis, in order.
fn for_each_row(
    shape: &[usize],
    dst_strides: &[usize],
    src_strides: &[usize],
    at: (usize, usize),
    row: &mut dyn FnMut(usize, usize),
) {
    match shape {
        [] | [_] => row(at.0, at.1),
        [size, rest @ ..] => {
            for index in 0..*size {
                let next = (at.0 + index * dst_strides[0], at.1 + index * src_strides[0]);
                for_each_row(rest, &dst_strides[1..], &src_strides[1..], next, row);
            }
        }
    }
}

/// Combines every element of `src`, whose numbers from the view's first on are `data`, with the matching one of `dst`, both strided with the shape of `src`.
fn combine<D, T: Copy>(dst: &mut [D], dst_strides: &[usize], src: &Raw, data: &[T], apply: impl Fn(&mut D, T)) {
    let (shape, src_strides) = (src.shape(), src.strides());
    if src.count() == 0 {
        return;
    }
    let last = shape.len().wrapping_sub(1);
    let width = shape.width();
    let dst_step = dst_strides.get(last).copied().unwrap_or(1);
    let src_step = src_strides.get(last).copied().unwrap_or(1);
    for_each_row(&shape, dst_strides, &src_strides, (0, 0), &mut |d, s| {
        if (dst_step == 1 && src_step == 1) || width == 1 {
            dst[d..d + width].iter_mut().zip(&data[s..s + width]).for_each(|(d, &s)| apply(d, s));
        } else {
            for index in 0..width {
                apply(&mut dst[d + index * dst_step], data[s + index * src_step]);
            }
        }
    });
}

/// Dense copy of a strided view.
pub(super) fn copy(dst: &mut [f32], src: &Raw) {
    if src.is_dense() {
        dst.copy_from_slice(src.f32());
    } else {
        combine(dst, &src.shape().dense_strides(), src, src.strided_f32(), |d, s| *d = s);
    }
}

/// Dense copy of a strided bf16 view.
pub(super) fn copy_bf16(dst: &mut [bf16], src: &Raw) {
    combine(dst, &src.shape().dense_strides(), src, src.strided_bf16(), |d, s| *d = s);
}

/// Dense f32 copy of a strided bf16 view.
pub(super) fn widen(dst: &mut [f32], src: &Raw) {
    combine(dst, &src.shape().dense_strides(), src, src.strided_bf16(), |d, s| *d = s.to_f32());
}

/// Adds `src` to the part of dense `dst` that starts at `start` on `axis`.
pub(super) fn add_region(dst: &mut Raw, axis: usize, start: usize, src: &Raw) {
    let (strides, offset) = region(dst, axis, start, src);
    combine(&mut dst.strided_f32_mut()[offset..], &strides, src, src.strided_f32(), |d, s| *d += s);
}

/// Copies `src`, of the same element type, there.
pub(super) fn write_region(dst: &mut Raw, axis: usize, start: usize, src: &Raw) {
    let (strides, offset) = region(dst, axis, start, src);
    match src.dtype() {
        DType::Bf16 => {
            combine(&mut dst.strided_bf16_mut()[offset..], &strides, src, src.strided_bf16(), |d, s| *d = s);
        }
        _ => combine(&mut dst.strided_f32_mut()[offset..], &strides, src, src.strided_f32(), |d, s| *d = s),
    }
}

/// Strides of `dst`, and where the region begins.
fn region(dst: &Raw, axis: usize, start: usize, src: &Raw) -> (Dims, usize) {
    let (shape, strides) = (dst.shape(), dst.strides());
    let fits = shape.with(axis, src.shape()[axis]) == src.shape() && start + src.shape()[axis] <= shape[axis];
    assert!(fits, "region of {:?} from {start} on axis {axis} of {shape:?}", src.shape());
    (strides, start * strides[axis])
}
