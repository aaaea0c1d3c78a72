//! What the blocked product multiplies: units of 32 bits along k, and how they are copied into strips.
//!
//! A unit is one f32, or two neighbouring bf16 where the CPU adds two products at a time. Packing, blocking and the
//! innermost loop move units and do not look into them; only [`Simd::fma`] and [`Simd::dot_bf16`] do.

use super::Mat;
use crate::quant::f16_to_f32;
use crate::simd::Simd;
use crate::unit::{One, Two, Unit};
use half::{bf16, f16};

/// How an operand is stored, and what its units are made of.
pub(crate) trait Source: Copy + Send + Sync + 'static {
    /// What it is stored as.
    type Element: Copy + Send + Sync + 'static;
    /// What it is multiplied as.
    type Unit: Unit;
    /// Unit `p` of line `i` of a matrix whose k runs along its columns.
    fn unit(lines: &Mat<'_, Self::Element>, i: usize, p: usize) -> f32;
    /// Whether [`Source::transpose`] can read these lines.
    fn is_along(lines: &Mat<'_, Self::Element>) -> bool {
        lines.col_stride == 1
    }
    /// Writes eight units of eight lines: unit p of line i to `dst[p * dst_stride + i]`, in ascending order of p.
    ///
    /// # Safety
    /// As [`Simd::transpose_8x8`]; the lines, `stride` elements apart, must be [`Source::is_along`].
    unsafe fn transpose<S: Simd>(s: S, src: *const Self::Element, stride: usize, dst: *mut f32, dst_stride: usize);
    /// Unit `p` of as many lines as there are lanes, from line `i` on, where lines lie side by side.
    ///
    /// # Safety
    /// All of these elements must be readable. The kernel was started by [`crate::simd::dispatch_pairs`] where a unit
    /// is a pair.
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, Self::Element>, i: usize, p: usize) -> S::V;
    /// As many units of line `i` as there are lanes, from unit `p` on, where k runs along memory.
    ///
    /// # Safety
    /// As [`Source::across`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tiles want it"))]
    #[inline(always)]
    unsafe fn along<S: Simd>(s: S, lines: &Mat<'_, Self::Element>, i: usize, p: usize) -> S::V {
        let mut units = [0.0; crate::simd::MAX_LANES];
        units[..S::LANES].iter_mut().enumerate().for_each(|(j, unit)| *unit = Self::unit(lines, i, p + j));
        s.load(&units)
    }
}

/// f32, one per unit.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Source for Plain {
    type Element = f32;
    type Unit = One;

    #[inline(always)]
    fn unit(lines: &Mat<'_, f32>, i: usize, p: usize) -> f32 {
        lines.data[i * lines.row_stride + p * lines.col_stride]
    }
    #[inline(always)]
    unsafe fn transpose<S: Simd>(s: S, src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: passed on from the caller.
        unsafe { s.transpose_8x8(src, stride, dst, dst_stride) }
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, f32>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { s.load_ptr(lines.data.as_ptr().add(p * lines.col_stride + i)) }
    }
}

/// bf16, widened to one f32 per unit.
#[derive(Clone, Copy)]
pub(crate) struct Widened;

impl Source for Widened {
    type Element = bf16;
    type Unit = One;

    #[inline(always)]
    fn unit(lines: &Mat<'_, bf16>, i: usize, p: usize) -> f32 {
        // The library's conversion is a call; this is a shift.
        f32::from_bits(u32::from(lines.data[i * lines.row_stride + p * lines.col_stride].to_bits()) << 16)
    }
    #[inline(always)]
    unsafe fn transpose<S: Simd>(s: S, src: *const bf16, stride: usize, dst: *mut f32, dst_stride: usize) {
        let mut wide = [0.0_f32; 64];
        for (i, wide) in wide.chunks_exact_mut(8).enumerate() {
            // SAFETY: the caller vouches for eight elements of eight lines.
            let line: [bf16; 8] = unsafe { src.add(i * stride).cast::<[bf16; 8]>().read() };
            for (wide, x) in wide.iter_mut().zip(line) {
                *wide = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
        }
        // SAFETY: as above.
        unsafe { s.transpose_8x8(wide.as_ptr(), 8, dst, dst_stride) }
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, bf16>, i: usize, p: usize) -> S::V {
        s.load_bf16(&lines.data[p * lines.col_stride + i..])
    }
}

/// Half precision, widened to one f32 per unit.
#[derive(Clone, Copy)]
pub(crate) struct Halves;

impl Source for Halves {
    type Element = f16;
    type Unit = One;

    #[inline(always)]
    fn unit(lines: &Mat<'_, f16>, i: usize, p: usize) -> f32 {
        f16_to_f32(lines.data[i * lines.row_stride + p * lines.col_stride].to_bits())
    }
    #[inline(always)]
    unsafe fn transpose<S: Simd>(s: S, src: *const f16, stride: usize, dst: *mut f32, dst_stride: usize) {
        let mut wide = [0.0_f32; 64];
        for (i, wide) in wide.chunks_exact_mut(8).enumerate() {
            // SAFETY: the caller vouches for eight elements of eight lines.
            let line: [f16; 8] = unsafe { src.add(i * stride).cast::<[f16; 8]>().read() };
            for (wide, x) in wide.iter_mut().zip(line) {
                *wide = f16_to_f32(x.to_bits());
            }
        }
        // SAFETY: as above.
        unsafe { s.transpose_8x8(wide.as_ptr(), 8, dst, dst_stride) }
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, f16>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { s.load_f16(lines.data.as_ptr().add(p * lines.col_stride + i)) }
    }
}

/// bf16, two per unit.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl Source for Pairs {
    type Element = bf16;
    type Unit = Two;

    #[inline(always)]
    fn unit(lines: &Mat<'_, bf16>, i: usize, p: usize) -> f32 {
        pair(lines, i, p, |x| x)
    }
    #[inline(always)]
    fn is_along(lines: &Mat<'_, bf16>) -> bool {
        lines.col_stride == 1 && lines.row_stride.is_multiple_of(2)
    }
    #[inline(always)]
    unsafe fn transpose<S: Simd>(s: S, src: *const bf16, stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: passed on from the caller; two bf16 are as long as an f32, and loads need no alignment.
        unsafe { s.transpose_8x8(src.cast(), stride / 2, dst, dst_stride) }
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, bf16>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller; behind the last k stands nothing, which is read as zero.
        unsafe {
            let low = lines.data.as_ptr().add(2 * p * lines.col_stride + i);
            let high = if 2 * p + 1 < lines.cols { Some(low.add(lines.col_stride)) } else { None };
            s.interleave_bf16(low, high)
        }
    }
    #[inline(always)]
    unsafe fn along<S: Simd>(s: S, lines: &Mat<'_, bf16>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller; two bf16 are as long as an f32.
        unsafe { s.load_ptr(lines.data.as_ptr().add(i * lines.row_stride + 2 * p).cast()) }
    }
}

/// f32, rounded to bf16 on the way, two per unit: saves a pass and a copy.
#[derive(Clone, Copy)]
pub(crate) struct Rounded;

impl Source for Rounded {
    type Element = f32;
    type Unit = Two;

    #[inline(always)]
    fn unit(lines: &Mat<'_, f32>, i: usize, p: usize) -> f32 {
        pair(lines, i, p, bf16::from_f32)
    }
    #[inline(always)]
    unsafe fn transpose<S: Simd>(s: S, src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: passed on from the caller.
        unsafe { s.transpose_8x8_to_bf16(src, stride, dst, dst_stride) }
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, f32>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller; behind the last k stands nothing, which is read as zero.
        unsafe {
            let low = lines.data.as_ptr().add(2 * p * lines.col_stride + i);
            let high = if 2 * p + 1 < lines.cols { s.load_ptr(low.add(lines.col_stride)) } else { s.zero() };
            s.pair_bf16(s.load_ptr(low), high)
        }
    }
    #[inline(always)]
    unsafe fn along<S: Simd>(s: S, lines: &Mat<'_, f32>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe {
            let first = lines.data.as_ptr().add(i * lines.row_stride + 2 * p);
            s.join_bf16(s.load_ptr(first), s.load_ptr(first.add(S::LANES)))
        }
    }
}

/// Half precision, rounded to bf16 on the way, two per unit: weights are read as a file holds them.
#[derive(Clone, Copy)]
pub(crate) struct HalvesRounded;

impl Source for HalvesRounded {
    type Element = f16;
    type Unit = Two;

    #[inline(always)]
    fn unit(lines: &Mat<'_, f16>, i: usize, p: usize) -> f32 {
        pair(lines, i, p, |half| bf16::from_f32(f16_to_f32(half.to_bits())))
    }
    #[inline(always)]
    unsafe fn transpose<S: Simd>(s: S, src: *const f16, stride: usize, dst: *mut f32, dst_stride: usize) {
        let mut wide = [[0.0_f32; 16]; 8];
        // SAFETY: the caller vouches for sixteen elements of eight lines.
        unsafe {
            for (i, wide) in wide.iter_mut().enumerate() {
                for at in (0..16).step_by(S::LANES) {
                    s.store_ptr(wide.as_mut_ptr().add(at), s.load_f16(src.add(i * stride + at)));
                }
            }
            s.transpose_8x8_to_bf16(wide.as_ptr().cast(), 16, dst, dst_stride)
        }
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, f16>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller; behind the last k stands nothing, which is read as zero.
        unsafe {
            let low = lines.data.as_ptr().add(2 * p * lines.col_stride + i);
            let high = if 2 * p + 1 < lines.cols { s.load_f16(low.add(lines.col_stride)) } else { s.zero() };
            s.pair_bf16(s.load_f16(low), high)
        }
    }
}

/// Elements 2p and 2p + 1 of a line; what lies behind the last is zero.
#[inline(always)]
fn pair<E: Copy>(lines: &Mat<'_, E>, i: usize, p: usize, narrow: impl Fn(E) -> bf16) -> f32 {
    let at = |k: usize| match k < lines.cols {
        true => u32::from(narrow(lines.data[i * lines.row_stride + k * lines.col_stride]).to_bits()),
        false => 0,
    };
    f32::from_bits(at(2 * p) | at(2 * p + 1) << 16)
}

/// Units of a packed strip of `width` lines, with room for a vector that sticks out at its end.
#[inline(always)]
pub(crate) fn strip_len(width: usize, depth: usize) -> usize {
    width * depth + crate::simd::MAX_LANES
}

/// Copies lines into strips of `width`, each [`strip_len`] of `room` steps: step p of a strip is unit p of its lines. What
/// the last strip or the lines lack is zero.
#[inline(always)]
pub(crate) fn pack<S: Simd, X: Source>(
    s: S,
    strips: &mut [f32],
    lines: Mat<'_, X::Element>,
    width: usize,
    room: usize,
) {
    let (depth, size) = (X::Unit::count(lines.cols), strip_len(width, room));
    assert!(strips.len() >= lines.rows.div_ceil(width) * size && depth <= room, "too few strips");
    let packed = match () {
        () if X::is_along(&lines) => pack_along::<S, X>(s, strips, &lines, width, size),
        () if lines.row_stride == 1 => pack_across::<S, X>(s, strips, &lines, width, size),
        () => 0,
    };
    for strip in 0..lines.rows.div_ceil(width) {
        strips[strip * size..][depth * width..room * width].fill(0.0);
    }
    for (strip, line) in (0..lines.rows).step_by(width).enumerate().skip(packed) {
        let count = width.min(lines.rows - line);
        for (p, step) in strips[strip * size..][..width * depth].chunks_exact_mut(width).enumerate() {
            for (i, x) in step.iter_mut().enumerate() {
                *x = if i < count { X::unit(&lines, line + i, p) } else { 0.0 };
            }
        }
    }
}

/// Lines along k: blocks of eight by eight are transposed. Returns how many strips are done.
///
/// A block may be wider than what is left of a strip: what it reads must be there, and what it writes too much belongs
/// to the next step, which is written later.
#[inline(always)]
fn pack_along<S: Simd, X: Source>(
    s: S,
    strips: &mut [f32],
    lines: &Mat<'_, X::Element>,
    width: usize,
    size: usize,
) -> usize {
    let (depth, wide) = (X::Unit::count(lines.cols), width.next_multiple_of(8));
    // The last line that a strip reads must have its elements.
    let is_readable = |strip: usize| (strip * width + wide - 1) * lines.row_stride + lines.cols <= lines.data.len();
    let mut whole = lines.rows / width;
    while whole > 0 && !is_readable(whole - 1) {
        whole -= 1;
    }
    let blocks = lines.cols / (8 * X::Unit::SIZE) * 8;
    for strip in 0..whole {
        // SAFETY: lines and units are readable, as was computed, and the strip has room behind it for a vector.
        unsafe {
            let from = lines.data.as_ptr().add(strip * width * lines.row_stride);
            let to = strips.as_mut_ptr().add(strip * size);
            for p in (0..blocks).step_by(8) {
                // From the right to the left, so that what sticks out to the right is overwritten.
                for i in (0..wide).step_by(8).rev() {
                    let block = from.add(i * lines.row_stride + p * X::Unit::SIZE);
                    X::transpose(s, block, lines.row_stride, to.add(p * width + i), width);
                }
            }
            for p in blocks..depth {
                for i in 0..width {
                    *to.add(p * width + i) = X::unit(lines, strip * width + i, p);
                }
            }
        }
    }
    whole
}

/// Lines side by side: all strips of a step at once, so that each cache line is touched once. Returns how many strips
/// are done.
#[inline(always)]
fn pack_across<S: Simd, X: Source>(
    s: S,
    strips: &mut [f32],
    lines: &Mat<'_, X::Element>,
    width: usize,
    size: usize,
) -> usize {
    let (depth, wide) = (X::Unit::count(lines.cols), width.next_multiple_of(S::LANES));
    let last_line = lines.data.len().saturating_sub((lines.cols - 1) * lines.col_stride);
    let readable = if last_line < wide { 0 } else { (last_line - wide) / width + 1 };
    let whole = (lines.rows / width).min(readable);
    for p in 0..depth {
        for strip in 0..whole {
            // SAFETY: the vectors end inside of the matrix, as was computed for its last k, and inside of the strip and
            // the room behind it.
            unsafe {
                let to = strips.as_mut_ptr().add(strip * size + p * width);
                for i in (0..wide).step_by(S::LANES) {
                    s.store_ptr(to.add(i), X::across(s, lines, strip * width + i, p));
                }
            }
        }
    }
    whole
}
