//! The blocked product: `c` in tiles, one task per tile; in a task, k in panels; in a panel, tiles of registers.
//!
//! A task copies its part of `b` into strips that stay in the second-level cache, then a few rows of `a` at a time, which
//! stay in the first-level cache, and runs over all strips (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
//! multiplication", with `a` and `b` exchanged). Where `a` has so few rows that all of them fit into the second-level cache
//! (a prompt), they are what stays there, and `b` (the weights) is copied strip by strip, the next one fetched from memory
//! while this one is multiplied (on tiles sixteen strips at a time, and nothing is fetched). The sums of an element rest in
//! `c` between two panels and are continued from there, so cutting k changes no bit. Where `a` is transposed, each panel is
//! summed by itself instead: such a product is a sum over tokens, whose rows are no tokens, and many short sums lose fewer
//! digits than a long one.

#[cfg(target_arch = "x86_64")]
use super::on_tiles::{self, OnTiles};
use super::registers::{Ahead, Block, Corner, Registers, STRIP};
use super::units::{Source, pack, strip_len};
use super::{Mat, MatMut, Start};
use crate::Isa;
use crate::parallel::for_ranges;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, Simd};
use crate::unit::Unit;

/// Longest panel of k, in units, in vector registers and wherever panels are summed by themselves.
pub(crate) const DEPTH: usize = 384;
/// Fewest rows of `c` in a task where `b` would be packed once more for them.
const ROWS: usize = 384;
/// Rows of `a` that are packed together, so that whole cache lines are used where `a` is transposed.
const PACKED_ROWS: usize = 96;
/// f32 in a cache line.
const LINE: usize = 16;
/// Rows of a strip of `a`, where there are many registers and where there are few.
const MAX_ROWS: usize = 12;
const FEWEST_ROWS: usize = 6;

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
    let units = A::Unit::count(a.cols);
    let shape = Shape::of::<A>(isa);
    // The length of panels that are summed by themselves shows in the result.
    let longest = if apart { DEPTH } else { shape.depth };
    let depth = units.div_ceil(units.div_ceil(longest)).next_multiple_of(shape.steps);
    let Grid { rows, columns, packed_rows, packed_columns } = grid(&shape, c.rows, c.cols, depth);
    let (down, across) = (c.rows.div_ceil(rows), c.cols.div_ceil(columns));
    let place = Place { data: c.data.as_mut_ptr(), stride: c.row_stride };
    let panel = packed_columns / shape.columns * strip_len(shape.columns, depth);
    // One more than is packed: on tiles lines take a detour through it.
    let strips = (packed_rows / shape.fewest_rows + 1) * strip_len(shape.fewest_rows, depth);
    for_ranges(across * down, 1, |tasks| {
        for task in tasks {
            let (row, column) = (task % down * rows, task / down * columns);
            let tile = Tile { row, rows: rows.min(c.rows - row), column, columns: columns.min(c.cols - column) };
            with_scratch(LINE + panel + strips, |scratch: &mut [f32]| {
                // No vector of `b` crosses two cache lines.
                let aligned = scratch.as_ptr().align_offset(size_of::<f32>() * LINE).min(LINE);
                let (panel, strips) = scratch[aligned..].split_at_mut(panel);
                let place = &place;
                let task =
                    Task::<A, B> { place, a, b, start, apart, tile, depth, packed_rows, packed_columns, panel, strips };
                A::Unit::dispatch(isa, task)
            });
        }
    });
}

/// How operands are packed, and how much of them.
struct Shape {
    /// Most and fewest rows of a strip of `a`: one of both, as the kernel has registers.
    most_rows: usize,
    fewest_rows: usize,
    /// Columns of a strip of `b`.
    columns: usize,
    /// Columns that are multiplied with a strip of `a`.
    width: usize,
    /// Units of k that are multiplied together.
    steps: usize,
    /// Most units of k in a panel.
    depth: usize,
    /// Units of `b` that a task packs at a time.
    panel: usize,
    /// Most units of `a` that are packed once and stay: the second-level cache without room for two packs of `b`.
    few: usize,
    /// Columns of `b` that are packed at a time where `a` stays.
    beside_few: usize,
}

impl Shape {
    fn of<A: Source>(isa: Isa) -> Self {
        let width = STRIP * isa.lanes();
        // 288 KiB fit into the second-level cache of every current core; cores with AVX-512 have 1 MiB or more.
        let (panel, few) = if isa.lanes() == 16 { (192 * 1024, 200 * 1024) } else { (72 * 1024, 48 * 1024) };
        let registers = Self {
            most_rows: MAX_ROWS,
            fewest_rows: FEWEST_ROWS,
            columns: width,
            width,
            steps: 1,
            depth: DEPTH,
            panel,
            few,
            beside_few: width,
        };
        #[cfg(target_arch = "x86_64")]
        if is_on_tiles::<A>(isa) {
            // Cores with tiles have 2 MiB. What reading and writing `c` takes counts for more beside faster products, so
            // panels are longer.
            return Self {
                most_rows: on_tiles::ROWS,
                fewest_rows: on_tiles::ROWS,
                columns: on_tiles::STRIP,
                steps: on_tiles::STEPS,
                depth: 512,
                few: 256 * 1024,
                beside_few: 8 * width,
                ..registers
            };
        }
        registers
    }
}

/// Whether a product is one of pairs, and the machine multiplies tiles of them.
#[cfg(target_arch = "x86_64")]
fn is_on_tiles<A: Source>(isa: Isa) -> bool {
    A::Unit::SIZE == 2 && crate::isa::has_tiles_on(isa)
}

/// How a product is cut.
struct Grid {
    /// Rows of `c` per task.
    rows: usize,
    /// Columns of `c` per task.
    columns: usize,
    /// Rows of `a` that are packed at a time.
    packed_rows: usize,
    /// Columns of `b` that are packed at a time.
    packed_columns: usize,
}

/// Cuts `c` into equal tasks, as many as keep all threads busy to the end.
fn grid(shape: &Shape, rows: usize, cols: usize, depth: usize) -> Grid {
    let (threads, width, strip) = (rayon::current_num_threads(), shape.width, shape.most_rows);
    let strips = cols.div_ceil(width);
    if rows.next_multiple_of(strip) * depth <= shape.few {
        let (rows, columns) = (rows.next_multiple_of(strip), strips.div_ceil(threads) * width);
        return Grid { rows, columns, packed_rows: rows, packed_columns: shape.beside_few.min(columns) };
    }
    let most = (shape.panel / depth / width).clamp(1, strips);
    // A task per thread at least. Each packs its part of `b` anew, so it should have rows enough to make up for it, and no
    // more tasks than that.
    let down = threads.div_ceil(strips.div_ceil(most)).min(rows.div_ceil(ROWS));
    // Columns are cut further until the tasks divide among the threads: with one panel of rows there is no other cut.
    let across = (strips.div_ceil(most)..=strips).find(|across| (across * down).is_multiple_of(threads));
    let across = across.unwrap_or(strips.div_ceil(most));
    let columns = strips.div_ceil(across) * width;
    let rows = rows.div_ceil(down).next_multiple_of(strip);
    Grid { rows, columns, packed_rows: PACKED_ROWS.next_multiple_of(strip), packed_columns: columns }
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

/// The part of a tile that one strip of `a` and the packed part of `b` give.
#[derive(Clone, Copy)]
struct Part {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    /// Units of k.
    depth: usize,
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
    packed_rows: usize,
    packed_columns: usize,
    panel: &'a mut [f32],
    strips: &'a mut [f32],
}

impl<A: Source, B: Source<Unit = A::Unit>> Kernel for Task<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // As many rows as keep the sums, a strip of `b` and a factor of `a` in registers: 16 of them, or 32.
        match S::LANES {
            #[cfg(target_arch = "x86_64")]
            16 if is_on_tiles::<A>(s.isa()) => self.tile(s, &OnTiles::new()),
            16 => self.tile(s, &Registers::<MAX_ROWS>),
            _ => self.tile(s, &Registers::<FEWEST_ROWS>),
        }
    }
}

impl<A: Source, B: Source<Unit = A::Unit>> Task<'_, A, B> {
    #[inline(always)]
    fn tile<S: Simd, K: Block<S, A>>(mut self, s: S, block: &K) {
        let (k, most) = (self.a.cols, self.depth * A::Unit::SIZE);
        for first in (0..k).step_by(most) {
            let length = most.min(k - first);
            for column in (0..self.tile.columns).step_by(self.packed_columns) {
                let columns = self.packed_columns.min(self.tile.columns - column);
                let b = self.b.part(first, length, self.tile.column + column, columns);
                let depth = A::Unit::count(length).next_multiple_of(K::STEPS);
                pack::<S, B>(s, self.panel, b.t(), K::COLUMNS, depth);
                self.rows(s, block, first, length, column, columns);
            }
        }
    }

    /// All rows of the tile, and the columns of it that are packed, for the panel of `length` elements of k from `first` on.
    #[inline(always)]
    fn rows<S: Simd, K: Block<S, A>>(
        &mut self,
        s: S,
        block: &K,
        first: usize,
        length: usize,
        column: usize,
        columns: usize,
    ) {
        let (tile, start) = (self.tile, if first == 0 { self.start } else { Start::Sum });
        let depth = A::Unit::count(length).next_multiple_of(K::STEPS);
        let mut ahead = self.ahead(K::ROWS, first, length, column + columns);
        for row in (0..tile.rows).step_by(self.packed_rows) {
            let rows = self.packed_rows.min(tile.rows - row);
            if column == 0 {
                block.pack(s, self.strips, self.a.part(tile.row + row, rows, first, length), depth);
            }
            for strip in 0..rows.div_ceil(K::ROWS) {
                let left = self.strips[strip * strip_len(K::ROWS, depth)..].as_ptr();
                let below = row + strip * K::ROWS;
                let part = Part { row: below, rows: K::ROWS.min(tile.rows - below), column, columns, depth };
                self.strip(s, block, left, part, start, &mut ahead);
            }
        }
    }

    /// What is packed after the columns before `column`, where all of `a` stays packed: elsewhere so much of `b` is packed at
    /// once that it would push out itself.
    #[inline(always)]
    fn ahead(&self, strip: usize, first: usize, length: usize, column: usize) -> Ahead {
        let (first, column) = if column < self.tile.columns { (first, column) } else { (first + length, 0) };
        if self.packed_rows < self.tile.rows || first >= self.a.cols {
            return Ahead::NOTHING;
        }
        let (columns, k) = (self.packed_columns.min(self.tile.columns - column), length.min(self.a.cols - first));
        let lines = self.b.part(first, k, self.tile.column + column, columns);
        let lines = if lines.col_stride <= lines.row_stride { lines } else { lines.t() };
        let steps = self.tile.rows.div_ceil(strip) * A::Unit::count(length);
        Ahead::new(lines.data.as_ptr(), lines.rows, lines.row_stride, lines.cols, steps)
    }

    /// A strip of rows, all columns that are packed.
    #[inline(always)]
    fn strip<S: Simd, K: Block<S, A>>(
        &self,
        s: S,
        block: &K,
        left: *const f32,
        part: Part,
        start: Start<'_>,
        ahead: &mut Ahead,
    ) {
        let (tile, width, depth) = (self.tile, STRIP * S::LANES, part.depth);
        for (strip, column) in (0..part.columns).step_by(width).enumerate() {
            let columns = width.min(part.columns - column);
            let column = part.column + column;
            let at = (tile.row + part.row) * self.place.stride + tile.column + column;
            // SAFETY: the element is inside of `c`: its extent was checked when it was made.
            let c = unsafe { self.place.data.add(at) };
            let bias = match start {
                Start::Bias(bias) => Some(&bias[tile.column + column..][..columns]),
                _ => None,
            };
            let corner = Corner {
                c,
                stride: self.place.stride,
                rows: part.rows,
                columns,
                sums: matches!(start, Start::Sum),
                apart: self.apart,
            };
            // What the next block continues from or is written to: the right neighbour, or the first one below.
            let is_last = strip + 1 == part.columns.div_ceil(width);
            let (below, beside) = if is_last { (part.row + K::ROWS, part.column) } else { (part.row, column + width) };
            let next = self.place.data.wrapping_add((tile.row + below) * self.place.stride + tile.column + beside);
            let rows = K::ROWS.min(tile.rows.saturating_sub(below));
            let mut next = Ahead::new(next, rows, self.place.stride, width, depth);
            let strips = width / K::COLUMNS * strip_len(K::COLUMNS, depth);
            let right = self.panel[strip * strips..][..strips].as_ptr();
            // SAFETY: `left` and `right` hold `depth` steps of a strip of rows and of columns; the corner is this task's.
            unsafe {
                if part.rows == K::ROWS && columns == width {
                    block.multiply::<true>(s, depth, left, right, corner, bias, (ahead, &mut next));
                } else {
                    block.multiply::<false>(s, depth, left, right, corner, bias, (ahead, &mut next));
                }
            }
        }
    }
}
