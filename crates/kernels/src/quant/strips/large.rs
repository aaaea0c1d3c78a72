//! Types whose scales are integers: how some rows of a block become a tile.

use super::Strips;
use super::lanes::{Lanes, Place, Rows};
use super::tile::{Bytes256, PAIR, bits, high, low};
use crate::quant::product::STRIP;
use crate::quant::unpack::{Block256, Q2K, Q3K, Q4K, Q5K, Q6K};

/// Who takes the numbers of a block. (A closure this large would stay a call, compiled without the machine's instructions.)
pub(in crate::quant) trait Taker<V: Lanes> {
    /// Takes eight quads, of which one is the first.
    ///
    /// # Safety
    /// As [`Strips::unpack`].
    unsafe fn take(&mut self, first: usize, eight: [V::I; 8]);
}

/// Writes them to their rows' part of a tile.
struct ToTile {
    tile: *mut Bytes256,
    half: usize,
}

impl<V: Lanes> Taker<V> for ToTile {
    #[inline(always)]
    unsafe fn take(&mut self, first: usize, eight: [V::I; 8]) {
        for q in 0..8 {
            // SAFETY: passed on from the caller.
            unsafe { V::put(eight[q], &raw mut (*self.tile).q[first + q], self.half) }
        }
    }
}

/// A type whose block comes apart into a tile's scales and its numbers.
pub(in crate::quant) trait Parts<V: Lanes>: Block256 {
    /// Writes all of a tile but its numbers.
    ///
    /// # Safety
    /// As [`Strips::unpack`]; so below.
    unsafe fn scales(rows: Rows, tile: *mut Bytes256, half: usize);
    /// Hands on all numbers.
    unsafe fn numbers<T: Taker<V>>(rows: Rows, taker: &mut T);
}

/// [`Strips`] and [`Parts`]: the bytes of a block, how many sums fit into 16 bits, and how its scales and its numbers come apart.
macro_rules! strips {
    ($ty:ident, $bytes:expr, $fours:expr, |$rows:ident, $tile:ident, $half:ident| $scales:block, |$taker:ident| $numbers:block) => {
        impl<V: Lanes> Parts<V> for $ty {
            #[inline(always)]
            unsafe fn scales($rows: Rows, $tile: *mut Bytes256, $half: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $scales }
            }
            #[inline(always)]
            unsafe fn numbers<T: Taker<V>>($rows: Rows, $taker: &mut T) {
                // SAFETY: passed on from the caller.
                unsafe { $numbers }
            }
        }

        impl<V: Lanes> Strips<V> for $ty {
            const BYTES: usize = $bytes;
            type Tile = Bytes256;
            const TILES: usize = 1;
            #[inline(always)]
            unsafe fn unpack(rows: Rows, tile: *mut Bytes256, half: usize) {
                // SAFETY: passed on from the caller.
                unsafe {
                    <Self as Parts<V>>::scales(rows, tile, half);
                    <Self as Parts<V>>::numbers(rows, &mut ToTile { tile, half });
                }
            }
            #[inline(always)]
            unsafe fn multiply<const M: usize>(tiles: &[Bytes256], place: &Place<'_>, sums: &mut [[f32; STRIP]; M]) {
                const SUB: usize = <$ty as Block256>::SUB;
                const MIN: bool = <$ty as Block256>::OFFSET == 0;
                // SAFETY: passed on from the caller.
                unsafe { V::bytes256::<M, SUB, $fours, MIN>(tiles, place, sums) }
            }
        }
    };
}

/// Eight vectors.
#[inline(always)]
unsafe fn each<V: Lanes>(make: impl Fn(usize) -> V::I) -> [V::I; 8] {
    [make(0), make(1), make(2), make(3), make(4), make(5), make(6), make(7)]
}

/// Signed scales, four to a lane.
#[inline(always)]
unsafe fn put_scales<V: Lanes>(tile: *mut Bytes256, half: usize, scales: &[V::I]) {
    for (i, &four) in scales.iter().enumerate() {
        for j in 0..4 {
            // SAFETY: passed on from the caller.
            unsafe { V::put_scale(four, j, &raw mut (*tile).scales[4 * i + j], half) }
        }
    }
}

/// Minima: signed bytes, four to a lane, two neighbours in 16 bits each, times 2^(8 - `SHIFT`).
#[inline(always)]
unsafe fn put_mins<V: Lanes, const SHIFT: usize>(tile: *mut Bytes256, half: usize, mins: &[V::I]) {
    for (i, &four) in mins.iter().enumerate() {
        for j in 0..2 {
            // SAFETY: passed on from the caller. A byte in the upper half of 16 bits, moved down, keeps its sign.
            unsafe {
                let wide = V::signed_right(V::shuffle(four, &PAIR[j]), SHIFT);
                V::put(wide, &raw mut (*tile).mins[2 * i + j], half);
            }
        }
    }
}

/// Scales of the numbers and of the minima, in half precision.
#[inline(always)]
unsafe fn put_two<V: Lanes>(tile: *mut Bytes256, half: usize, pairs: V::I) {
    // SAFETY: passed on from the caller.
    unsafe {
        let [d, dmin] = V::two_halves(pairs);
        V::put_f(d, &raw mut (*tile).d, half);
        V::put_f(dmin, &raw mut (*tile).dmin, half);
    }
}

/// The scale of the numbers, which ends at byte `end`; minima have the same.
#[inline(always)]
unsafe fn put_one<V: Lanes>(tile: *mut Bytes256, half: usize, rows: Rows, end: usize) {
    // SAFETY: passed on from the caller.
    unsafe { V::put_f(V::tail_half(rows, end), &raw mut (*tile).d, half) }
}

/// Sixteen bytes of scales, minima and integer scales of six bits: as `unpack::scales_and_mins` reads them.
#[inline(always)]
unsafe fn put_sixes<V: Lanes>(rows: Rows, tile: *mut Bytes256, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let [pairs, scales, mins, rest] = V::sixteen(rows, 0);
        put_two::<V>(tile, half, pairs);
        let upper = V::or(low::<V>(rest), bits::<V>(scales, 2, 0x30));
        put_scales::<V>(tile, half, &[bits::<V>(scales, 0, 63), upper]);
        let upper = V::or(high::<V>(rest), bits::<V>(mins, 2, 0x30));
        put_mins::<V, 8>(tile, half, &[bits::<V>(mins, 0, 63), upper]);
    }
}

strips!(Q4K, 144, 8, |rows, tile, half| { put_sixes::<V>(rows, tile, half) }, |taker| {
    for c in 0..4 {
        let v = V::thirty_two(rows, 16 + 32 * c);
        taker.take(16 * c, each::<V>(|q| low::<V>(v[q])));
        taker.take(16 * c + 8, each::<V>(|q| high::<V>(v[q])));
    }
});

strips!(Q5K, 176, 4, |rows, tile, half| { put_sixes::<V>(rows, tile, half) }, |taker| {
    let fifth = V::thirty_two(rows, 16);
    for c in 0..4 {
        let v = V::thirty_two(rows, 48 + 32 * c);
        let by = 2 * c as isize - 4;
        taker.take(16 * c, each::<V>(|q| V::or(low::<V>(v[q]), bits::<V>(fifth[q], by, 16))));
        taker.take(16 * c + 8, each::<V>(|q| V::or(high::<V>(v[q]), bits::<V>(fifth[q], by + 1, 16))));
    }
});

strips!(
    Q6K,
    210,
    2,
    |rows, tile, half| {
        put_one::<V>(tile, half, rows, 210);
        let scales = V::sixteen(rows, 192);
        put_scales::<V>(tile, half, &scales);
        put_mins::<V, 3>(tile, half, &scales);
    },
    |taker| {
        for part in 0..2 {
            let upper = V::thirty_two(rows, 128 + 32 * part);
            for side in 0..2 {
                let v = V::thirty_two(rows, 64 * part + 32 * side);
                let by = 2 * side as isize - 4;
                let at = 32 * part + 8 * side;
                taker.take(at, each::<V>(|q| V::or(low::<V>(v[q]), bits::<V>(upper[q], by, 0x30))));
                taker.take(at + 16, each::<V>(|q| V::or(high::<V>(v[q]), bits::<V>(upper[q], by + 4, 0x30))));
            }
        }
    }
);

/// Four of the scales of Q3_K, from the lower four bits of each and the upper two.
#[inline(always)]
unsafe fn threes<V: Lanes>(lower: V::I, upper: V::I) -> V::I {
    // SAFETY: passed on from the caller.
    unsafe { V::less(V::or(lower, upper), V::bytes(32)) }
}

strips!(
    Q3K,
    110,
    4,
    |rows, tile, half| {
        put_one::<V>(tile, half, rows, 110);
        let (a, b, upper) = (V::four(rows, 96), V::four(rows, 100), V::four(rows, 104));
        let scales = [
            threes::<V>(low::<V>(a), bits::<V>(upper, -4, 0x30)),
            threes::<V>(low::<V>(b), bits::<V>(upper, -2, 0x30)),
            threes::<V>(high::<V>(a), bits::<V>(upper, 0, 0x30)),
            threes::<V>(high::<V>(b), bits::<V>(upper, 2, 0x30)),
        ];
        put_scales::<V>(tile, half, &scales);
        put_mins::<V, 6>(tile, half, &scales);
    },
    |taker| {
        let third = V::thirty_two(rows, 0);
        for part in 0..2 {
            let v = V::thirty_two(rows, 32 + 32 * part);
            for b in 0..4 {
                let (by, bit) = (2 * b as isize, (4 * part + b) as isize - 2);
                let both = each::<V>(|q| V::or(bits::<V>(v[q], by, 3), bits::<V>(third[q], bit, 4)));
                taker.take(32 * part + 8 * b, both);
            }
        }
    }
);

strips!(
    Q2K,
    84,
    4,
    |rows, tile, half| {
        put_two::<V>(tile, half, V::four(rows, 80));
        let both = V::sixteen(rows, 0);
        put_scales::<V>(tile, half, &[low::<V>(both[0]), low::<V>(both[1]), low::<V>(both[2]), low::<V>(both[3])]);
        put_mins::<V, 8>(tile, half, &[high::<V>(both[0]), high::<V>(both[1]), high::<V>(both[2]), high::<V>(both[3])]);
    },
    |taker| {
        for part in 0..2 {
            let v = V::thirty_two(rows, 16 + 32 * part);
            for b in 0..4 {
                taker.take(32 * part + 8 * b, each::<V>(|q| bits::<V>(v[q], 2 * b as isize, 3)));
            }
        }
    }
);
