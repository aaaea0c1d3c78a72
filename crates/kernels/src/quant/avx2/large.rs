//! Types whose scales are integers: how eight rows of a block become a tile.

use super::Strips;
use super::tile::{Bytes256, Sums, bytes256};
use super::turn::{PAIR, SAME, four, high, low, sixteen, thirty_two, twice, two_halves};
use crate::quant::activations::Activations;
use crate::quant::unpack::{Block256, Q2K, Q3K, Q4K, Q5K, Q6K};
use std::arch::x86_64::*;

/// [`Strips`]: the bytes of a block, how many sums fit into 16 bits, and how to unpack.
macro_rules! strips {
    ($ty:ident, $bytes:expr, $fours:expr, |$rows:ident, $tile:ident, $half:ident| $body:block) => {
        impl Strips for $ty {
            const BYTES: usize = $bytes;
            type Tile = Bytes256;
            const TILES: usize = 1;
            #[inline(always)]
            unsafe fn unpack($rows: &[*const u8; 8], $tile: *mut Bytes256, $half: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $body }
            }
            #[inline(always)]
            unsafe fn multiply<const M: usize>(
                tiles: &[Bytes256],
                x: &Activations<'_>,
                row: usize,
                first: usize,
                sums: &mut Sums<M>,
            ) {
                const SUB: usize = <$ty as Block256>::SUB;
                const MIN: bool = <$ty as Block256>::OFFSET == 0;
                // SAFETY: passed on from the caller.
                unsafe { bytes256::<M, SUB, $fours, MIN>(tiles, x, row, first, sums) }
            }
        }
    };
}

/// Each byte shifted by as many bits, to the right or, where negative, to the left; of it the bits of `mask`.
#[inline(always)]
unsafe fn bits(v: __m256i, by: isize, mask: u8) -> __m256i {
    let count = by.unsigned_abs() as i32;
    // SAFETY: passed on from the caller. What crosses over from a neighbour is masked away.
    unsafe {
        let count = _mm_cvtsi32_si128(count);
        let moved = if by < 0 { _mm256_sll_epi16(v, count) } else { _mm256_srl_epi16(v, count) };
        _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8))
    }
}

/// Signed scales, four to a lane, twice each in 16 bits.
#[inline(always)]
unsafe fn put_scales(tile: *mut Bytes256, half: usize, scales: &[__m256i]) {
    for (i, &four) in scales.iter().enumerate() {
        for j in 0..4 {
            // SAFETY: passed on from the caller. A byte in the upper half, moved down, keeps its sign.
            unsafe {
                let wide = _mm256_shuffle_epi8(four, twice(&SAME[j]));
                (*tile).scales[4 * i + j][half] = _mm256_srai_epi16::<8>(wide);
            }
        }
    }
}

/// Minima: signed bytes, four to a lane, two neighbours in 16 bits each, times 2^(8 - `SHIFT`).
#[inline(always)]
unsafe fn put_mins<const SHIFT: i32>(tile: *mut Bytes256, half: usize, mins: &[__m256i]) {
    for (i, &four) in mins.iter().enumerate() {
        for j in 0..2 {
            // SAFETY: as for scales.
            unsafe {
                let wide = _mm256_shuffle_epi8(four, twice(&PAIR[j]));
                (*tile).mins[2 * i + j][half] = _mm256_srai_epi16::<SHIFT>(wide);
            }
        }
    }
}

/// Scales of the numbers and of the minima, in half precision.
#[inline(always)]
unsafe fn put_two(tile: *mut Bytes256, half: usize, pairs: __m256i) {
    // SAFETY: passed on from the caller.
    unsafe { [(*tile).d[half], (*tile).dmin[half]] = two_halves(pairs) }
}

/// The scale of the numbers; minima have the same.
#[inline(always)]
unsafe fn put_one(tile: *mut Bytes256, half: usize, rows: &[*const u8; 8], at: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let d = super::turn::half(rows, at);
        ((*tile).d[half], (*tile).dmin[half]) = (d, d);
    }
}

/// Sixteen bytes of scales, minima and integer scales of six bits: as `unpack::scales_and_mins` reads them.
#[inline(always)]
unsafe fn put_sixes(rows: &[*const u8; 8], tile: *mut Bytes256, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let [pairs, scales, mins, rest] = sixteen(rows, 0);
        put_two(tile, half, pairs);
        let upper = _mm256_or_si256(low(rest), bits(scales, 2, 0x30));
        put_scales(tile, half, &[bits(scales, 0, 63), upper]);
        let upper = _mm256_or_si256(high(rest), bits(mins, 2, 0x30));
        put_mins::<8>(tile, half, &[bits(mins, 0, 63), upper]);
    }
}

strips!(Q4K, 144, 8, |rows, tile, half| {
    put_sixes(rows, tile, half);
    for c in 0..4 {
        let v = thirty_two(rows, 16 + 32 * c);
        for q in 0..8 {
            (*tile).q[16 * c + q][half] = low(v[q]);
            (*tile).q[16 * c + 8 + q][half] = high(v[q]);
        }
    }
});

strips!(Q5K, 176, 4, |rows, tile, half| {
    put_sixes(rows, tile, half);
    let fifth = thirty_two(rows, 16);
    for c in 0..4 {
        let v = thirty_two(rows, 48 + 32 * c);
        let by = 2 * c as isize - 4;
        for q in 0..8 {
            (*tile).q[16 * c + q][half] = _mm256_or_si256(low(v[q]), bits(fifth[q], by, 16));
            (*tile).q[16 * c + 8 + q][half] = _mm256_or_si256(high(v[q]), bits(fifth[q], by + 1, 16));
        }
    }
});

strips!(Q6K, 210, 2, |rows, tile, half| {
    put_one(tile, half, rows, 208);
    let scales = sixteen(rows, 192);
    put_scales(tile, half, &scales);
    put_mins::<3>(tile, half, &scales);
    for part in 0..2 {
        let upper = thirty_two(rows, 128 + 32 * part);
        for side in 0..2 {
            let v = thirty_two(rows, 64 * part + 32 * side);
            let by = 2 * side as isize - 4;
            for q in 0..8 {
                let at = 32 * part + 8 * side + q;
                (*tile).q[at][half] = _mm256_or_si256(low(v[q]), bits(upper[q], by, 0x30));
                (*tile).q[at + 16][half] = _mm256_or_si256(high(v[q]), bits(upper[q], by + 4, 0x30));
            }
        }
    }
});

/// Four of the scales of Q3_K, from the lower four bits of each and the upper two.
#[inline(always)]
unsafe fn threes(lower: __m256i, upper: __m256i) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_sub_epi8(_mm256_or_si256(lower, upper), _mm256_set1_epi8(32)) }
}

strips!(Q3K, 110, 4, |rows, tile, half| {
    put_one(tile, half, rows, 108);
    let (a, b, upper) = (four(rows, 96), four(rows, 100), four(rows, 104));
    let scales = [
        threes(low(a), bits(upper, -4, 0x30)),
        threes(low(b), bits(upper, -2, 0x30)),
        threes(high(a), bits(upper, 0, 0x30)),
        threes(high(b), bits(upper, 2, 0x30)),
    ];
    put_scales(tile, half, &scales);
    put_mins::<6>(tile, half, &scales);
    let third = thirty_two(rows, 0);
    for part in 0..2 {
        let v = thirty_two(rows, 32 + 32 * part);
        for b in 0..4 {
            for q in 0..8 {
                let bit = bits(third[q], (4 * part + b) as isize - 2, 4);
                (*tile).q[32 * part + 8 * b + q][half] = _mm256_or_si256(bits(v[q], 2 * b as isize, 3), bit);
            }
        }
    }
});

strips!(Q2K, 84, 4, |rows, tile, half| {
    put_two(tile, half, four(rows, 80));
    let both = sixteen(rows, 0);
    put_scales(tile, half, &[low(both[0]), low(both[1]), low(both[2]), low(both[3])]);
    put_mins::<8>(tile, half, &[high(both[0]), high(both[1]), high(both[2]), high(both[3])]);
    for part in 0..2 {
        let v = thirty_two(rows, 16 + 32 * part);
        for b in 0..4 {
            for q in 0..8 {
                (*tile).q[32 * part + 8 * b + q][half] = bits(v[q], 2 * b as isize, 3);
            }
        }
    }
});
