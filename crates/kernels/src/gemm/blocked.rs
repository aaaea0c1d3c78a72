//! The blocked product: `c` in tiles, one task per tile; in a task, k in panels; in a panel, tiles of registers.
//!
//! A task copies its part of `b` into strips [`STRIP`] vectors wide that stay in the second-level cache, takes a few rows
//! of `a` at a time, which stay in the first-level cache, and runs over all strips (Goto and van de Geijn 2008, "Anatomy
//! of high-performance matrix multiplication", with `a` and `b` exchanged). The sums of an element rest in `c` between
//! two panels and are continued from there, so cutting k changes no bit. Where `a` is transposed, each panel is summed by
//! itself instead: such a product is a sum over tokens, whose rows are no tokens, and many short sums lose fewer digits
//! than a long one.

use super::{Mat, MatMut, Start};
use crate::parallel::for_ranges;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, Simd, dispatch_on};
use crate::{Isa, isa::isa};
use half::bf16;

/// Vectors per strip of `b`.
const STRIP: usize = 2;
/// Longest panel of k.
pub(crate) const DEPTH: usize = 384;
/// Elements of `b` that a task packs at a time: 288 KiB, a part of the second-level cache of every current core.
const PANEL: usize = 72 * 1024;
/// Fewest rows of `c` in a task where `b` would be packed once more for them.
const ROWS: usize = 384;
/// Strips of rows of a transposed `a` that are packed together, so that whole cache lines are used.
const PACKED_STRIPS: usize = 8;

/// What operands may be stored as. The arithmetic is f32.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    fn to_f32(self) -> f32;
    /// The matrix itself where it need not be converted.
    fn as_f32<'a>(mat: &Mat<'a, Self>) -> Option<Mat<'a, f32>>;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    fn as_f32<'a>(mat: &Mat<'a, f32>) -> Option<Mat<'a, f32>> {
        Some(*mat)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        // The library's conversion is a call; this is a shift.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    fn as_f32<'a>(_: &Mat<'a, bf16>) -> Option<Mat<'a, f32>> {
        None
    }
}

/// `c = a b`, continuing from `start`.
pub(super) fn product<E: Element>(c: MatMut<'_, f32>, a: Mat<'_, E>, b: Mat<'_, E>, start: Start<'_>) {
    product_on(isa(), c, a, b, start);
}

/// Like [`product`], on a given instruction set.
pub(crate) fn product_on<E: Element>(isa: Isa, c: MatMut<'_, f32>, a: Mat<'_, E>, b: Mat<'_, E>, start: Start<'_>) {
    if c.rows == 0 || c.cols == 0 || a.cols == 0 {
        return;
    }
    let apart = a.row_stride == 1 && a.col_stride > 1;
    if c.row_stride < c.col_stride {
        assert!(!matches!(start, Start::Bias(_)), "a bias needs a row-major result");
        return tasks(isa, c.t(), b.t(), a.t(), start, apart);
    }
    tasks(isa, c, a, b, start, apart);
}

/// A product whose result is row-major; `apart` sums every panel of k by itself.
fn tasks<E: Element>(isa: Isa, c: MatMut<'_, f32>, a: Mat<'_, E>, b: Mat<'_, E>, start: Start<'_>, apart: bool) {
    assert!(c.col_stride == 1 || c.cols == 1, "the columns or the rows of a result lie side by side");
    let width = STRIP * isa.lanes();
    let depth = a.cols.div_ceil(a.cols.div_ceil(DEPTH));
    let Grid { rows, columns } = grid(c.rows, c.cols, depth, width);
    let (down, across) = (c.rows.div_ceil(rows), c.cols.div_ceil(columns));
    let place = Place { data: c.data.as_mut_ptr(), stride: c.row_stride };
    for_ranges(across * down, 1, |tasks| {
        for task in tasks {
            let (row, column) = (task % down * rows, task / down * columns);
            let tile = Tile { row, rows: rows.min(c.rows - row), column, columns: columns.min(c.cols - column) };
            with_scratch(depth * columns + PACKED_STRIPS * packed_strip(12, depth), |scratch| {
                let (panel, strips) = scratch.split_at_mut(depth * columns);
                let place = &place;
                dispatch_on(isa, Task { place, a, b, start, apart, tile, depth, panel, strips });
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
fn grid(rows: usize, cols: usize, depth: usize, width: usize) -> Grid {
    let threads = rayon::current_num_threads();
    let strips = cols.div_ceil(width);
    let most = (PANEL / depth / width).clamp(1, strips);
    // A few tasks per thread even out what the machine does besides; each packs its part of `b` anew, so it should have
    // rows enough to make up for it.
    let down = (4 * threads).div_ceil(strips.div_ceil(most)).min(rows.div_ceil(ROWS));
    // Columns are cut further until the tasks divide among the threads: with one panel of rows there is no other cut.
    let across = (strips.div_ceil(most)..=strips).find(|across| (across * down).is_multiple_of(threads));
    let across = across.unwrap_or(strips.div_ceil(most));
    Grid { rows: rows.div_ceil(down).next_multiple_of(12), columns: strips.div_ceil(across) * width }
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

struct Task<'a, E> {
    place: &'a Place,
    a: Mat<'a, E>,
    b: Mat<'a, E>,
    start: Start<'a>,
    apart: bool,
    tile: Tile,
    depth: usize,
    panel: &'a mut [f32],
    strips: &'a mut [f32],
}

impl<E: Element> Kernel for Task<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // As many rows as keep the sums, a strip of `b` and a factor of `a` in registers: 16 of them, or 32.
        match S::LANES {
            16 => self.tile::<S, 12>(s),
            _ => self.tile::<S, 6>(s),
        }
    }
}

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    fn tile<S: Simd, const MR: usize>(mut self, s: S) {
        let k = self.a.cols;
        let mut first = 0;
        loop {
            let depth = self.depth.min(k - first);
            pack_columns(s, self.panel, self.b.part(first, depth, self.tile.column, self.tile.columns));
            self.rows::<S, MR>(s, first, depth);
            first += depth;
            if first >= k {
                return;
            }
        }
    }

    /// All rows of the tile, for one panel of k.
    #[inline(always)]
    fn rows<S: Simd, const MR: usize>(&mut self, s: S, first: usize, depth: usize) {
        let (tile, start) = (self.tile, if first == 0 { self.start } else { Start::Sum });
        let a = self.a.part(tile.row, tile.rows, first, depth);
        // Rows of k side by side are read where they are, but for the last few.
        let direct = E::as_f32(&a).filter(|a| a.col_stride == 1);
        let whole = if direct.is_some() { tile.rows / MR * MR } else { 0 };
        if let Some(a) = direct {
            for row in (0..whole).step_by(MR) {
                let left = Left { data: a.data[row * a.row_stride..].as_ptr(), row: Some(a.row_stride) };
                self.strip::<S, MR>(s, left, row, MR, depth, start);
            }
        }
        let mut row = whole;
        while row < tile.rows {
            let rows = (PACKED_STRIPS * MR).min(tile.rows - row);
            pack_rows::<S, E, MR>(s, self.strips, a.part(row, rows, 0, depth));
            for strip in 0..rows.div_ceil(MR) {
                let left = Left { data: self.strips[strip * packed_strip(MR, depth)..].as_ptr(), row: None };
                let below = row + strip * MR;
                self.strip::<S, MR>(s, left, below, MR.min(tile.rows - below), depth, start);
            }
            row += rows;
        }
    }

    /// `MR` rows, all columns of the tile.
    #[inline(always)]
    fn strip<S: Simd, const MR: usize>(
        &self,
        s: S,
        left: Left,
        row: usize,
        rows: usize,
        depth: usize,
        start: Start<'_>,
    ) {
        let (tile, width) = (self.tile, STRIP * S::LANES);
        for column in (0..tile.columns).step_by(width) {
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
            let right = self.panel[column * depth..][..width * depth].as_ptr();
            // SAFETY: `left` and `right` hold `depth` steps of `MR` rows and `width` columns; the corner is this task's.
            unsafe {
                if rows == MR && columns == width {
                    registers::<S, MR, true>(s, depth, left, right, corner, bias);
                } else {
                    registers::<S, MR, false>(s, depth, left, right, corner, bias);
                }
            }
        }
    }
}

/// Where the factors of `MR` rows of `a` are.
#[derive(Clone, Copy)]
struct Left {
    data: *const f32,
    /// Distance between the rows of a matrix whose k lies side by side; `None` for a packed strip.
    row: Option<usize>,
}

impl Left {
    /// Distance between two steps of k.
    #[inline(always)]
    fn step<const MR: usize>(self) -> usize {
        if self.row.is_some() { 1 } else { MR }
    }

    /// Where the factor of row i in a step is.
    #[inline(always)]
    fn place<const MR: usize>(self, i: usize, step: usize) -> usize {
        match self.row {
            Some(row) => i * row + step,
            None => step * MR + i,
        }
    }
}

/// A block of `c` as large as the registers, or what is left at an edge.
#[derive(Clone, Copy)]
struct Corner {
    c: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    /// Whether the result goes on from what `c` holds, or is added to it.
    sums: bool,
    apart: bool,
}

/// Steps of k per turn of the innermost loop, so that their addresses are computed once.
const UNROLL: usize = 4;

/// `MR` rows by [`STRIP`] vectors: one chain per element over ascending k.
///
/// # Safety
/// `left` must hold `depth` steps of `MR` rows, `right` `depth` steps of a strip, and the corner's elements must be
/// writable by this thread alone.
#[inline(always)]
unsafe fn registers<S: Simd, const MR: usize, const WHOLE: bool>(
    s: S,
    depth: usize,
    left: Left,
    right: *const f32,
    corner: Corner,
    bias: Option<&[f32]>,
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
            for step in 0..UNROLL {
                add_step::<S, MR>(s, left, step, right.add(step * STRIP * S::LANES), &mut sums);
            }
            left.data = left.data.add(UNROLL * left.step::<MR>());
            right = right.add(UNROLL * STRIP * S::LANES);
        }
        for step in 0..depth % UNROLL {
            add_step::<S, MR>(s, left, step, right.add(step * STRIP * S::LANES), &mut sums);
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

/// Adds the products of one step of k.
///
/// # Safety
/// As [`registers`].
#[inline(always)]
unsafe fn add_step<S: Simd, const MR: usize>(
    s: S,
    left: Left,
    step: usize,
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
            let a = s.splat(*left.data.add(left.place::<MR>(i, step)));
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = s.fma(a, b, *sum);
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

/// Copies a panel of `b` into strips: step p of a strip is its row p; missing columns become zero.
#[inline(always)]
fn pack_columns<S: Simd, E: Element>(s: S, panel: &mut [f32], b: Mat<'_, E>) {
    let (depth, width) = (b.rows, STRIP * S::LANES);
    for (column, strip) in (0..b.cols).step_by(width).zip(panel.chunks_mut((width * depth).max(1))) {
        let part = b.part(0, depth, column, width.min(b.cols - column));
        match E::as_f32(&part) {
            Some(part) if part.cols == width && part.row_stride == 1 => pack_transposed(s, strip, part, width),
            Some(part) if part.cols == width && part.col_stride == 1 => {
                for (p, row) in strip.chunks_exact_mut(width).enumerate() {
                    row.copy_from_slice(&part.data[p * part.row_stride..][..width]);
                }
            }
            _ => {
                for (p, row) in strip.chunks_exact_mut(width).enumerate() {
                    for (j, x) in row.iter_mut().enumerate() {
                        let at = p * part.row_stride + j * part.col_stride;
                        *x = if j < part.cols { part.data[at].to_f32() } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// A strip of columns that lie along k: blocks of eight by eight.
#[inline(always)]
fn pack_transposed<S: Simd>(s: S, strip: &mut [f32], part: Mat<'_, f32>, width: usize) {
    let whole = part.rows / 8 * 8;
    for j in (0..width).step_by(8) {
        assert!((j + 7) * part.col_stride + part.rows <= part.data.len() && part.rows * width <= strip.len());
        for p in (0..whole).step_by(8) {
            // SAFETY: eight columns from j with eight rows from p on are inside of both, as was checked.
            unsafe {
                let from = part.data.as_ptr().add(j * part.col_stride + p);
                s.transpose_8x8(from, part.col_stride, strip.as_mut_ptr().add(p * width + j), width);
            }
        }
        for p in whole..part.rows {
            for q in j..j + 8 {
                strip[p * width + q] = part.data[q * part.col_stride + p];
            }
        }
    }
}

/// Elements of a packed strip of `a`, with room for a vector that sticks out.
#[inline(always)]
fn packed_strip(rows: usize, depth: usize) -> usize {
    rows * depth + crate::simd::MAX_LANES
}

/// Copies rows of `a` into strips of `MR`: step p of a strip is `MR` values; missing rows become zero.
#[inline(always)]
fn pack_rows<S: Simd, E: Element, const MR: usize>(s: S, strips: &mut [f32], a: Mat<'_, E>) {
    let (depth, size) = (a.cols, packed_strip(MR, a.cols));
    let mut packed = 0;
    if let Some(a) = E::as_f32(&a).filter(|a| a.row_stride == 1) {
        packed = pack_lines::<S, MR>(s, strips, a);
    }
    for (strip, row) in (0..a.rows).step_by(MR).enumerate().skip(packed) {
        let rows = MR.min(a.rows - row);
        let part = a.part(row, rows, 0, depth);
        for (p, step) in strips[strip * size..][..MR * depth].chunks_exact_mut(MR).enumerate() {
            for (i, x) in step.iter_mut().enumerate() {
                let at = i * part.row_stride + p * part.col_stride;
                *x = if i < rows { part.data[at].to_f32() } else { 0.0 };
            }
        }
    }
}

/// Copies whole strips of an `a` whose rows lie side by side, and returns how many. All strips of a step at once: each
/// line of `a` is then touched once.
#[inline(always)]
fn pack_lines<S: Simd, const MR: usize>(s: S, strips: &mut [f32], a: Mat<'_, f32>) -> usize {
    let (depth, size) = (a.cols, packed_strip(MR, a.cols));
    // A vector is longer than a step: what it reads too much must be there, and what it writes too much is overwritten
    // by the next one or lies behind the strip.
    let last_line = a.data.len().saturating_sub((depth - 1) * a.col_stride);
    let readable = if last_line < S::LANES { 0 } else { (last_line - S::LANES) / MR + 1 };
    let whole = (a.rows / MR).min(readable);
    assert!(strips.len() >= whole * size);
    for p in 0..depth {
        for strip in 0..whole {
            // SAFETY: the vector ends inside of `a`, as was computed for its last line, and inside of its strip and the
            // room behind it.
            unsafe {
                let values = s.load_ptr(a.data.as_ptr().add(p * a.col_stride + strip * MR));
                s.store_ptr(strips.as_mut_ptr().add(strip * size + p * MR), values);
            }
        }
    }
    whole
}
