//! Thin bf16 products on tiles: `c` transposed is `w a` transposed, so the rows of `w` are read where they are.

use super::{PIECE_BYTES, PIECES, Pointer};
use crate::gemm::units::Source;
use crate::gemm::{Mat, MatMut, Start};
use crate::isa::{has_tiles, isa};
use crate::parallel::{for_ranges, lines};
use crate::scratch::with_scratch;
use crate::simd::{Kernel, Simd, dispatch_pairs};
use crate::tiles::{Aligned, Left, SIDE, Shape, Tiles};
use crate::unit::{Two, Unit};
use half::bf16;
use std::ops::Range;

/// Rows of `w` that are multiplied together.
const STRIP: usize = 2 * SIDE;
/// How far ahead a row of `w` is fetched, in bytes.
const AHEAD: usize = 512;

/// Whether a product with a weight is one for tiles: few rows, weights contiguous along k, whole tiles of them.
pub(crate) fn suits_tiles<T>(c: &MatMut<'_, f32>, a: &Mat<'_, T>, w: &Mat<'_, bf16>) -> bool {
    let is_thin = (1..=SIDE).contains(&a.rows) && a.col_stride == 1 && c.col_stride == 1;
    let is_whole = w.rows.is_multiple_of(SIDE * Two::SIZE) && w.rows > 0 && w.cols >= STRIP;
    is_thin && is_whole && w.row_stride == 1 && w.col_stride >= w.rows && has_tiles()
}

/// `c = start + a w` for a product that [`suits_tiles`].
pub(crate) fn gemv_tiles<A: Source<Unit = Two>>(
    c: MatMut<'_, f32>,
    a: Mat<'_, A::Element>,
    w: Mat<'_, bf16>,
    start: Start<'_>,
) {
    let (depth, n) = (Two::count(w.rows), w.cols);
    with_scratch(SIDE * depth + SIDE, |scratch: &mut [f32]| {
        // A tile is loaded fastest from whole cache lines.
        let aligned = scratch.as_ptr().align_offset(SIDE * size_of::<f32>()).min(SIDE);
        let factors = &mut scratch[aligned..];
        dispatch_pairs(isa(), Pack::<A> { factors, a });
        let job = Job { c: Pointer(c.data.as_mut_ptr()), c_stride: c.row_stride, rows: a.rows, factors, w, start };
        let least = PIECE_BYTES.div_ceil(w.rows * size_of::<bf16>());
        let even = n.div_ceil(rayon::current_num_threads() * PIECES);
        for_ranges(n, least.max(even).next_multiple_of(STRIP), |columns| {
            // SAFETY: `suits_tiles` and the matrices' own checks put all elements inside the slices; pieces write disjoint columns.
            unsafe { job.run(columns) }
        });
    });
}

/// Copies the rows of `a` to a strip of sixteen.
struct Pack<'a, A: Source> {
    factors: &'a mut [f32],
    a: Mat<'a, A::Element>,
}

impl<A: Source> Kernel for Pack<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let depth = A::Unit::count(self.a.cols);
        let factors = &mut self.factors[..SIDE * depth];
        factors.fill(0.0);
        for i in 0..self.a.rows {
            for (step, units) in factors.chunks_exact_mut(SIDE * SIDE).enumerate() {
                let mut line = [0.0; SIDE];
                // SAFETY: rows are whole steps long.
                unsafe { s.store_ptr(line.as_mut_ptr(), A::along(s, &self.a, i, step * SIDE)) };
                units.iter_mut().skip(i).step_by(SIDE).zip(line).for_each(|(unit, x)| *unit = x);
            }
        }
    }
}

/// One call's operands.
struct Job<'a> {
    c: Pointer,
    c_stride: usize,
    rows: usize,
    factors: &'a [f32],
    w: Mat<'a, bf16>,
    start: Start<'a>,
}

impl Job<'_> {
    /// # Safety
    /// `columns` must be inside the matrix, and no other thread may write them.
    unsafe fn run(&self, columns: Range<usize>) {
        let (tiles, mut next, row_bytes) =
            (Tiles::new(&Shape::WHOLE), columns.start, self.w.col_stride * size_of::<bf16>());
        while next < columns.end {
            let lines = lines(columns.end - next, STRIP, row_bytes);
            // Too few for a strip: the last of all rows of `w`, of which there are enough, and those that are not of this
            // piece for nothing.
            let (first, skip) = match lines.count == STRIP {
                true => (next, 0),
                false => (columns.end - STRIP, STRIP - lines.count),
            };
            for strip in 0..lines.strips {
                // SAFETY: passed on from the caller; there are as many rows in `w`.
                unsafe { self.strip(&tiles, first + strip, lines.apart, skip) }
            }
            next += lines.strips * lines.count;
        }
    }

    /// Rows of `w` from `first` on, `apart` from each other, of which the first `skip` are not written.
    ///
    /// # Safety
    /// As [`Job::run`], for these rows.
    #[inline(always)]
    unsafe fn strip(&self, tiles: &Tiles, first: usize, apart: usize, skip: usize) {
        let column = |j: usize| first + j * apart;
        let mut memory = Aligned([[0.0_f32; SIDE]; STRIP]);
        let sums = &mut memory.0;
        for (j, sums) in sums.iter_mut().enumerate().skip(skip) {
            for (i, sum) in sums[..self.rows].iter_mut().enumerate() {
                *sum = match self.start {
                    Start::Zero => 0.0,
                    // SAFETY: the element is inside `c`, and no other thread touches it.
                    Start::Sum => unsafe { *self.c.0.add(i * self.c_stride + column(j)) },
                    Start::Bias(bias) => bias[column(j)],
                };
            }
        }
        let at = self.w.data[first * self.w.col_stride..].as_ptr().cast();
        let stride = apart * self.w.col_stride * size_of::<bf16>();
        let left = Left { at, stride, step: SIDE * size_of::<f32>() };
        // SAFETY: the caller vouches for the rows, which are whole steps long, as the factors are.
        unsafe { tiles.multiply_thin_bf16::<AHEAD>(Two::count(self.w.rows) / SIDE, left, self.factors.as_ptr(), sums) };
        for (j, sums) in sums.iter().enumerate().skip(skip) {
            for (i, &sum) in sums[..self.rows].iter().enumerate() {
                // SAFETY: as above.
                unsafe { *self.c.0.add(i * self.c_stride + column(j)) = sum };
            }
        }
    }
}
