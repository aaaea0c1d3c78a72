//! Types whose scales are f32: how eight rows of a block become tiles.

use super::Strips;
use super::tile::{Bytes32, Sums, Words32, bytes32, words32};
use super::turn::{PAIR, SPREAD, four, half, high, low, sixteen, thirty_two, twice, two_halves};
use crate::quant::activations::{Activations, SMALL};
use crate::quant::unpack::{
    Block32, E2M1_VALUES, IQ4_VALUES, Iq4Nl, Iq4Xs, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Tq1_0, Tq2_0, half_of_power,
};
use std::arch::x86_64::*;

/// [`Strips`] of unsigned bytes: the bytes and tiles of a block, how many sums fit into 16 bits, and how to unpack.
macro_rules! bytes {
    ($ty:ident, $bytes:expr, $tiles:expr, $fours:expr, |$rows:ident, $tile:ident, $half:ident| $body:block) => {
        impl Strips for $ty {
            const BYTES: usize = $bytes;
            type Tile = Bytes32;
            const TILES: usize = $tiles;
            #[inline(always)]
            unsafe fn unpack($rows: &[*const u8; 8], $tile: *mut Bytes32, $half: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $body }
            }
            #[inline(always)]
            unsafe fn multiply<const M: usize>(
                tiles: &[Bytes32],
                x: &Activations<'_>,
                row: usize,
                first: usize,
                sums: &mut Sums<M>,
            ) {
                // SAFETY: passed on from the caller.
                unsafe { bytes32::<M, $fours>(tiles, x, row, first, sums) }
            }
        }
    };
}

/// The same for signed numbers of eight bits.
macro_rules! words {
    ($ty:ident, $bytes:expr, $tiles:expr, |$rows:ident, $tile:ident, $half:ident| $body:block) => {
        impl Strips for $ty {
            const BYTES: usize = $bytes;
            type Tile = Words32;
            const TILES: usize = $tiles;
            #[inline(always)]
            unsafe fn unpack($rows: &[*const u8; 8], $tile: *mut Words32, $half: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $body }
            }
            #[inline(always)]
            unsafe fn multiply<const M: usize>(
                tiles: &[Words32],
                x: &Activations<'_>,
                row: usize,
                first: usize,
                sums: &mut Sums<M>,
            ) {
                // SAFETY: passed on from the caller.
                unsafe { words32::<M>(tiles, x, row, first, sums) }
            }
        }
    };
}

/// Scales, and minima that make up for what was added to the numbers.
#[inline(always)]
unsafe fn put_offset(tile: *mut Bytes32, half: usize, d: __m256, offset: f32) {
    // SAFETY: passed on from the caller.
    unsafe {
        (*tile).d[half] = d;
        (*tile).min[half] = _mm256_mul_ps(d, _mm256_set1_ps(offset));
    }
}

/// A scale and what is added, both in half precision.
#[inline(always)]
unsafe fn put_minimum(tile: *mut Bytes32, half: usize, pairs: __m256i) {
    // SAFETY: passed on from the caller.
    unsafe {
        let [d, m] = two_halves(pairs);
        (*tile).d[half] = d;
        (*tile).min[half] = _mm256_xor_ps(m, _mm256_set1_ps(-0.0));
    }
}

/// Sixteen bytes of nibbles: the lower ones are the first sixteen numbers.
#[inline(always)]
unsafe fn put_nibbles(rows: &[*const u8; 8], at: usize, tile: *mut Bytes32, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let v = sixteen(rows, at);
        for q in 0..4 {
            (*tile).q[q][half] = low(v[q]);
            (*tile).q[q + 4][half] = high(v[q]);
        }
    }
}

/// Nibbles with a fifth bit each, in a word of their own.
#[inline(always)]
unsafe fn put_fives(rows: &[*const u8; 8], word: usize, at: usize, tile: *mut Bytes32, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let (bits, v) = (four(rows, word), sixteen(rows, at));
        let bits = [bits, _mm256_srli_epi32::<4>(bits)];
        for q in 0..4 {
            (*tile).q[q][half] = _mm256_or_si256(low(v[q]), fifth(&bits, q));
            (*tile).q[q + 4][half] = _mm256_or_si256(high(v[q]), fifth(&bits, q + 4));
        }
    }
}

/// 16 where the bit of a number is set, for four numbers a lane. `bits` are all 32, and the same four places down.
#[inline(always)]
unsafe fn fifth(bits: &[__m256i; 2], q: usize) -> __m256i {
    /// 16 for each power of two.
    static POWERS: [u8; 16] = [0, 16, 16, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: passed on from the caller.
    unsafe {
        let byte = _mm256_shuffle_epi8(bits[q % 2], twice(&SPREAD[q / 2]));
        _mm256_shuffle_epi8(twice(&POWERS), _mm256_and_si256(byte, _mm256_set1_epi32(0x0804_0201)))
    }
}

/// A table of signed values, moved up by `offset`.
const fn moved(values: [i8; 16], offset: i8) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = values[i].wrapping_add(offset) as u8;
        i += 1;
    }
    table
}

bytes!(Q4_0, 18, 1, 8, |rows, tile, side| {
    put_offset(tile, side, half(rows, 0), 8.0);
    put_nibbles(rows, 2, tile, side);
});

bytes!(Q4_1, 20, 1, 8, |rows, tile, side| {
    put_minimum(tile, side, four(rows, 0));
    put_nibbles(rows, 4, tile, side);
});

bytes!(Q5_0, 22, 1, 4, |rows, tile, side| {
    put_offset(tile, side, half(rows, 0), 16.0);
    put_fives(rows, 2, 6, tile, side);
});

bytes!(Q5_1, 24, 1, 4, |rows, tile, side| {
    put_minimum(tile, side, four(rows, 0));
    put_fives(rows, 4, 8, tile, side);
});

bytes!(Mxfp4, 17, 1, 4, |rows, tile, side| {
    let scales = rows.map(|row| half_of_power(*row));
    put_offset(tile, side, _mm256_loadu_ps(scales.as_ptr()), 12.0);
    static VALUES: [u8; 16] = moved(E2M1_VALUES, 12);
    let v = sixteen(rows, 1);
    for q in 0..4 {
        (*tile).q[q][side] = _mm256_shuffle_epi8(twice(&VALUES), low(v[q]));
        (*tile).q[q + 4][side] = _mm256_shuffle_epi8(twice(&VALUES), high(v[q]));
    }
});

/// Types that are read one row at a time: they are rare.
unsafe fn put_plain<B: Block32>(rows: &[*const u8; 8], tiles: *mut Bytes32, side: usize) {
    let offset = B::OFFSET.expect("unsigned bytes");
    for (r, row) in rows.iter().enumerate() {
        let (mut q, mut d, mut min) = ([0_i8; 256], [0.0_f32; 8], [0.0_f32; 8]);
        // SAFETY: a block is readable at each row, and tiles are writable.
        unsafe {
            let block = std::slice::from_raw_parts(*row, B::TYPE.block_bytes());
            B::unpack(block, &mut q[..B::TYPE.block_len()], &mut d, &mut min);
            for t in 0..B::TYPE.block_len() / SMALL {
                let tile = tiles.add(t);
                (&raw mut (*tile).d[side]).cast::<f32>().add(r).write(d[t]);
                (&raw mut (*tile).min[side]).cast::<f32>().add(r).write(min[t] + f32::from(offset) * d[t]);
                for (i, &q) in q[SMALL * t..][..SMALL].iter().enumerate() {
                    let vector = &raw mut (*tile).q[i / 4][side];
                    vector.cast::<i8>().add(4 * r + i % 4).write(q + offset);
                }
            }
        }
    }
}

bytes!(Tq1_0, 54, 8, 8, |rows, tiles, side| { put_plain::<Tq1_0>(rows, tiles, side) });
bytes!(Tq2_0, 66, 8, 8, |rows, tiles, side| { put_plain::<Tq2_0>(rows, tiles, side) });

/// Four signed bytes of each lane, as two vectors of two.
#[inline(always)]
unsafe fn put_signed(tile: *mut Words32, half: usize, q: usize, v: __m256i) {
    // SAFETY: passed on from the caller. A byte in the upper half of 16 bits, moved down, keeps its sign.
    unsafe {
        (*tile).q[2 * q][half] = _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(v, twice(&PAIR[0])));
        (*tile).q[2 * q + 1][half] = _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(v, twice(&PAIR[1])));
    }
}

words!(Q8_0, 34, 1, |rows, tile, side| {
    (*tile).d[side] = half(rows, 0);
    let v = thirty_two(rows, 2);
    for q in 0..8 {
        put_signed(tile, side, q, v[q]);
    }
});

/// Nibbles that stand for the values of a table.
#[inline(always)]
unsafe fn put_codes(rows: &[*const u8; 8], at: usize, tile: *mut Words32, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        static VALUES: [u8; 16] = moved(IQ4_VALUES, 0);
        let v = sixteen(rows, at);
        for q in 0..4 {
            put_signed(tile, half, q, _mm256_shuffle_epi8(twice(&VALUES), low(v[q])));
            put_signed(tile, half, q + 4, _mm256_shuffle_epi8(twice(&VALUES), high(v[q])));
        }
    }
}

words!(Iq4Nl, 18, 1, |rows, tile, side| {
    (*tile).d[side] = half(rows, 0);
    put_codes(rows, 2, tile, side);
});

words!(Iq4Xs, 136, 8, |rows, tiles, side| {
    let (head, low_bits) = (four(rows, 0), four(rows, 4));
    let [d, _] = two_halves(head);
    let high_bits = _mm256_srli_epi32::<16>(head);
    for b in 0..8 {
        let low = _mm256_srl_epi32(low_bits, _mm_cvtsi32_si128(4 * b as i32));
        let low = _mm256_and_si256(low, _mm256_set1_epi32(15));
        let high = _mm256_srl_epi32(high_bits, _mm_cvtsi32_si128(2 * b as i32));
        let high = _mm256_and_si256(high, _mm256_set1_epi32(3));
        let scale = _mm256_sub_epi32(_mm256_or_si256(low, _mm256_slli_epi32::<4>(high)), _mm256_set1_epi32(32));
        let tile = tiles.add(b);
        (*tile).d[side] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(scale));
        put_codes(rows, 8 + 16 * b, tile, side);
    }
});
