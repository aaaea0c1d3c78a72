//! What the blocked product multiplies: units of 32 bits along k, and how they are copied into strips.
//!
//! A unit is one f32, or two neighbouring bf16 where the CPU adds two products at a time ([`Pairs`]). Packing, blocking
//! and the innermost loop move units and do not look into them; only [`Units::add_product`] does.

use super::Mat;
use crate::Isa;
use crate::simd::{Kernel, Simd, dispatch_on, dispatch_pairs};
use half::bf16;

/// A way to multiply operands of one element type.
pub(crate) trait Units: Copy + Send + Sync + 'static {
    /// What the operands are stored as.
    type Element: Copy + Send + Sync + 'static;
    /// Elements of k in a unit.
    const SIZE: usize;
    /// Units of `k` elements; what the last one lacks is zero.
    fn count(k: usize) -> usize {
        k.div_ceil(Self::SIZE)
    }
    /// Unit `p` of line `i` of a matrix whose k runs along its columns.
    fn unit(lines: &Mat<'_, Self::Element>, i: usize, p: usize) -> f32;
    /// Where the units of such a matrix lie in memory as they are, k side by side, and how far apart its lines are.
    fn along<'a>(lines: &Mat<'a, Self::Element>) -> Option<Along<'a>>;
    /// Unit `p` of as many lines as there are lanes, from line `i` on, where lines lie side by side.
    ///
    /// # Safety
    /// All of these elements must be readable.
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, Self::Element>, i: usize, p: usize) -> S::V;
    /// `sum` and the products of the elements of a unit.
    ///
    /// # Safety
    /// The kernel was started by [`Units::dispatch`].
    unsafe fn add_product<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V;
    /// Runs a kernel that multiplies units.
    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        dispatch_on(isa, kernel)
    }
}

/// Whole units in memory, not necessarily aligned.
pub(crate) struct Along<'a> {
    first: *const f32,
    /// Distance between lines, in units.
    stride: usize,
    /// Readable units from the first on.
    len: usize,
    memory: std::marker::PhantomData<&'a [f32]>,
}

/// f32, one per unit.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Units for Plain {
    type Element = f32;
    const SIZE: usize = 1;

    #[inline(always)]
    fn unit(lines: &Mat<'_, f32>, i: usize, p: usize) -> f32 {
        lines.data[i * lines.row_stride + p * lines.col_stride]
    }
    #[inline(always)]
    fn along<'a>(lines: &Mat<'a, f32>) -> Option<Along<'a>> {
        (lines.col_stride == 1).then(|| Along {
            first: lines.data.as_ptr(),
            stride: lines.row_stride,
            len: lines.data.len(),
            memory: std::marker::PhantomData,
        })
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, f32>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { s.load_ptr(lines.data.as_ptr().add(p * lines.col_stride + i)) }
    }
    #[inline(always)]
    unsafe fn add_product<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.fma(a, b, sum)
    }
}

/// bf16, widened to one f32 per unit.
#[derive(Clone, Copy)]
pub(crate) struct Widened;

impl Units for Widened {
    type Element = bf16;
    const SIZE: usize = 1;

    #[inline(always)]
    fn unit(lines: &Mat<'_, bf16>, i: usize, p: usize) -> f32 {
        // The library's conversion is a call; this is a shift.
        f32::from_bits(u32::from(lines.data[i * lines.row_stride + p * lines.col_stride].to_bits()) << 16)
    }
    #[inline(always)]
    fn along<'a>(_: &Mat<'a, bf16>) -> Option<Along<'a>> {
        None
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, bf16>, i: usize, p: usize) -> S::V {
        s.load_bf16(&lines.data[p * lines.col_stride + i..])
    }
    #[inline(always)]
    unsafe fn add_product<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.fma(a, b, sum)
    }
}

/// bf16, two per unit, for [`Simd::dot_bf16`].
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl Units for Pairs {
    type Element = bf16;
    const SIZE: usize = 2;

    #[inline(always)]
    fn unit(lines: &Mat<'_, bf16>, i: usize, p: usize) -> f32 {
        let at = |k: usize| match k < lines.cols {
            true => u32::from(lines.data[i * lines.row_stride + k * lines.col_stride].to_bits()),
            false => 0,
        };
        f32::from_bits(at(2 * p) | at(2 * p + 1) << 16)
    }
    #[inline(always)]
    fn along<'a>(lines: &Mat<'a, bf16>) -> Option<Along<'a>> {
        let is_whole = lines.col_stride == 1 && lines.cols.is_multiple_of(2) && lines.row_stride.is_multiple_of(2);
        is_whole.then(|| Along {
            first: lines.data.as_ptr().cast(),
            stride: lines.row_stride / 2,
            len: lines.data.len() / 2,
            memory: std::marker::PhantomData,
        })
    }
    #[inline(always)]
    unsafe fn across<S: Simd>(s: S, lines: &Mat<'_, bf16>, i: usize, p: usize) -> S::V {
        // SAFETY: passed on from the caller; behind the last k stands nothing, which is read as zero.
        unsafe {
            let low = lines.data.as_ptr().add(2 * p * lines.col_stride + i);
            let high = (2 * p + 1 < lines.cols).then(|| low.add(lines.col_stride));
            s.interleave_bf16(low, high)
        }
    }
    #[inline(always)]
    unsafe fn add_product<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { s.dot_bf16(a, b, sum) }
    }
    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        dispatch_pairs(isa, kernel)
    }
}

/// Units of a packed strip of `width` lines, with room for a vector that sticks out at its end.
#[inline(always)]
pub(crate) fn strip_len(width: usize, depth: usize) -> usize {
    width * depth + crate::simd::MAX_LANES
}

/// Copies lines into strips of `width`, [`strip_len`] apart: step p of a strip is unit p of its lines. What the last
/// strip lacks is zero.
#[inline(always)]
pub(crate) fn pack<S: Simd, U: Units>(s: S, strips: &mut [f32], lines: Mat<'_, U::Element>, width: usize) {
    let (depth, size) = (U::count(lines.cols), strip_len(width, U::count(lines.cols)));
    assert!(strips.len() >= lines.rows.div_ceil(width) * size, "too few strips");
    let packed = match U::along(&lines) {
        Some(along) => pack_along(s, strips, along, lines.rows, depth, width),
        None if lines.row_stride == 1 => pack_across::<S, U>(s, strips, lines, width),
        None => 0,
    };
    for (strip, line) in (0..lines.rows).step_by(width).enumerate().skip(packed) {
        let count = width.min(lines.rows - line);
        for (p, step) in strips[strip * size..][..width * depth].chunks_exact_mut(width).enumerate() {
            for (i, x) in step.iter_mut().enumerate() {
                *x = if i < count { U::unit(&lines, line + i, p) } else { 0.0 };
            }
        }
    }
}

/// Lines along k: blocks of eight by eight are transposed. Returns how many strips are done.
///
/// A block may be wider than what is left of a strip: what it reads must be there, and what it writes too much belongs
/// to the next step, which is written later.
#[inline(always)]
fn pack_along<S: Simd>(s: S, strips: &mut [f32], lines: Along<'_>, count: usize, depth: usize, width: usize) -> usize {
    let (size, wide) = (strip_len(width, depth), width.next_multiple_of(8));
    // The last line that a strip reads must have its units.
    let is_readable = |strip: usize| (strip * width + wide - 1) * lines.stride + depth <= lines.len;
    let mut whole = count / width;
    while whole > 0 && !is_readable(whole - 1) {
        whole -= 1;
    }
    let blocks = depth / 8 * 8;
    for strip in 0..whole {
        // SAFETY: lines and units are readable, as was computed, and the strip has room behind it for a vector.
        unsafe {
            let from = lines.first.add(strip * width * lines.stride);
            let to = strips.as_mut_ptr().add(strip * size);
            for p in (0..blocks).step_by(8) {
                // From the right to the left, so that what sticks out to the right is overwritten.
                for i in (0..wide).step_by(8).rev() {
                    s.transpose_8x8(from.add(i * lines.stride + p), lines.stride, to.add(p * width + i), width);
                }
            }
            for p in blocks..depth {
                for i in 0..width {
                    *to.add(p * width + i) = from.add(i * lines.stride + p).read_unaligned();
                }
            }
        }
    }
    whole
}

/// Lines side by side: all strips of a step at once, so that each cache line is touched once. Returns how many strips
/// are done.
#[inline(always)]
fn pack_across<S: Simd, U: Units>(s: S, strips: &mut [f32], lines: Mat<'_, U::Element>, width: usize) -> usize {
    let (depth, size) = (U::count(lines.cols), strip_len(width, U::count(lines.cols)));
    let wide = width.next_multiple_of(S::LANES);
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
                    s.store_ptr(to.add(i), U::across(s, &lines, strip * width + i, p));
                }
            }
        }
    }
    whole
}
