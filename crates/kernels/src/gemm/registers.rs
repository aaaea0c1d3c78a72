//! The innermost loop of the blocked product: a block of `c` as large as the registers.

use super::Mat;
use super::units::{Source, pack};
use crate::simd::{Simd, fetch};
use crate::unit::Unit;

/// Vectors per strip of `b`.
pub(super) const STRIP: usize = 2;
/// Steps of k per turn of the loop, so that their addresses are computed once.
const UNROLL: usize = 4;
/// Bytes.
const CACHE_LINE: usize = 64;

/// A block of `c` as large as the registers, or what is left at an edge.
#[derive(Clone, Copy)]
pub(super) struct Corner {
    pub c: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    /// Whether the result goes on from what `c` holds, or is added to it.
    pub sums: bool,
    /// Whether it is added to what another panel gave.
    pub apart: bool,
}

/// What is packed or continued next, fetched to the second-level cache while this is multiplied: a line every few steps,
/// so that the loads of the product itself never wait behind it.
pub(super) struct Ahead {
    at: *const u8,
    offset: usize,
    rows: usize,
    stride: usize,
    row_bytes: usize,
    /// Cache lines per turn of the loop.
    rate: usize,
}

impl Ahead {
    pub(super) const NOTHING: Self =
        Self { at: std::ptr::null(), offset: 0, rows: 0, stride: 0, row_bytes: 0, rate: 0 };

    /// `rows` of `len` elements, `stride` elements apart, spread over `steps` of k.
    #[inline(always)]
    pub(super) fn new<T>(at: *const T, rows: usize, stride: usize, len: usize, steps: usize) -> Self {
        let (stride, row_bytes) = (stride * size_of::<T>(), len * size_of::<T>());
        let rate = (rows * row_bytes.div_ceil(CACHE_LINE)).div_ceil((steps / UNROLL).max(1));
        Self { at: at.cast(), offset: 0, rows, stride, row_bytes, rate }
    }

    #[inline(always)]
    fn turn(&mut self) {
        for _ in 0..self.rate {
            if self.rows == 0 {
                self.rate = 0;
                return;
            }
            fetch(self.at.wrapping_add(self.offset));
            self.offset += CACHE_LINE;
            if self.offset >= self.row_bytes {
                (self.offset, self.at, self.rows) = (0, self.at.wrapping_add(self.stride), self.rows - 1);
            }
        }
    }
}

/// How a strip of `a` is multiplied with as much of `b` as is [`STRIP`] vectors wide.
pub(super) trait Block<S: Simd, A: Source> {
    /// Rows of a strip.
    const ROWS: usize;
    /// Columns of a strip of `b`, of which one or more are multiplied with one of `a`.
    const COLUMNS: usize;
    /// Units of k that are multiplied together.
    const STEPS: usize;
    /// Copies lines of `a` into strips, each [`super::units::strip_len`] of `depth` steps; there is room for one more.
    fn pack(&self, s: S, strips: &mut [f32], lines: Mat<'_, A::Element>, depth: usize);
    /// Computes a block of `c`: one chain per element over ascending k.
    ///
    /// # Safety
    /// The kernel was started by [`Unit::dispatch`]. `left` must hold `depth` steps of a strip as it was packed, `right`
    /// strips of `depth` steps for [`STRIP`] vectors, and the corner's elements must be writable by this thread alone.
    #[allow(clippy::too_many_arguments, reason = "two operands, a result, and what is fetched meanwhile")]
    unsafe fn multiply<const WHOLE: bool>(
        &self,
        s: S,
        depth: usize,
        left: *const f32,
        right: *const f32,
        corner: Corner,
        bias: Option<&[f32]>,
        ahead: (&mut Ahead, &mut Ahead),
    );
}

/// `MR` rows by [`STRIP`] vectors in vector registers: units are added one step of k at a time.
pub(super) struct Registers<const MR: usize>;

impl<S: Simd, A: Source, const MR: usize> Block<S, A> for Registers<MR> {
    const ROWS: usize = MR;
    const COLUMNS: usize = STRIP * S::LANES;
    const STEPS: usize = 1;

    #[inline(always)]
    fn pack(&self, s: S, strips: &mut [f32], lines: Mat<'_, A::Element>, depth: usize) {
        pack::<S, A>(s, strips, lines, MR, depth);
    }
    #[inline(always)]
    unsafe fn multiply<const WHOLE: bool>(
        &self,
        s: S,
        depth: usize,
        left: *const f32,
        right: *const f32,
        corner: Corner,
        bias: Option<&[f32]>,
        (ahead, next): (&mut Ahead, &mut Ahead),
    ) {
        let mut sums = [[s.zero(); STRIP]; MR];
        // SAFETY: the caller vouches for all places.
        unsafe {
            if corner.sums && !corner.apart {
                for (i, sums) in sums.iter_mut().enumerate() {
                    if WHOLE || i < corner.rows {
                        *sums = load::<S, WHOLE>(s, corner.c.add(i * corner.stride), corner.columns);
                    }
                }
            } else if let Some(bias) = bias {
                sums = [load::<S, WHOLE>(s, bias.as_ptr(), corner.columns); MR];
            }
            let (mut left, mut right) = (left, right);
            for _ in 0..depth / UNROLL {
                ahead.turn();
                next.turn();
                for step in 0..UNROLL {
                    add_step::<S, A::Unit, MR>(s, left.add(step * MR), right.add(step * STRIP * S::LANES), &mut sums);
                }
                left = left.add(UNROLL * MR);
                right = right.add(UNROLL * STRIP * S::LANES);
            }
            for step in 0..depth % UNROLL {
                add_step::<S, A::Unit, MR>(s, left.add(step * MR), right.add(step * STRIP * S::LANES), &mut sums);
            }
            if corner.sums && corner.apart {
                for (i, sums) in sums.iter_mut().enumerate() {
                    if WHOLE || i < corner.rows {
                        let before = load::<S, WHOLE>(s, corner.c.add(i * corner.stride), corner.columns);
                        sums.iter_mut().zip(before).for_each(|(sum, before)| *sum = s.add(before, *sum));
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                if WHOLE || i < corner.rows {
                    store::<S, WHOLE>(s, corner.c.add(i * corner.stride), corner.columns, sums);
                }
            }
        }
    }
}

/// Adds the products of one step of k.
///
/// # Safety
/// As [`Block::multiply`].
#[inline(always)]
unsafe fn add_step<S: Simd, U: Unit, const MR: usize>(
    s: S,
    left: *const f32,
    right: *const f32,
    sums: &mut [[S::V; STRIP]; MR],
) {
    // SAFETY: the caller vouches for all places.
    unsafe {
        let mut b = [s.zero(); STRIP];
        for (v, b) in b.iter_mut().enumerate() {
            *b = s.load_ptr(right.add(v * S::LANES));
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = s.splat(*left.add(i));
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = U::add_product(s, a, b, *sum);
            }
        }
    }
}

/// # Safety
/// `columns` values, or a whole strip, must be readable.
#[inline(always)]
unsafe fn load<S: Simd, const WHOLE: bool>(s: S, from: *const f32, columns: usize) -> [S::V; STRIP] {
    let mut out = [s.zero(); STRIP];
    for (v, out) in out.iter_mut().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe {
            if WHOLE {
                *out = s.load_ptr(from.add(v * S::LANES));
            } else {
                let from = from.wrapping_add(v * S::LANES);
                *out = s.load_partial(std::slice::from_raw_parts(from, columns.saturating_sub(v * S::LANES)));
            }
        }
    }
    out
}

/// # Safety
/// `columns` values, or a whole strip, must be writable.
#[inline(always)]
unsafe fn store<S: Simd, const WHOLE: bool>(s: S, to: *mut f32, columns: usize, sums: &[S::V; STRIP]) {
    for (v, &sum) in sums.iter().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe {
            if WHOLE {
                s.store_ptr(to.add(v * S::LANES), sum);
            } else {
                let to = to.wrapping_add(v * S::LANES);
                s.store_partial(std::slice::from_raw_parts_mut(to, columns.saturating_sub(v * S::LANES)), sum);
            }
        }
    }
}
