//! The innermost loop of the blocked product on tiles: 32 rows and columns of `c` in four of them.
//!
//! A strip of `b` lies as it does for vector registers, but is one tile wide: sixteen units of its columns are a tile of the
//! right operand. A strip of `a` lies line by line, sixteen units of each of its rows at a time.

use super::Mat;
use super::registers::{Ahead, Block, Corner};
use super::units::{Plain, Source, pack, strip_len};
use crate::simd::Simd;
use crate::tiles::{Aligned, Left, SIDE, Shape, Tiles};
use crate::unit::Unit;

/// Rows of a strip of `a`.
pub(super) const ROWS: usize = 2 * SIDE;
/// Columns that a strip of `a` is multiplied with.
const COLUMNS: usize = 2 * SIDE;
/// Columns of a strip of `b`.
pub(super) const STRIP: usize = SIDE;
/// Units of k that are multiplied together.
pub(super) const STEPS: usize = SIDE;
/// Bytes of a unit.
const UNIT: usize = size_of::<f32>();

/// A thread's tiles.
pub(super) struct OnTiles(Tiles);

impl OnTiles {
    pub(super) fn new() -> Self {
        Self(Tiles::new(&Shape::WHOLE))
    }
}

impl<S: Simd, A: Source> Block<S, A> for OnTiles {
    const ROWS: usize = ROWS;
    const COLUMNS: usize = STRIP;
    const STEPS: usize = STEPS;

    #[inline(always)]
    fn pack(&self, s: S, strips: &mut [f32], lines: Mat<'_, A::Element>, depth: usize) {
        assert!(depth.is_multiple_of(STEPS) && S::LANES == SIDE, "tiles hold sixteen units");
        let (size, count) = (strip_len(ROWS, depth), lines.rows.div_ceil(ROWS));
        let (strips, spare) = strips.split_at_mut(count * size);
        for (strip, first) in strips.chunks_exact_mut(size).zip((0..).step_by(ROWS)) {
            let lines = lines.part(first, ROWS.min(lines.rows - first), 0, lines.cols);
            match A::is_along(&lines) {
                true => by_lines::<S, A>(s, strip, &lines, depth),
                false => turned::<S, A>(s, strip, spare, lines, depth),
            }
        }
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
        // Tiles are read faster than they are multiplied only where no other reads are under way.
        _ahead: (&mut Ahead, &mut Ahead),
    ) {
        let right = [right, right.wrapping_add(strip_len(STRIP, depth))];
        let left = Left { at: left, stride: SIDE * UNIT, step: ROWS * SIDE * UNIT };
        // SAFETY: the caller vouches for all places. Sums that `c` has no place for, or is to be added to, are kept beside it.
        unsafe {
            let apart = corner.sums && corner.apart;
            if WHOLE && !apart {
                if let Some(bias) = bias {
                    (0..ROWS).for_each(|i| bias.as_ptr().copy_to(corner.c.add(i * corner.stride), COLUMNS));
                }
                let c = (corner.c, corner.stride * UNIT, corner.sums || bias.is_some());
                self.0.multiply_bf16(depth / STEPS, left, right, c);
            } else {
                let mut sums = Aligned([[0.0_f32; COLUMNS]; ROWS]);
                for (i, sums) in sums.0[..corner.rows].iter_mut().enumerate() {
                    let from =
                        if corner.sums && !apart { Some(corner.c.add(i * corner.stride).cast_const()) } else { None };
                    if let Some(from) = from.or(bias.map(<[f32]>::as_ptr)) {
                        from.copy_to(sums.as_mut_ptr(), corner.columns);
                    }
                }
                self.0.multiply_bf16(depth / STEPS, left, right, (sums.0.as_mut_ptr().cast(), COLUMNS * UNIT, true));
                for (i, sums) in sums.0[..corner.rows].iter().enumerate() {
                    let to = corner.c.add(i * corner.stride);
                    match apart {
                        true => add(s, to, sums, corner.columns),
                        false => sums.as_ptr().copy_to(to, corner.columns),
                    }
                }
            }
        }
    }
}

/// Adds up to [`COLUMNS`] values.
///
/// # Safety
/// They must be readable and writable.
#[inline(always)]
unsafe fn add<S: Simd>(s: S, to: *mut f32, values: &[f32; COLUMNS], count: usize) {
    // SAFETY: passed on from the caller.
    let to = unsafe { std::slice::from_raw_parts_mut(to, count) };
    for (to, values) in to.chunks_mut(S::LANES).zip(values.chunks(S::LANES)) {
        let sum = s.add(s.load_partial(to), s.load(values));
        s.store_partial(to, sum);
    }
}

/// A strip of lines whose k runs along memory.
#[inline(always)]
fn by_lines<S: Simd, A: Source>(s: S, strip: &mut [f32], lines: &Mat<'_, A::Element>, depth: usize) {
    let whole = lines.cols / (SIDE * A::Unit::SIZE);
    for (step, block) in strip[..ROWS * depth].chunks_exact_mut(ROWS * SIDE).enumerate() {
        for (i, units) in block.chunks_exact_mut(SIDE).enumerate() {
            if i >= lines.rows {
                units.fill(0.0);
            } else if step < whole {
                // SAFETY: sixteen units of the line are left.
                unsafe { s.store_ptr(units.as_mut_ptr(), A::along(s, lines, i, step * SIDE)) }
            } else {
                for (j, unit) in units.iter_mut().enumerate() {
                    let p = step * SIDE + j;
                    *unit = if p < A::Unit::count(lines.cols) { A::unit(lines, i, p) } else { 0.0 };
                }
            }
        }
    }
}

/// A strip of lines that lie side by side: packed as those of `b` are, then turned.
#[inline(always)]
fn turned<S: Simd, A: Source>(s: S, strip: &mut [f32], spare: &mut [f32], lines: Mat<'_, A::Element>, depth: usize) {
    pack::<S, A>(s, spare, lines, ROWS, depth);
    for (block, from) in strip.chunks_exact_mut(ROWS * SIDE).zip(spare[..ROWS * depth].chunks_exact(ROWS * SIDE)) {
        for i in (0..ROWS).step_by(8) {
            for p in (0..SIDE).step_by(8) {
                // SAFETY: eight by eight units of a block of sixteen by 32.
                unsafe {
                    let (from, to) = (from.as_ptr().add(p * ROWS + i), block.as_mut_ptr().add(i * SIDE + p));
                    Plain::transpose(s, from, ROWS, to, SIDE);
                }
            }
        }
    }
}
