//! Rows of activations, rounded to integers of a byte for products with quantised rows.
//!
//! Rows that are multiplied together form a group, in which the same place of each lies side by side: units of four bytes
//! (two 16-bit numbers), scales, sums. A group of one is a row as it is.

use crate::isa::Isa;
use crate::parallel::for_pieces;
use crate::simd::{Kernel, Simd, dispatch_on, fetch_near};
use std::marker::PhantomData;
use std::ops::Range;

/// Numbers that share a scale where the weights' scales are f32.
pub(super) const SMALL: usize = 32;
/// Numbers that share a scale where the weights' scales are integers.
pub(super) const LARGE: usize = 256;

/// Rows of a group that is multiplied on tiles: of each, as many bytes lie side by side as a tile takes at once.
pub(super) const ON_TILES: usize = 16;

/// f32 in a cache line, at one of which integers begin.
pub(super) const LINE: usize = 16;

/// How far ahead rows are fetched, in f32: they come from the last-level cache.
const AHEAD: usize = 512;

/// How a row of activations lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Bytes, a scale and a sum in f32 per 32.
    Bytes32,
    /// Bytes, a scale per 32, and their integer sum times minus what was added to the weights they meet.
    Moved32(u8),
    /// The same integers in 16 bits, a scale per 32.
    Words32,
    /// Bytes, a scale per 256, and an integer sum of as many numbers as it says.
    Bytes256(usize),
}

impl Layout {
    /// Numbers that share a scale.
    pub(super) fn block(self) -> usize {
        if matches!(self, Layout::Bytes256(_)) { LARGE } else { SMALL }
    }

    /// Units of a row that lie side by side in a group of `count` rows.
    fn neighbours(self, count: usize) -> usize {
        match (self, count) {
            // A row alone lies as it is: any part of a block serves.
            (_, 1) => SMALL / 4,
            // What a tile takes at once.
            (Layout::Bytes256(_), ON_TILES) => LARGE / 4 / 4,
            (_, ON_TILES) => SMALL / 4,
            _ => 1,
        }
    }

    /// Units and sums, of 32 bits each, per block.
    fn per_block(self) -> [usize; 2] {
        match self {
            Layout::Bytes32 | Layout::Moved32(_) => [SMALL / 4, 1],
            Layout::Words32 => [SMALL / 2, 0],
            Layout::Bytes256(sub) => [LARGE / 4, LARGE / sub / 2],
        }
    }
}

/// How many of `left` rows form the next group, where a group may have `most`.
#[inline(always)]
pub(super) fn group(left: usize, most: usize) -> usize {
    match left.min(most) {
        ON_TILES.. => ON_TILES,
        12.. => 12,
        8.. => 8,
        few => few.min(4),
    }
}

/// Some rows, in integers with scales.
pub(super) struct Activations<'a> {
    pub(super) rows: usize,
    blocks: usize,
    layout: Layout,
    units: &'a [f32],
    scales: &'a [f32],
    sums: &'a [f32],
}

/// Rows that are being rounded, by several threads at a time.
pub(super) struct Rounding<'a> {
    isa: Isa,
    rows: usize,
    blocks: usize,
    layout: Layout,
    /// Most rows of a group.
    most: usize,
    units: *mut f32,
    scales: *mut f32,
    sums: *mut f32,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: whoever rounds promises to be the only one at those blocks.
unsafe impl Sync for Rounding<'_> {}

impl<'a> Rounding<'a> {
    /// Memory for `rows` rows of `k` numbers, in groups of `most` or less.
    pub(super) fn new(
        isa: Isa,
        (rows, k): (usize, usize),
        (layout, most): (Layout, usize),
        scratch: &'a mut [f32],
    ) -> Self {
        let (blocks, [units, sums]) = (k / layout.block(), layout.per_block());
        let aligned = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let (u, rest) = scratch[aligned..].split_at_mut(rows * blocks * units);
        let (d, s) = rest.split_at_mut(rows * blocks);
        let s = &mut s[..rows * blocks * sums];
        let (units, scales, sums) = (u.as_mut_ptr(), d.as_mut_ptr(), s.as_mut_ptr());
        Self { isa, rows, blocks, layout, most, units, scales, sums, memory: PhantomData }
    }

    /// Rounds the rows of `x`, each of so many `numbers`, to the nearest of 255 levels per block: those from `row` on, from
    /// a block on. Panics where they do not begin and end with groups.
    ///
    /// # Safety
    /// No other thread may round the same blocks of these rows.
    pub(super) unsafe fn round(&self, x: &[f32], numbers: usize, (row, block): (usize, usize)) {
        let (rows, blocks) = (x.len() / numbers, numbers / self.layout.block());
        let is_whole = |row: usize| row.is_multiple_of(self.most) || row == self.rows;
        assert!(
            is_whole(row) && is_whole(row + rows) && row + rows <= self.rows && block + blocks <= self.blocks,
            "rounding {rows} rows of {blocks} blocks at {row}, {block}"
        );
        dispatch_on(self.isa, Round { x, numbers, to: self, row, block });
    }

    /// Once all blocks of all rows are rounded.
    pub(super) fn done(self) -> Activations<'a> {
        let Self { rows, blocks, layout, units, scales, sums, .. } = self;
        let (count, [per_units, per_sums]) = (rows * blocks, layout.per_block());
        // SAFETY: `new` has cut them to these lengths, and nobody writes there any more.
        unsafe {
            let units = std::slice::from_raw_parts(units, count * per_units);
            let (scales, sums) =
                (std::slice::from_raw_parts(scales, count), std::slice::from_raw_parts(sums, count * per_sums));
            Activations { rows, blocks, layout, units, scales, sums }
        }
    }

    /// Memory of a block of the `count` rows that form the group at `row`: integers, scales, sums.
    ///
    /// # Safety
    /// They must be there, and this thread's own.
    #[inline(always)]
    unsafe fn block(&self, row: usize, count: usize, block: usize) -> (&'a mut [i32], &'a mut [f32], &'a mut [i32]) {
        let (at, [units, sums]) = (row * self.blocks + block * count, self.layout.per_block());
        // SAFETY: passed on from the caller; integers lie where floats may.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.units.wrapping_add(at * units).cast(), count * units),
                std::slice::from_raw_parts_mut(self.scales.wrapping_add(at), count),
                std::slice::from_raw_parts_mut(self.sums.wrapping_add(at * sums).cast(), count * sums),
            )
        }
    }
}

/// Some rows that are multiplied together.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    /// Integers, four bytes or two 16-bit numbers at a time.
    pub(super) units: &'a [i32],
    pub(super) scales: &'a [f32],
    /// f32 or integers, one or two to each, as the layout says.
    pub(super) sums: &'a [i32],
}

impl<'a> Activations<'a> {
    /// Floats that `rows` rows need in [`Activations::of`].
    pub(super) fn scratch_len(rows: usize, k: usize, layout: Layout) -> usize {
        let [units, sums] = layout.per_block();
        rows * (k / layout.block()) * (units + 1 + sums) + LINE
    }

    /// Rounds the rows of `x` `[rows, k]`, in groups of `most` rows or less.
    pub(super) fn of(isa: Isa, x: &[f32], k: usize, (layout, most): (Layout, usize), scratch: &'a mut [f32]) -> Self {
        let to = Rounding::new(isa, (x.len() / k, k), (layout, most), scratch);
        for_pieces(to.rows.div_ceil(most), |i| {
            let x = &x[i * most * k..];
            // SAFETY: a piece has its own group of rows.
            unsafe { to.round(&x[..x.len().min(most * k)], k, (i * most, 0)) };
        });
        to.done()
    }

    /// Some rows, which begin and end with groups of the whole.
    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        let [units, sums] = self.layout.per_block();
        let part = |of: &'a [f32], per_block: usize| {
            &of[rows.start * self.blocks * per_block..rows.end * self.blocks * per_block]
        };
        let (units, scales, sums) = (part(self.units, units), part(self.scales, 1), part(self.sums, sums));
        Self { rows: rows.len(), units, scales, sums, ..*self }
    }

    /// `count` rows from `row` on, which form a group.
    #[inline(always)]
    pub(super) fn group(&self, row: usize, count: usize) -> Group<'a> {
        let (blocks, [units, sums]) = (self.blocks, self.layout.per_block());
        let part = |of: &'a [f32], per_block: usize| &of[row * blocks * per_block..][..count * blocks * per_block];
        Group {
            units: bytemuck::cast_slice(part(self.units, units)),
            scales: part(self.scales, 1),
            sums: bytemuck::cast_slice(part(self.sums, sums)),
        }
    }
}

/// Rounds some blocks of the rows of some groups.
struct Round<'a> {
    x: &'a [f32],
    numbers: usize,
    to: &'a Rounding<'a>,
    row: usize,
    block: usize,
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.to.layout {
            Layout::Bytes256(_) => self.blocks::<S, LARGE>(s),
            _ => self.blocks::<S, SMALL>(s),
        }
    }
}

impl Round<'_> {
    #[inline(always)]
    fn blocks<S: Simd, const BLOCK: usize>(self, s: S) {
        let (rows, mut done) = (self.x.len() / self.numbers, 0);
        while done < rows {
            let count = group(rows - done, self.to.most);
            for b in 0..self.numbers / BLOCK {
                // SAFETY: the caller of `round` vouches for it.
                let (units, scales, sums) = unsafe { self.to.block(self.row + done, count, self.block + b) };
                for i in 0..count {
                    let x = self.x[(done + i) * self.numbers + b * BLOCK..].first_chunk().expect("a whole block");
                    round_row::<S, BLOCK>(s, x, self.to.layout, (i, count), (units, scales, sums));
                }
            }
            done += count;
        }
    }
}

/// Rounds a block of row `i` of `count`.
#[inline(always)]
fn round_row<S: Simd, const BLOCK: usize>(
    s: S,
    x: &[f32; BLOCK],
    layout: Layout,
    (i, count): (usize, usize),
    (units, scales, sums): (&mut [i32], &mut [f32], &mut [i32]),
) {
    for line in 0..BLOCK / LINE {
        fetch_near(x.as_ptr().wrapping_add(AHEAD + line * LINE).cast());
    }
    let mut q = [0_i8; BLOCK];
    let (d, sum) = round_block(s, x, &mut q);
    scales[i] = d;
    match (layout, layout.neighbours(count)) {
        (Layout::Words32, _) => spread_words(&q, units, (i, count)),
        (_, 1) => spread::<4>(&q, units, (i, count)),
        (_, 8) => spread::<32>(&q, units, (i, count)),
        (_, side) => {
            assert_eq!(side, 16);
            spread::<64>(&q, units, (i, count));
        }
    }
    match layout {
        Layout::Bytes32 => sums[i] = (d * sum).to_bits() as i32,
        Layout::Moved32(by) => sums[i] = -i32::from(by) * sum as i32,
        Layout::Words32 => {}
        Layout::Bytes256(sub) => {
            let sum = |part: &[i8]| part.iter().map(|&q| i16::from(q)).sum::<i16>();
            for (j, pair) in q.chunks_exact(2 * sub).enumerate() {
                sums[j * count + i] = two(sum(&pair[..sub]), sum(&pair[sub..]));
            }
        }
    }
}

/// Writes the integers of row `i` of `count`, so many at a time side by side.
#[inline(always)]
fn spread<const BYTES: usize>(q: &[i8], units: &mut [i32], (i, count): (usize, usize)) {
    let places = bytemuck::cast_slice_mut::<i32, i8>(units).as_chunks_mut::<BYTES>().0;
    for (j, q) in q.as_chunks::<BYTES>().0.iter().enumerate() {
        places[j * count + i] = *q;
    }
}

/// The same in 16 bits, two at a time.
#[inline(always)]
fn spread_words(q: &[i8], units: &mut [i32], (i, count): (usize, usize)) {
    for (j, &[low, high]) in q.as_chunks::<2>().0.iter().enumerate() {
        units[j * count + i] = two(low.into(), high.into());
    }
}

/// Two numbers of 16 bits.
#[inline(always)]
fn two(low: i16, high: i16) -> i32 {
    (i32::from(low) & 0xffff) | i32::from(high) << 16
}

/// The integers of one block; returns their scale and their sum. What is not finite stays visible: the scale is not finite,
/// either.
#[inline(always)]
fn round_block<S: Simd, const BLOCK: usize>(s: S, x: &[f32; BLOCK], q: &mut [i8; BLOCK]) -> (f32, f32) {
    let most = x.chunks_exact(S::LANES).fold(s.zero(), |most, x| s.max(most, s.abs(s.load(x))));
    let most = s.reduce_max(most);
    // Adding and taking away 1.5 * 2^23 rounds to even; the result is at most 127 in size.
    const MAGIC: f32 = 12_582_912.0;
    // What is too small for it becomes zero, as zeros do.
    let inverse = Some(127.0 / most).filter(|inverse| inverse.is_finite()).unwrap_or(0.0);
    let (inverse, magic) = (s.splat(inverse), s.splat(MAGIC));
    let mut sum = s.zero();
    for (q, x) in q.chunks_exact_mut(S::LANES).zip(x.chunks_exact(S::LANES)) {
        let moved = s.add(s.mul(s.load(x), inverse), magic);
        s.store_low_bytes(q, moved);
        sum = s.add(sum, s.sub(moved, magic));
    }
    // Exact, or NaN where an x is: one that is infinite was multiplied with zero.
    let sum = s.reduce_sum(sum);
    (most / 127.0 + 0.0 * sum, sum)
}
