//! Types whose scales are f32: how some rows of a block become tiles.

use super::Strips;
use super::lanes::{Lanes, Place, Rows};
use super::tile::{Bytes32, SPREAD, high, low};
use crate::quant::activations::SMALL;
use crate::quant::product::STRIP;
use crate::quant::unpack::{
    Block32, E2M1_VALUES, IQ4_VALUES, Iq4Nl, Iq4Xs, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Tq1_0, Tq2_0, half_of_power,
};

/// [`Strips`] of tiles of 32 numbers of one kind: the type, the bytes and tiles of a block, the kind of tile, the product
/// with it, and how to unpack; also two at a time, where a scale of two bytes keeps one block's lanes from being aligned.
macro_rules! strips {
    ($ty:ident, $bytes:expr, $tiles:expr, $tile:ty, $multiply:expr, |$rows:ident, $to:ident, $side:ident| $body:block
     $(, |$two_rows:ident, $two:ident, $two_side:ident| $two_body:block)?) => {
        impl<V: Lanes> Strips<V> for $ty {
            const BYTES: usize = $bytes;
            type Tile = $tile;
            const TILES: usize = $tiles;
            #[inline(always)]
            unsafe fn unpack($rows: Rows, $to: *mut $tile, $side: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $body }
            }
            $(
            const IN_TWOS: bool = true;
            #[inline(always)]
            unsafe fn unpack_two($two_rows: Rows, $two: *mut $tile, $two_side: usize) {
                // SAFETY: passed on from the caller.
                unsafe { $two_body }
            }
            )?
            #[inline(always)]
            unsafe fn multiply<const M: usize>(tiles: &[$tile], place: &Place<'_>, sums: &mut [[f32; STRIP]; M]) {
                // SAFETY: passed on from the caller.
                unsafe { $multiply(tiles, place, sums) }
            }
        }
    };
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

/// Sixteen bytes of nibbles, the lower ones of which are the first sixteen numbers: four of each row at a time to `put`.
#[inline(always)]
unsafe fn nibbles<V: Lanes>(rows: Rows, at: usize, put: impl Fn(usize, V::I)) {
    // SAFETY: passed on from the caller.
    unsafe { put_nibbles::<V>(V::sixteen(rows, at), put) }
}

/// [`nibbles`] of these lanes.
#[inline(always)]
unsafe fn put_nibbles<V: Lanes>(v: [V::I; 4], put: impl Fn(usize, V::I)) {
    for q in 0..4 {
        // SAFETY: passed on from the caller.
        unsafe {
            put(q, low::<V>(v[q]));
            put(q + 4, high::<V>(v[q]));
        }
    }
}

/// The same with a fifth bit each, in a word of their own.
#[inline(always)]
unsafe fn fives<V: Lanes>(rows: Rows, word: usize, at: usize, put: impl Fn(usize, V::I)) {
    // SAFETY: passed on from the caller.
    unsafe { put_fives::<V>(V::four(rows, word), V::sixteen(rows, at), put) }
}

/// [`fives`] of the word of bits and of the nibbles.
#[inline(always)]
unsafe fn put_fives<V: Lanes>(bits: V::I, v: [V::I; 4], put: impl Fn(usize, V::I)) {
    // SAFETY: passed on from the caller.
    unsafe {
        let bits = [bits, V::right_32(bits, 4)];
        put_nibbles::<V>(v, |q, v| put(q, V::or(v, fifth::<V>(&bits, q))));
    }
}

/// Lanes that begin in the middle of those of a line, whose number `at` is the first.
#[inline(always)]
unsafe fn between<V: Lanes, const N: usize>(line: &[V::I], at: usize) -> [V::I; N] {
    let mut lanes = [line[at]; N];
    for (i, lanes) in lanes.iter_mut().enumerate() {
        // SAFETY: passed on from the caller.
        *lanes = unsafe { V::joined(line[at + i], line[at + i + 1]) };
    }
    lanes
}

/// How four numbers of each row are written that something was added to.
#[inline(always)]
unsafe fn to_moved<V: Lanes>(tile: *mut V::Moved, side: usize, by: u8) -> impl Fn(usize, V::I) {
    // SAFETY: passed on from the caller.
    move |q, v| unsafe { V::put_moved(tile, side, q, v, by) }
}

/// The same for bytes as they are.
#[inline(always)]
unsafe fn to_bytes<V: Lanes>(tile: *mut Bytes32, side: usize) -> impl Fn(usize, V::I) {
    // SAFETY: passed on from the caller.
    move |q, v| unsafe { V::put(v, &raw mut (*tile).q[q], side) }
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

strips!(Q4_1, 20, 1, Bytes32, V::bytes32::<M, 8>, |rows, tile, side| {
    put_minimum::<V>(tile, side, V::head(rows));
    nibbles::<V>(rows, 4, to_bytes::<V>(tile, side));
});

strips!(Q5_1, 24, 1, Bytes32, V::bytes32::<M, 4>, |rows, tile, side| {
    put_minimum::<V>(tile, side, V::head(rows));
    fives::<V>(rows, 4, 8, to_bytes::<V>(tile, side));
});

strips!(
    Q4_0,
    18,
    1,
    V::Moved,
    V::moved32::<M, 8>,
    |rows, tile, side| {
        V::put_moved_scale(tile, side, V::head_half(rows));
        nibbles::<V>(rows, 2, to_moved::<V>(tile, side, 8));
    },
    |rows, two, side| {
        let (line, last) = (V::thirty_two(rows, 0), V::four(rows, 32));
        V::put_moved_scale(two, side, V::two_halves(line[0])[0]);
        put_nibbles::<V>(between::<V, 4>(&line, 0), to_moved::<V>(two, side, 8));
        V::put_moved_scale(two.add(1), side, V::two_halves(line[4])[1]);
        put_nibbles::<V>([line[5], line[6], line[7], last], to_moved::<V>(two.add(1), side, 8));
    }
);

strips!(
    Q5_0,
    22,
    1,
    V::Moved,
    V::moved32::<M, 4>,
    |rows, tile, side| {
        V::put_moved_scale(tile, side, V::head_half(rows));
        fives::<V>(rows, 2, 6, to_moved::<V>(tile, side, 16));
    },
    |rows, two, side| {
        let (line, rest) = (V::thirty_two(rows, 0), V::sixteen(rows, 28));
        let [bits, v @ ..] = between::<V, 5>(&line, 0);
        V::put_moved_scale(two, side, V::two_halves(line[0])[0]);
        put_fives::<V>(bits, v, to_moved::<V>(two, side, 16));
        V::put_moved_scale(two.add(1), side, V::two_halves(line[5])[1]);
        put_fives::<V>(line[6], rest, to_moved::<V>(two.add(1), side, 16));
    }
);

strips!(Mxfp4, 17, 1, V::Moved, V::moved32::<M, 4>, |rows, tile, side| {
    static VALUES: [u8; 16] = moved(E2M1_VALUES, 12);
    let mut scales = [0.0_f32; STRIP];
    for row in 0..V::ROWS {
        scales[row] = half_of_power(*rows.at(row));
    }
    V::put_moved_scale(tile, side, V::load_f(scales.as_ptr()));
    let put = to_moved::<V>(tile, side, 12);
    nibbles::<V>(rows, 1, |q, v| put(q, V::look_up(&VALUES, v)));
});

/// Types that are read one row at a time: they are rare.
unsafe fn put_plain<V: Lanes, B: Block32>(rows: Rows, tiles: *mut V::Moved, side: usize) {
    let (by, mut quads, mut scales) =
        (B::OFFSET.expect("numbers below 32"), [[[0_u8; 4 * STRIP]; SMALL / 4]; 8], [[0.0_f32; STRIP]; 8]);
    for row in 0..V::ROWS {
        let (mut q, mut d) = ([0_i8; 256], [0.0_f32; 8]);
        // SAFETY: a block is readable at each row.
        let block = unsafe { std::slice::from_raw_parts(rows.at(row), B::TYPE.block_bytes()) };
        B::unpack(block, &mut q[..B::TYPE.block_len()], &mut d, &mut []);
        for (t, q) in q.chunks_exact(SMALL).enumerate() {
            scales[t][row] = d[t];
            q.iter().enumerate().for_each(|(i, &q)| quads[t][i / 4][4 * row + i % 4] = (q + by) as u8);
        }
    }
    for t in 0..B::TYPE.block_len() / SMALL {
        // SAFETY: tiles are writable; a vector is no longer than what it is read from.
        unsafe {
            V::put_moved_scale(tiles.add(t), side, V::load_f(scales[t].as_ptr()));
            for (q, quad) in quads[t].iter().enumerate() {
                V::put_moved(tiles.add(t), side, q, quad.as_ptr().cast::<V::I>().read_unaligned(), by as u8);
            }
        }
    }
}

strips!(Tq1_0, 54, 8, V::Moved, V::moved32::<M, 8>, |rows, tiles, side| { put_plain::<V, Tq1_0>(rows, tiles, side) });
strips!(Tq2_0, 66, 8, V::Moved, V::moved32::<M, 8>, |rows, tiles, side| { put_plain::<V, Tq2_0>(rows, tiles, side) });

strips!(
    Q8_0,
    34,
    1,
    V::Signed,
    V::signed32::<M>,
    |rows, tile, side| {
        V::put_signed_scale(tile, side, V::head_half(rows));
        let v = V::thirty_two(rows, 2);
        for q in 0..8 {
            V::put_signed(tile, side, q, v[q]);
        }
    },
    |rows, two, side| {
        let (line, rest, last) = (V::thirty_two(rows, 0), V::thirty_two(rows, 32), V::four(rows, 64));
        V::put_signed_scale(two, side, V::two_halves(line[0])[0]);
        V::put_signed_scale(two.add(1), side, V::two_halves(rest[0])[1]);
        for q in 0..8 {
            V::put_signed(two, side, q, V::joined(line[q], if q < 7 { line[q + 1] } else { rest[0] }));
            V::put_signed(two.add(1), side, q, if q < 7 { rest[q + 1] } else { last });
        }
    }
);

/// Nibbles that stand for the values of a table.
#[inline(always)]
unsafe fn put_codes<V: Lanes>(rows: Rows, at: usize, tile: *mut V::Signed, half: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        static VALUES: [u8; 16] = moved(IQ4_VALUES, 0);
        nibbles::<V>(rows, at, |q, v| V::put_signed(tile, half, q, V::look_up(&VALUES, v)));
    }
}

strips!(Iq4Nl, 18, 1, V::Signed, V::signed32::<M>, |rows, tile, side| {
    V::put_signed_scale(tile, side, V::head_half(rows));
    put_codes::<V>(rows, 2, tile, side);
});

strips!(Iq4Xs, 136, 8, V::Signed, V::signed32::<M>, |rows, tiles, side| {
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
