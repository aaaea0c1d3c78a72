//! The blocked product: `c` in tiles, one task per tile; in a task, k in panels; in a panel, tiles of registers.
//!
//! A task copies its part of `b` into strips [`STRIP`] vectors wide that stay in the second-level cache, then a few rows
//! of `a` at a time, which stay in the first-level cache, and runs over all strips (Goto and van de Geijn 2008, "Anatomy
//! of high-performance matrix multiplication", with `a` and `b` exchanged). The sums of an element rest in `c` between
//! two panels and are continued from there, so cutting k changes no bit. Where `a` is transposed, each panel is summed by
//! itself instead: such a product is a sum over tokens, whose rows are no tokens, and many short sums lose fewer digits
//! than a long one.

use super::registers::{Corner, STRIP, registers};
use super::units::{Source, pack, strip_len};
use super::{Mat, MatMut, Start};
use crate::Isa;
use crate::parallel::for_ranges;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, Simd};
use crate::unit::Unit;

/// Longest panel of k, in units.
pub(crate) const DEPTH: usize = 384;
/// Units of `b` that a task packs at a time: a part of the second-level cache. 288 KiB fit into that of every current
/// core; cores with AVX-512 have 1 MiB or more.
const fn panel_len(lanes: usize) -> usize {
    if lanes == 16 { 192 * 1024 } else { 72 * 1024 }
}
/// Fewest rows of `c` in a task where `b` would be packed once more for them.
const ROWS: usize = 384;
/// Strips of rows of `a` that are packed together, so that whole cache lines are used where `a` is transposed.
const PACKED_STRIPS: usize = 8;
/// f32 in a cache line.
const LINE: usize = 16;
/// Most rows of a strip of `a`.
const MAX_ROWS: usize = 12;

/// `c = a b`, continuing from `start`.
pub(crate) fn product<A: Source, B: Source<Unit = A::Unit>>(
    isa: Isa,
    c: MatMut<'_, f32>,
    a: Mat<'_, A::Element>,
    b: Mat<'_, B::Element>,
    start: Start<'_>,
) {
    if c.rows == 0 || c.cols == 0 || a.cols == 0 {
        return;
    }
    let apart = a.row_stride == 1 && a.col_stride > 1;
    if c.row_stride < c.col_stride {
        assert!(!matches!(start, Start::Bias(_)), "a bias needs a row-major result");
        return tasks::<B, A>(isa, c.t(), b.t(), a.t(), start, apart);
    }
    tasks::<A, B>(isa, c, a, b, start, apart);
}

/// A product whose result is row-major; `apart` sums every panel of k by itself.
fn tasks<A: Source, B: Source<Unit = A::Unit>>(
    isa: Isa,
    c: MatMut<'_, f32>,
    a: Mat<'_, A::Element>,
    b: Mat<'_, B::Element>,
    start: Start<'_>,
    apart: bool,
) {
    assert!(c.col_stride == 1 || c.cols == 1, "the columns or the rows of a result lie side by side");
    let (width, units) = (STRIP * isa.lanes(), A::Unit::count(a.cols));
    let depth = units.div_ceil(units.div_ceil(DEPTH));
    let Grid { rows, columns } = grid(c.rows, c.cols, depth, isa.lanes());
    let (down, across) = (c.rows.div_ceil(rows), c.cols.div_ceil(columns));
    let place = Place { data: c.data.as_mut_ptr(), stride: c.row_stride };
    let panel = columns / width * strip_len(width, depth);
    for_ranges(across * down, 1, |tasks| {
        for task in tasks {
            let (row, column) = (task % down * rows, task / down * columns);
            let tile = Tile { row, rows: rows.min(c.rows - row), column, columns: columns.min(c.cols - column) };
            with_scratch(LINE + panel + PACKED_STRIPS * strip_len(MAX_ROWS, depth), |scratch: &mut [f32]| {
                // No vector of `b` crosses two cache lines.
                let aligned = scratch.as_ptr().align_offset(size_of::<f32>() * LINE).min(LINE);
                let (panel, strips) = scratch[aligned..].split_at_mut(panel);
                let place = &place;
                let task = Task::<A, B> { place, a, b, start, apart, tile, depth, panel, strips };
                A::Unit::dispatch(isa, task)
            });
        }
    });
}

/// Rows and columns of `c` per task.
struct Grid {
    rows: usize,
    columns: usize,
}

/// Cuts `c` into equal tasks, as many as keep all threads busy to the end.
fn grid(rows: usize, cols: usize, depth: usize, lanes: usize) -> Grid {
    let (threads, width) = (rayon::current_num_threads(), STRIP * lanes);
    let strips = cols.div_ceil(width);
    let most = (panel_len(lanes) / depth / width).clamp(1, strips);
    // A task per thread at least. Each packs its part of `b` anew, so it should have rows enough to make up for it, and no
    // more tasks than that.
    let down = threads.div_ceil(strips.div_ceil(most)).min(rows.div_ceil(ROWS));
    // Columns are cut further until the tasks divide among the threads: with one panel of rows there is no other cut.
    let across = (strips.div_ceil(most)..=strips).find(|across| (across * down).is_multiple_of(threads));
    let across = across.unwrap_or(strips.div_ceil(most));
    Grid { rows: rows.div_ceil(down).next_multiple_of(MAX_ROWS), columns: strips.div_ceil(across) * width }
}

/// The result, which every task writes its own part of.
struct Place {
    data: *mut f32,
    stride: usize,
}
// SAFETY: tasks write disjoint tiles.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

/// The part of `c` that one task computes.
#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

struct Task<'a, A: Source, B: Source<Unit = A::Unit>> {
    place: &'a Place,
    a: Mat<'a, A::Element>,
    b: Mat<'a, B::Element>,
    start: Start<'a>,
    apart: bool,
    tile: Tile,
    /// Units of k per panel.
    depth: usize,
    panel: &'a mut [f32],
    strips: &'a mut [f32],
}

impl<A: Source, B: Source<Unit = A::Unit>> Kernel for Task<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // As many rows as keep the sums, a strip of `b` and a factor of `a` in registers: 16 of them, or 32.
        match S::LANES {
            16 => self.tile::<S, MAX_ROWS>(s),
            _ => self.tile::<S, 6>(s),
        }
    }
}

impl<A: Source, B: Source<Unit = A::Unit>> Task<'_, A, B> {
    #[inline(always)]
    fn tile<S: Simd, const MR: usize>(mut self, s: S) {
        let (k, most) = (self.a.cols, self.depth * A::Unit::SIZE);
        for first in (0..k).step_by(most) {
            let length = most.min(k - first);
            let b = self.b.part(first, length, self.tile.column, self.tile.columns);
            pack::<S, B>(s, self.panel, b.t(), STRIP * S::LANES);
            self.rows::<S, MR>(s, first, length);
        }
    }

    /// All rows of the tile, for the panel of `length` elements of k from `first` on.
    #[inline(always)]
    fn rows<S: Simd, const MR: usize>(&mut self, s: S, first: usize, length: usize) {
        let (tile, start) = (self.tile, if first == 0 { self.start } else { Start::Sum });
        let depth = A::Unit::count(length);
        for row in (0..tile.rows).step_by(PACKED_STRIPS * MR) {
            let rows = (PACKED_STRIPS * MR).min(tile.rows - row);
            pack::<S, A>(s, self.strips, self.a.part(tile.row + row, rows, first, length), MR);
            for strip in 0..rows.div_ceil(MR) {
                let left = self.strips[strip * strip_len(MR, depth)..].as_ptr();
                let below = row + strip * MR;
                self.strip::<S, MR>(s, left, below, MR.min(tile.rows - below), depth, start);
            }
        }
    }

    /// `MR` rows, all columns of the tile.
    #[inline(always)]
    fn strip<S: Simd, const MR: usize>(
        &self,
        s: S,
        left: *const f32,
        row: usize,
        rows: usize,
        depth: usize,
        start: Start<'_>,
    ) {
        let (tile, width) = (self.tile, STRIP * S::LANES);
        for (strip, column) in (0..tile.columns).step_by(width).enumerate() {
            let columns = width.min(tile.columns - column);
            let at = (tile.row + row) * self.place.stride + tile.column + column;
            // SAFETY: the element is inside of `c`: its extent was checked when it was made.
            let c = unsafe { self.place.data.add(at) };
            let bias = match start {
                Start::Bias(bias) => Some(&bias[tile.column + column..][..columns]),
                _ => None,
            };
            let corner = Corner {
                c,
                stride: self.place.stride,
                rows,
                columns,
                sums: matches!(start, Start::Sum),
                apart: self.apart,
            };
            let right = self.panel[strip * strip_len(width, depth)..][..width * depth].as_ptr();
            // SAFETY: `left` and `right` hold `depth` steps of `MR` rows and `width` columns; the corner is this task's.
            unsafe {
                if rows == MR && columns == width {
                    registers::<S, A::Unit, MR, true>(s, depth, left, right, corner, bias);
                } else {
                    registers::<S, A::Unit, MR, false>(s, depth, left, right, corner, bias);
                }
            }
        }
    }
}
