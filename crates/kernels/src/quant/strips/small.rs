//! Types whose scales are f32: how some rows of a block become tiles.

use super::Strips;
use super::lanes::{Lanes, Place, Rows};
use super::tile::{Bytes32, SPREAD, high, low};
use crate::quant::activations::SMALL;
use crate::quant::product::STRIP;
use crate::quant::unpack::{
    Block32, E2M1_VALUES, IQ4_VALUES, Iq4Nl, Iq4Xs, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Tq1_0, Tq2_0, half_of_power,
};

/// [`Strips`] of unsigned bytes: the bytes and tiles of a block, how many sums fit into 16 bits, and how to unpack.
macro_rules! bytes {
    ($ty:ident, $bytes:expr, $tiles:expr, $fours:expr, |$rows:ident, $tile:ident, $half:ident| $body:block) => {
        impl<V: Lanes> Strips<V> for $ty {
            const BYTES: usize = $bytes;
            type Tile = Bytes32;
            const TILES: usize = $tiles;
            #[inline(always)]
            unsafe fn unpack($rows: Rows, $tile: *mut Bytes32, $half: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $body }
            }
            #[inline(always)]
            unsafe fn multiply<const M: usize>(tiles: &[Bytes32], place: &Place<'_>, sums: &mut [[f32; STRIP]; M]) {
                // SAFETY: passed on from the caller.
                unsafe { V::bytes32::<M, $fours>(tiles, place, sums) }
            }
            #[inline(always)]
            unsafe fn stream<const M: usize>(
                rows: Rows,
                blocks: usize,
                place: &Place<'_>,
                sums: &mut [[f32; STRIP]; M],
            ) -> bool {
                // SAFETY: passed on from the caller.
                $tiles == 1 && unsafe { V::stream_bytes32::<Self, M>(rows, blocks, place, sums) }
            }
        }
    };
}

/// The same for signed numbers of eight bits.
macro_rules! words {
    ($ty:ident, $bytes:expr, $tiles:expr, |$rows:ident, $tile:ident, $half:ident| $body:block) => {
        impl<V: Lanes> Strips<V> for $ty {
            const BYTES: usize = $bytes;
            type Tile = V::Signed;
            const TILES: usize = $tiles;
            #[inline(always)]
            unsafe fn unpack($rows: Rows, $tile: *mut V::Signed, $half: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $body }
            }
            #[inline(always)]
            unsafe fn multiply<const M: usize>(tiles: &[V::Signed], place: &Place<'_>, sums: &mut [[f32; STRIP]; M]) {
                // SAFETY: passed on from the caller.
                unsafe { V::signed32::<M>(tiles, place, sums) }
            }
            #[inline(always)]
            unsafe fn stream<const M: usize>(
                rows: Rows,
                blocks: usize,
                place: &Place<'_>,
                sums: &mut [[f32; STRIP]; M],
            ) -> bool {
                // SAFETY: passed on from the caller.
                $tiles == 1 && unsafe { V::stream_signed32::<Self, M>(rows, blocks, place, sums) }
            }
        }
    };
}

/// Scales, and minima that make up for what was added to the numbers.
#[inline(always)]
unsafe fn put_offset<V: Lanes>(tile: *mut Bytes32, half: usize, d: V::F, offset: f32) {
    // SAFETY: passed on from the caller.
    unsafe {
        V::put_f(d, &raw mut (*tile).d, half);
        V::put_f(V::times(d, V::floats(offset)), &raw mut (*tile).min, half);
    }
}

/// A scale and what is added, both in half precision.
#[inline(always)]
unsafe fn put_minimum<V: Lanes>(tile: *mut Bytes32, half: usize, pairs: V::I) {
    // SAFETY: passed on from the caller.
    unsafe {
        let [d, m] = V::two_halves(pairs);
        V::put_f(d, &raw mut (*tile).d, half);
        V::put_f(V::negative(m), &raw mut (*tile).min, half);
    }
}

/// Sixteen bytes of nibbles: the lower ones are the first sixteen numbers.
#[inline(always)]
unsafe fn put_nibbles<V: Lanes>(rows: Rows, at: usize, tile: *mut Bytes32, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let v = V::sixteen(rows, at);
        for q in 0..4 {
            V::put(low::<V>(v[q]), &raw mut (*tile).q[q], half);
            V::put(high::<V>(v[q]), &raw mut (*tile).q[q + 4], half);
        }
    }
}

/// Nibbles with a fifth bit each, in a word of their own.
#[inline(always)]
unsafe fn put_fives<V: Lanes>(rows: Rows, word: usize, at: usize, tile: *mut Bytes32, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        let (bits, v) = (V::four(rows, word), V::sixteen(rows, at));
        let bits = [bits, V::right_32(bits, 4)];
        for q in 0..4 {
            V::put(V::or(low::<V>(v[q]), fifth::<V>(&bits, q)), &raw mut (*tile).q[q], half);
            V::put(V::or(high::<V>(v[q]), fifth::<V>(&bits, q + 4)), &raw mut (*tile).q[q + 4], half);
        }
    }
}

/// 16 where the bit of a number is set, for four numbers a lane. `bits` are all 32, and the same four places down.
#[inline(always)]
unsafe fn fifth<V: Lanes>(bits: &[V::I; 2], q: usize) -> V::I {
    /// 16 for each power of two.
    static POWERS: [u8; 16] = [0, 16, 16, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: passed on from the caller.
    unsafe {
        let byte = V::shuffle(bits[q % 2], &SPREAD[q / 2]);
        V::look_up(&POWERS, V::and(byte, V::words(0x0804_0201)))
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
    put_offset::<V>(tile, side, V::head_half(rows), 8.0);
    put_nibbles::<V>(rows, 2, tile, side);
});

bytes!(Q4_1, 20, 1, 8, |rows, tile, side| {
    put_minimum::<V>(tile, side, V::head(rows));
    put_nibbles::<V>(rows, 4, tile, side);
});

bytes!(Q5_0, 22, 1, 4, |rows, tile, side| {
    put_offset::<V>(tile, side, V::head_half(rows), 16.0);
    put_fives::<V>(rows, 2, 6, tile, side);
});

bytes!(Q5_1, 24, 1, 4, |rows, tile, side| {
    put_minimum::<V>(tile, side, V::head(rows));
    put_fives::<V>(rows, 4, 8, tile, side);
});

bytes!(Mxfp4, 17, 1, 4, |rows, tile, side| {
    let mut scales = [0.0_f32; STRIP];
    for row in 0..V::ROWS {
        scales[row] = half_of_power(*rows.at(row));
    }
    put_offset::<V>(tile, side, V::load_f(scales.as_ptr()), 12.0);
    static VALUES: [u8; 16] = moved(E2M1_VALUES, 12);
    let v = V::sixteen(rows, 1);
    for q in 0..4 {
        V::put(V::look_up(&VALUES, low::<V>(v[q])), &raw mut (*tile).q[q], side);
        V::put(V::look_up(&VALUES, high::<V>(v[q])), &raw mut (*tile).q[q + 4], side);
    }
});

/// Types that are read one row at a time: they are rare.
unsafe fn put_plain<V: Lanes, B: Block32>(rows: Rows, tiles: *mut Bytes32, side: usize) {
    let offset = B::OFFSET.expect("unsigned bytes");
    for r in 0..V::ROWS {
        let (mut q, mut d, mut min) = ([0_i8; 256], [0.0_f32; 8], [0.0_f32; 8]);
        // SAFETY: a block is readable at each row, and tiles are writable.
        unsafe {
            let block = std::slice::from_raw_parts(rows.at(r), B::TYPE.block_bytes());
            B::unpack(block, &mut q[..B::TYPE.block_len()], &mut d, &mut min);
            let row = side * V::ROWS + r;
            for t in 0..B::TYPE.block_len() / SMALL {
                let tile = tiles.add(t);
                (&raw mut (*tile).d[row]).write(d[t]);
                (&raw mut (*tile).min[row]).write(min[t] + f32::from(offset) * d[t]);
                for (i, &q) in q[SMALL * t..][..SMALL].iter().enumerate() {
                    (&raw mut (*tile).q[i / 4][4 * row + i % 4]).write((q + offset) as u8);
                }
            }
        }
    }
}

bytes!(Tq1_0, 54, 8, 8, |rows, tiles, side| { put_plain::<V, Tq1_0>(rows, tiles, side) });
bytes!(Tq2_0, 66, 8, 8, |rows, tiles, side| { put_plain::<V, Tq2_0>(rows, tiles, side) });

words!(Q8_0, 34, 1, |rows, tile, side| {
    V::put_signed_scale(tile, side, V::head_half(rows));
    let v = V::thirty_two(rows, 2);
    for q in 0..8 {
        V::put_signed(tile, side, q, v[q]);
    }
});

/// Nibbles that stand for the values of a table.
#[inline(always)]
unsafe fn put_codes<V: Lanes>(rows: Rows, at: usize, tile: *mut V::Signed, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        static VALUES: [u8; 16] = moved(IQ4_VALUES, 0);
        let v = V::sixteen(rows, at);
        for q in 0..4 {
            V::put_signed(tile, half, q, V::look_up(&VALUES, low::<V>(v[q])));
            V::put_signed(tile, half, q + 4, V::look_up(&VALUES, high::<V>(v[q])));
        }
    }
}

words!(Iq4Nl, 18, 1, |rows, tile, side| {
    V::put_signed_scale(tile, side, V::head_half(rows));
    put_codes::<V>(rows, 2, tile, side);
});

words!(Iq4Xs, 136, 8, |rows, tiles, side| {
    let (head, low_bits) = (V::head(rows), V::four(rows, 4));
    let [d, _] = V::two_halves(head);
    let high_bits = V::right_32(head, 16);
    for b in 0..8 {
        let low = V::right_32(low_bits, 4 * b);
        let low = V::and(low, V::words(15));
        let high = V::right_32(high_bits, 2 * b);
        let high = V::and(high, V::words(3));
        let scale = V::less_32(V::or(low, V::left(high, 4)), V::words(32));
        let tile = tiles.add(b);
        V::put_signed_scale(tile, side, V::times(d, V::to_f(scale)));
        put_codes::<V>(rows, 8 + 16 * b, tile, side);
    }
});
