//! What an instruction set must be able to do for the products.

use super::tile::{Bytes32, Bytes256};
use crate::quant::activations::Activations;
#[cfg(target_arch = "x86_64")]
use crate::quant::activations::ON_TILES;
use crate::quant::product::STRIP;
#[cfg(target_arch = "x86_64")]
use crate::simd::fetch_near;

/// Rows of bytes, equally far apart.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Rows {
    pub(super) first: *const u8,
    pub(super) stride: usize,
}

impl Rows {
    /// Where a row begins.
    #[inline(always)]
    pub(super) fn at(self, row: usize) -> *const u8 {
        self.first.wrapping_add(row * self.stride)
    }

    /// The rows from `row` on.
    #[inline(always)]
    pub(super) fn from(self, row: usize) -> Self {
        Self { first: self.at(row), ..self }
    }

    /// The same rows, some bytes further on.
    #[inline(always)]
    pub(super) fn further(self, bytes: usize) -> Self {
        Self { first: self.first.wrapping_add(bytes), ..self }
    }
}

/// Which activations meet some tiles: a group of rows, from a tile on.
pub(in crate::quant) struct Place<'a> {
    pub(super) x: &'a Activations<'a>,
    pub(super) row: usize,
    pub(super) tile: usize,
}

impl<'a> Place<'a> {
    /// That of a group of sixteen rows, and that of the next one. One without a next stands twice: it is multiplied twice, and
    /// counted once.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn pair(&self, groups: usize) -> [Self; 2] {
        assert!(groups == 1 || groups == 2, "tiles take one or two groups, not {groups}");
        [0, groups - 1].map(|further| Self { row: self.row + further * ON_TILES, ..*self })
    }

    /// Panics where a group of `M` rows has less than `tiles` blocks of so many units and sums.
    #[inline(always)]
    pub(super) fn check<const M: usize>(&self, tiles: usize, units: usize, sums: usize) {
        let blocks = self.tile + tiles;
        let group = self.x.group(self.row, M);
        let is_inside = M * blocks <= group.scales.len()
            && M * blocks * units <= group.units.len()
            && M * blocks * sums <= group.sums.len();
        assert!(is_inside, "tiles {blocks} of {M} rows from {} on", self.row);
    }

    /// Activations that a tile meets.
    ///
    /// # Safety
    /// They were checked.
    #[inline(always)]
    pub(super) unsafe fn block<const M: usize>(&self, tile: usize, units: usize, sums: usize) -> Block<M> {
        let (group, at) = (self.x.group(self.row, M), M * (self.tile + tile));
        Block {
            units: group.units.as_ptr().wrapping_add(at * units),
            scales: group.scales.as_ptr().wrapping_add(at),
            sums: group.sums.as_ptr().wrapping_add(at * sums),
        }
    }
}

/// One block of each of `M` rows of activations, side by side.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Block<const M: usize> {
    units: *const i32,
    scales: *const f32,
    sums: *const i32,
}

impl<const M: usize> Block<M> {
    /// The block that is `count` later in the same rows.
    #[inline(always)]
    pub(super) fn further(self, count: usize, units: usize, sums: usize) -> Self {
        Self {
            units: self.units.wrapping_add(M * count * units),
            scales: self.scales.wrapping_add(M * count),
            sums: self.sums.wrapping_add(M * count * sums),
        }
    }

    /// Asks for its scales: no loop is as regular as their way through memory needs to be noticed.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn fetch_scales(self) {
        fetch_near(self.scales.cast());
    }

    /// Where its integers begin.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn units(self) -> *const i32 {
        self.units
    }

    /// Some neighbours in k, four bytes.
    ///
    /// # Safety
    /// The block must have them; so below.
    #[inline(always)]
    pub(super) unsafe fn unit(self, unit: usize, row: usize) -> i32 {
        // SAFETY: passed on from the caller.
        unsafe { *self.units.add(unit * M + row) }
    }
    /// The scale of a row.
    #[inline(always)]
    pub(super) unsafe fn scale(self, row: usize) -> f32 {
        // SAFETY: passed on from the caller.
        unsafe { *self.scales.add(row) }
    }
    /// A sum of a row, or two in 16 bits.
    #[inline(always)]
    pub(super) unsafe fn sum(self, sum: usize, row: usize) -> i32 {
        // SAFETY: passed on from the caller.
        unsafe { *self.sums.add(sum * M + row) }
    }
}

/// 64 bytes: four of each of sixteen rows.
pub(super) type Quad = [u8; 4 * STRIP];

/// Vectors with a lane of 32 bits for each of [`Lanes::ROWS`] rows, as integers and as f32.
///
/// # Safety
/// All functions need the machine to have the instruction set, and what they read or write must be readable or writable.
pub(in crate::quant) trait Lanes: Copy + 'static {
    /// Lanes of a vector: 4, 8, or 16, which is a whole strip. `half` is below which of its parts a vector is.
    const ROWS: usize;
    /// Most rows of activations in a group, whose sums fit into registers.
    const GROUP: usize;
    /// Integers.
    type I: Copy;
    /// f32.
    type F: Copy;
    /// 32 signed numbers of each row.
    type Signed: Copy;
    /// 32 numbers of each row that are positive and below 32 once something is added to them.
    type Moved: Copy;

    /// Sixteen bytes of each row: vector q holds bytes `4 q..4 q + 4`.
    unsafe fn sixteen(rows: Rows, at: usize) -> [Self::I; 4];
    /// 32 bytes of each row.
    unsafe fn thirty_two(rows: Rows, at: usize) -> [Self::I; 8];
    /// Four bytes of each row.
    unsafe fn four(rows: Rows, at: usize) -> Self::I;
    /// The first four bytes of each row, behind which twelve more are readable.
    unsafe fn head(rows: Rows) -> Self::I;
    /// The half-precision number of each row that ends at byte `end`, the sixteenth readable one or a later one.
    unsafe fn tail_half(rows: Rows, end: usize) -> Self::F;
    /// The half-precision number at the head of each row.
    unsafe fn head_half(rows: Rows) -> Self::F;
    /// Both half-precision numbers of each lane, the lower ones first.
    unsafe fn two_halves(pairs: Self::I) -> [Self::F; 2];
    /// As many f32 as there are lanes.
    unsafe fn load_f(from: *const f32) -> Self::F;

    /// The same byte everywhere.
    unsafe fn bytes(byte: u8) -> Self::I;
    /// The same lane everywhere.
    unsafe fn words(word: u32) -> Self::I;
    /// Bits of both.
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    /// Bits of either.
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Bytes less others.
    unsafe fn less(a: Self::I, b: Self::I) -> Self::I;
    /// Lanes less others.
    unsafe fn less_32(a: Self::I, b: Self::I) -> Self::I;
    /// The upper halves of lanes, with the lower halves of others above them.
    unsafe fn joined(low: Self::I, high: Self::I) -> Self::I;
    /// Pairs of bytes moved to the right by as many bits.
    unsafe fn right(v: Self::I, bits: usize) -> Self::I;
    /// Pairs of bytes moved to the left.
    unsafe fn left(v: Self::I, bits: usize) -> Self::I;
    /// Lanes moved to the right.
    unsafe fn right_32(v: Self::I, bits: usize) -> Self::I;
    /// 16-bit numbers with a sign, moved to the right.
    unsafe fn signed_right(v: Self::I, bits: usize) -> Self::I;
    /// The bytes of every sixteen in another order; 0x80 stands for zero.
    unsafe fn shuffle(v: Self::I, order: &'static [u8; 16]) -> Self::I;
    /// A table's entry for each byte below 16.
    unsafe fn look_up(table: &'static [u8; 16], codes: Self::I) -> Self::I;
    /// Products.
    unsafe fn times(a: Self::F, b: Self::F) -> Self::F;
    /// The other sign.
    unsafe fn negative(x: Self::F) -> Self::F;
    /// Integers to f32.
    unsafe fn to_f(v: Self::I) -> Self::F;

    /// Writes a vector to its rows' part of a tile.
    #[inline(always)]
    unsafe fn put(v: Self::I, to: *mut Quad, half: usize) {
        // SAFETY: passed on from the caller.
        unsafe { to.cast::<Self::I>().add(half).write(v) }
    }
    /// Writes numbers to their rows' part of a tile.
    #[inline(always)]
    unsafe fn put_f(v: Self::F, to: *mut [f32; STRIP], half: usize) {
        // SAFETY: passed on from the caller.
        unsafe { to.cast::<Self::F>().add(half).write(v) }
    }
    /// Writes byte `j` of each lane, signed, as a scale of [`Bytes256`].
    unsafe fn put_scale(four: Self::I, j: usize, to: *mut Quad, half: usize);
    /// Writes four signed bytes of each row.
    unsafe fn put_signed(tile: *mut Self::Signed, half: usize, q: usize, v: Self::I);
    /// Writes the scales of signed numbers.
    unsafe fn put_signed_scale(tile: *mut Self::Signed, half: usize, d: Self::F);
    /// Writes four numbers of each row, to each of which `by` was added.
    unsafe fn put_moved(tile: *mut Self::Moved, half: usize, q: usize, v: Self::I, by: u8);
    /// Writes the scales of such numbers.
    unsafe fn put_moved_scale(tile: *mut Self::Moved, half: usize, d: Self::F);

    /// Products with [`Bytes32`]; `FOURS` sums of four products fit into 16 bits.
    unsafe fn bytes32<const M: usize, const FOURS: usize>(
        tiles: &[Bytes32],
        place: &Place<'_>,
        sums: &mut [[f32; STRIP]; M],
    );
    /// Products with numbers that something was added to; `FOURS` as above.
    unsafe fn moved32<const M: usize, const FOURS: usize>(
        tiles: &[Self::Moved],
        place: &Place<'_>,
        sums: &mut [[f32; STRIP]; M],
    );
    /// Products with signed numbers.
    unsafe fn signed32<const M: usize>(tiles: &[Self::Signed], place: &Place<'_>, sums: &mut [[f32; STRIP]; M]);
    /// Products with [`Bytes256`]: a scale per `SUB` numbers; `FOURS` sums of four products fit into 16 bits; minima
    /// have a scale of their own, or that of the numbers.
    unsafe fn bytes256<const M: usize, const SUB: usize, const FOURS: usize, const MIN: bool>(
        tiles: &[Bytes256],
        place: &Place<'_>,
        sums: &mut [[f32; STRIP]; M],
    );
}
