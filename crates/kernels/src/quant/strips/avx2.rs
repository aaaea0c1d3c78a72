//! [`Lanes`] of 256 bits, without a dot instruction: eight rows to a vector, half of a strip.
//!
//! Sums of four products of bytes are added up in 16 bits as long as they fit, which is what makes few bits fast.

use super::lanes::{Lanes, Place, Quad, Rows};
use super::tile::{Bytes32, Bytes256, PAIR, SAME};
use crate::quant::activations::{LARGE, SMALL};
use crate::quant::product::STRIP;
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Avx2;

/// Vectors in a strip.
const VECTORS: usize = 2;

/// 32 numbers of each row: `d * q`, two neighbours of 16 bits to a lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Words32 {
    q: [Quad; SMALL / 2],
    d: [f32; STRIP],
}

/// The same sixteen bytes in both halves.
#[inline(always)]
unsafe fn twice(bytes: &'static [u8; 16]) -> __m256i {
    // SAFETY: sixteen bytes are read.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
}

/// Sixteen bytes of each of two rows.
#[inline(always)]
unsafe fn two_rows(low: *const u8, high: *const u8) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe {
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(_mm_loadu_si128(low.cast())), _mm_loadu_si128(high.cast()))
    }
}

/// Both vectors of a part of a tile.
#[inline(always)]
unsafe fn both(part: &Quad) -> [__m256i; VECTORS] {
    // SAFETY: tiles are aligned.
    unsafe { part.as_ptr().cast::<[__m256i; VECTORS]>().read() }
}

/// Both vectors of numbers.
#[inline(always)]
unsafe fn both_f(part: &[f32; STRIP]) -> [__m256; VECTORS] {
    // SAFETY: as many are read as there are.
    unsafe { part.as_ptr().cast::<[__m256; VECTORS]>().read_unaligned() }
}

/// Adds sums of two neighbouring products, of four in a lane, to sums in 16 bits.
#[inline(always)]
unsafe fn add_fours(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)) }
}

/// The number, which the compiler must not know where `M` rows fill the registers: it would unroll a loop of that many
/// steps, and reorder it such that sums and weights go through memory, at half the speed.
#[inline(always)]
fn opaque<const M: usize>(count: usize) -> usize {
    if M > 2 { std::hint::black_box(count).min(count) } else { count }
}

/// The sums of `M` rows with a strip, in registers.
type Sums<const M: usize> = [[__m256; VECTORS]; M];

#[inline(always)]
unsafe fn load<const M: usize>(sums: &[[f32; STRIP]; M]) -> Sums<M> {
    // SAFETY: passed on from the caller.
    std::array::from_fn(|i| unsafe { both_f(&sums[i]) })
}

#[inline(always)]
unsafe fn store<const M: usize>(sums: &mut [[f32; STRIP]; M], from: &Sums<M>) {
    for (sums, from) in sums.iter_mut().zip(from) {
        // SAFETY: as many are written as there are.
        unsafe { sums.as_mut_ptr().cast::<[__m256; VECTORS]>().write_unaligned(*from) };
    }
}

/// Products with unsigned bytes. `MIN`: blocks have minima; else the sums begin with what makes up for what was added.
///
/// # Safety
/// As [`Lanes::bytes32`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn unsigned32<const M: usize, const FOURS: usize, const MIN: bool>(
    tiles: &[Bytes32],
    place: &Place<'_>,
    to: &mut [[f32; STRIP]; M],
) {
    // SAFETY: a group of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        place.check::<M>(tiles.len(), SMALL / 4, 1);
        let mut sums = load(to);
        let parts = opaque::<M>(SMALL / 4 / FOURS);
        let fours = if FOURS > 4 { opaque::<M>(FOURS) } else { FOURS };
        for (b, tile) in tiles.iter().enumerate() {
            let x = place.block::<M>(b, SMALL / 4, 1);
            let start = |i: usize| if MIN { _mm256_setzero_si256() } else { _mm256_set1_epi32(x.sum(0, i)) };
            let mut all: [_; M] = std::array::from_fn(|i| [start(i); VECTORS]);
            for part in 0..parts {
                let mut part_sums = [[_mm256_setzero_si256(); VECTORS]; M];
                for q in part * FOURS..part * FOURS + fours {
                    let w = both(tile.q.get_unchecked(q));
                    for i in 0..M {
                        let x = _mm256_set1_epi32(x.unit(q, i));
                        for v in 0..VECTORS {
                            part_sums[i][v] = add_fours(part_sums[i][v], w[v], x);
                        }
                    }
                }
                for i in 0..M {
                    for v in 0..VECTORS {
                        let wide = _mm256_madd_epi16(part_sums[i][v], _mm256_set1_epi16(1));
                        all[i][v] = _mm256_add_epi32(all[i][v], wide);
                    }
                }
            }
            let (d, min) = (both_f(&tile.d), both_f(&tile.min));
            for i in 0..M {
                let (xd, sum) = (_mm256_set1_ps(x.scale(i)), _mm256_set1_ps(f32::from_bits(x.sum(0, i) as u32)));
                for v in 0..VECTORS {
                    let all = _mm256_cvtepi32_ps(all[i][v]);
                    sums[i][v] = _mm256_fmadd_ps(all, _mm256_mul_ps(d[v], xd), sums[i][v]);
                    if MIN {
                        sums[i][v] = _mm256_fnmadd_ps(min[v], sum, sums[i][v]);
                    }
                }
            }
        }
        store(to, &sums);
    }
}

impl Lanes for Avx2 {
    const ROWS: usize = 8;
    const GROUP: usize = 4;
    type I = __m256i;
    type F = __m256;
    type Signed = Words32;
    /// Without a minimum, which nobody reads.
    type Moved = Bytes32;

    #[inline(always)]
    unsafe fn sixteen(rows: Rows, at: usize) -> [__m256i; 4] {
        // SAFETY: passed on from the caller.
        unsafe {
            let row = |i: usize| rows.at(i).add(at);
            let (r0, r1) = (two_rows(row(0), row(4)), two_rows(row(1), row(5)));
            let (r2, r3) = (two_rows(row(2), row(6)), two_rows(row(3), row(7)));
            let (a, b) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
            let (c, d) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
            [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ]
        }
    }
    #[inline(always)]
    unsafe fn thirty_two(rows: Rows, at: usize) -> [__m256i; 8] {
        // SAFETY: passed on from the caller.
        unsafe {
            let ([a, b, c, d], [e, f, g, h]) = (Self::sixteen(rows, at), Self::sixteen(rows, at + 16));
            [a, b, c, d, e, f, g, h]
        }
    }
    #[inline(always)]
    unsafe fn four(rows: Rows, at: usize) -> __m256i {
        // SAFETY: passed on from the caller.
        unsafe {
            let word = |i: usize| rows.at(i).add(at).cast::<i32>().read_unaligned();
            _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7))
        }
    }
    #[inline(always)]
    unsafe fn tail_half(rows: Rows, end: usize) -> __m256 {
        // SAFETY: passed on from the caller.
        unsafe {
            let half = |i: usize| rows.at(i).add(end - 2).cast::<i16>().read_unaligned();
            let halves = _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
            _mm256_cvtph_ps(halves)
        }
    }
    #[inline(always)]
    unsafe fn head(rows: Rows) -> __m256i {
        // SAFETY: passed on from the caller.
        unsafe { Self::four(rows, 0) }
    }
    #[inline(always)]
    unsafe fn head_half(rows: Rows) -> __m256 {
        // SAFETY: passed on from the caller; no more than the two bytes are read.
        unsafe { Self::tail_half(rows, 2) }
    }
    #[inline(always)]
    unsafe fn two_halves(pairs: __m256i) -> [__m256; 2] {
        // SAFETY: passed on from the caller.
        unsafe {
            let (low, high) = (_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32::<16>(pairs));
            // Quarters: the lower halves of rows 0 to 3, their upper ones, then those of rows 4 to 7.
            let both = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packus_epi32(low, high));
            [_mm256_cvtph_ps(_mm256_castsi256_si128(both)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(both))]
        }
    }
    #[inline(always)]
    unsafe fn load_f(from: *const f32) -> __m256 {
        // SAFETY: passed on from the caller.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn bytes(byte: u8) -> __m256i {
        // SAFETY: passed on from the caller; so below.
        unsafe { _mm256_set1_epi8(byte as i8) }
    }
    #[inline(always)]
    unsafe fn words(word: u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(word as i32) }
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn less(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sub_epi8(a, b) }
    }
    #[inline(always)]
    unsafe fn less_32(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn joined(low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(low), _mm256_slli_epi32::<16>(high)) }
    }
    #[inline(always)]
    unsafe fn right(v: __m256i, bits: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_srl_epi16(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn left(v: __m256i, bits: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sll_epi16(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn right_32(v: __m256i, bits: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_srl_epi32(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn signed_right(v: __m256i, bits: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sra_epi16(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn shuffle(v: __m256i, order: &'static [u8; 16]) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(v, twice(order)) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &'static [u8; 16], codes: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(twice(table), codes) }
    }
    #[inline(always)]
    unsafe fn times(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn negative(x: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_xor_ps(x, _mm256_set1_ps(-0.0)) }
    }
    #[inline(always)]
    unsafe fn to_f(v: __m256i) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    /// Twice in 16 bits: sums in 16 bits are multiplied, two to a lane.
    #[inline(always)]
    unsafe fn put_scale(four: __m256i, j: usize, to: *mut Quad, half: usize) {
        // SAFETY: as above. A byte in the upper half of 16 bits, moved down, keeps its sign.
        unsafe { Self::put(Self::signed_right(Self::shuffle(four, &SAME[j]), 8), to, half) }
    }
    #[inline(always)]
    unsafe fn put_signed(tile: *mut Words32, half: usize, q: usize, v: __m256i) {
        for i in 0..2 {
            // SAFETY: as above.
            unsafe { Self::put(Self::signed_right(Self::shuffle(v, &PAIR[i]), 8), &raw mut (*tile).q[2 * q + i], half) }
        }
    }
    #[inline(always)]
    unsafe fn put_signed_scale(tile: *mut Words32, half: usize, d: __m256) {
        // SAFETY: as above.
        unsafe { Self::put_f(d, &raw mut (*tile).d, half) }
    }

    #[inline(always)]
    unsafe fn put_moved(tile: *mut Bytes32, half: usize, q: usize, v: __m256i, _by: u8) {
        // SAFETY: as above.
        unsafe { Self::put(v, &raw mut (*tile).q[q], half) }
    }
    #[inline(always)]
    unsafe fn put_moved_scale(tile: *mut Bytes32, half: usize, d: __m256) {
        // SAFETY: as above.
        unsafe { Self::put_f(d, &raw mut (*tile).d, half) }
    }

    #[inline(always)]
    unsafe fn bytes32<const M: usize, const FOURS: usize>(
        tiles: &[Bytes32],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        // SAFETY: passed on from the caller.
        unsafe { unsigned32::<M, FOURS, true>(tiles, place, to) }
    }

    #[inline(always)]
    unsafe fn moved32<const M: usize, const FOURS: usize>(
        tiles: &[Bytes32],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        // SAFETY: passed on from the caller.
        unsafe { unsigned32::<M, FOURS, false>(tiles, place, to) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline(never)]
    unsafe fn signed32<const M: usize>(tiles: &[Words32], place: &Place<'_>, to: &mut [[f32; STRIP]; M]) {
        // SAFETY: a group of activations has as many blocks as was checked; instructions are promised.
        unsafe {
            place.check::<M>(tiles.len(), SMALL / 2, 0);
            let mut sums = load(to);
            let twos = opaque::<M>(SMALL / 2);
            for (b, tile) in tiles.iter().enumerate() {
                let x = place.block::<M>(b, SMALL / 2, 0);
                let mut all = [[_mm256_setzero_si256(); VECTORS]; M];
                for q in 0..twos {
                    let w = both(tile.q.get_unchecked(q));
                    for i in 0..M {
                        let x = _mm256_set1_epi32(x.unit(q, i));
                        for v in 0..VECTORS {
                            all[i][v] = _mm256_add_epi32(all[i][v], _mm256_madd_epi16(w[v], x));
                        }
                    }
                }
                let d = both_f(&tile.d);
                for i in 0..M {
                    let xd = _mm256_set1_ps(x.scale(i));
                    for v in 0..VECTORS {
                        let all = _mm256_cvtepi32_ps(all[i][v]);
                        sums[i][v] = _mm256_fmadd_ps(all, _mm256_mul_ps(d[v], xd), sums[i][v]);
                    }
                }
            }
            store(to, &sums);
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline(never)]
    unsafe fn bytes256<const M: usize, const SUB: usize, const FOURS: usize, const MIN: bool>(
        tiles: &[Bytes256],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        let subs = LARGE / SUB;
        // SAFETY: a group of activations has as many blocks as was checked; instructions are promised.
        unsafe {
            place.check::<M>(tiles.len(), LARGE / 4, subs / 2);
            let mut sums = load(to);
            let fours = if FOURS > 4 { opaque::<M>(FOURS) } else { FOURS };
            for (b, tile) in tiles.iter().enumerate() {
                let x = place.block::<M>(b, LARGE / 4, subs / 2);
                let mut all = [[_mm256_setzero_si256(); VECTORS]; M];
                for sub in 0..subs {
                    let scale = both(&tile.scales[sub]);
                    for part in 0..SUB / 4 / FOURS {
                        let first = sub * SUB / 4 + part * FOURS;
                        let mut part_sums = [[_mm256_setzero_si256(); VECTORS]; M];
                        for q in first..first + fours {
                            let w = both(tile.q.get_unchecked(q));
                            for i in 0..M {
                                let x = _mm256_set1_epi32(x.unit(q, i));
                                for v in 0..VECTORS {
                                    part_sums[i][v] = add_fours(part_sums[i][v], w[v], x);
                                }
                            }
                        }
                        for i in 0..M {
                            for v in 0..VECTORS {
                                let wide = _mm256_madd_epi16(part_sums[i][v], scale[v]);
                                all[i][v] = _mm256_add_epi32(all[i][v], wide);
                            }
                        }
                    }
                }
                let (d, dmin) = (both_f(&tile.d), both_f(&tile.dmin));
                for i in 0..M {
                    let mut below = [_mm256_setzero_si256(); VECTORS];
                    for j in 0..subs / 2 {
                        let (mins, x) = (both(&tile.mins[j]), _mm256_set1_epi32(x.sum(j, i)));
                        for v in 0..VECTORS {
                            below[v] = _mm256_add_epi32(below[v], _mm256_madd_epi16(mins[v], x));
                        }
                    }
                    let xd = _mm256_set1_ps(x.scale(i));
                    for v in 0..VECTORS {
                        let (wide, scale) = (all[i][v], _mm256_mul_ps(d[v], xd));
                        if MIN {
                            sums[i][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide), scale, sums[i][v]);
                            let dmin = _mm256_mul_ps(dmin[v], xd);
                            sums[i][v] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(below[v]), dmin, sums[i][v]);
                        } else {
                            let wide = _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, below[v]));
                            sums[i][v] = _mm256_fmadd_ps(wide, scale, sums[i][v]);
                        }
                    }
                }
            }
            store(to, &sums);
        }
    }
}
