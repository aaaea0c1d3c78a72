//! [`Lanes`] of 512 bits with the dot instruction on bytes (VNNI): a whole strip to a vector.
//!
//! That instruction multiplies unsigned bytes with signed ones. Numbers with a sign are moved up, those that need all eight
//! bits by 128, and the sums start below zero by as much as that adds.

use super::lanes::{Block, Lanes, Place, Quad, Rows};
use super::tile::{Bytes32, Bytes256, TOP};
use crate::quant::activations::{LARGE, SMALL};
use crate::quant::product::STRIP;
use crate::simd_avx512::{four_rows, turned};
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ, VL and VNNI, with F16C.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Avx512;

/// 32 numbers of each row, to each of which something was added; sums of products begin with what makes up for it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Moved32 {
    pub(super) q: [Quad; SMALL / 4],
    pub(super) d: [f32; STRIP],
}

/// The same sixteen bytes in all quarters.
#[inline(always)]
unsafe fn everywhere(bytes: &'static [u8; 16]) -> __m512i {
    // SAFETY: sixteen bytes are read.
    unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
}

/// A part of a tile.
#[inline(always)]
pub(super) unsafe fn quad(part: &Quad) -> __m512i {
    // SAFETY: as many bytes are read as there are.
    unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
}

/// Numbers of a tile.
#[inline(always)]
pub(super) unsafe fn floats(part: &[f32; STRIP]) -> __m512 {
    // SAFETY: as many are read as there are.
    unsafe { _mm512_loadu_ps(part.as_ptr()) }
}

/// Sums of `M` rows with a strip, in registers.
#[inline(always)]
unsafe fn load<const M: usize>(sums: &[[f32; STRIP]; M]) -> [__m512; M] {
    // SAFETY: passed on from the caller.
    std::array::from_fn(|i| unsafe { floats(&sums[i]) })
}

#[inline(always)]
unsafe fn store<const M: usize>(sums: &mut [[f32; STRIP]; M], from: &[__m512; M]) {
    for (sums, &from) in sums.iter_mut().zip(from) {
        // SAFETY: as many are written as there are.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), from) };
    }
}

/// A tile that registers hold while it meets activations.
pub(in crate::quant) trait InRegisters: Copy {
    /// Continues the sums of `M` rows of activations with a strip.
    ///
    /// # Safety
    /// The block must be one of the activations, and the machine must have the instructions.
    unsafe fn add<const M: usize>(&self, x: Block<M>, sums: &mut [__m512; M]);
}

impl InRegisters for Bytes32 {
    #[inline(always)]
    unsafe fn add<const M: usize>(&self, x: Block<M>, sums: &mut [__m512; M]) {
        // SAFETY: passed on from the caller.
        unsafe {
            let all = dots(&self.q, x, [_mm512_setzero_si512(); M]);
            let (d, min) = (floats(&self.d), floats(&self.min));
            for i in 0..M {
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(x.scale(i)));
                sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all[i]), scale, sums[i]);
                sums[i] = _mm512_fnmadd_ps(min, _mm512_castsi512_ps(_mm512_set1_epi32(x.sum(0, i))), sums[i]);
            }
        }
    }
}

impl InRegisters for Moved32 {
    #[inline(always)]
    unsafe fn add<const M: usize>(&self, x: Block<M>, sums: &mut [__m512; M]) {
        // SAFETY: passed on from the caller.
        unsafe {
            let all = dots(&self.q, x, std::array::from_fn(|i| _mm512_set1_epi32(x.sum(0, i))));
            let d = floats(&self.d);
            for i in 0..M {
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(x.scale(i)));
                sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all[i]), scale, sums[i]);
            }
        }
    }
}

/// Continues sums by the products of 32 numbers.
#[inline(always)]
unsafe fn dots<const M: usize>(w: &[Quad; SMALL / 4], x: Block<M>, mut all: [__m512i; M]) -> [__m512i; M] {
    for (q, w) in w.iter().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe {
            let w = quad(w);
            for i in 0..M {
                all[i] = _mm512_dpbusd_epi32(all[i], w, _mm512_set1_epi32(x.unit(q, i)));
            }
        }
    }
    all
}

/// Continues sums by tiles that fit into registers.
///
/// # Safety
/// As [`Lanes::bytes32`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn by_tiles<T: InRegisters, const M: usize>(tiles: &[T], place: &Place<'_>, to: &mut [[f32; STRIP]; M]) {
    // SAFETY: a group of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        place.check::<M>(tiles.len(), SMALL / 4, 1);
        let (x, mut sums) = (place.block::<M>(0, SMALL / 4, 1), load(to));
        for (b, tile) in tiles.iter().enumerate() {
            tile.add(x.further(b, SMALL / 4, 1), &mut sums);
        }
        store(to, &sums);
    }
}

/// What the minima of a block take away, or what stands for zero in it, in `subs` parts.
///
/// # Safety
/// As [`Lanes::bytes256`], but of the tile its minima alone need to be there.
#[inline(always)]
pub(super) unsafe fn below<const M: usize>(tile: *const Bytes256, x: Block<M>, subs: usize) -> [__m512i; M] {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut below = [_mm512_setzero_si512(); M];
        for j in 0..subs / 2 {
            let mins = quad(&(*tile).mins[j]);
            for i in 0..M {
                below[i] = _mm512_dpwssd_epi32(below[i], mins, _mm512_set1_epi32(x.sum(j, i)));
            }
        }
        below
    }
}

/// Continues a sum by the integers of a block and what is [`below`] them, whose scales are those of the block and of the
/// activations.
///
/// # Safety
/// As [`Lanes::bytes256`].
#[inline(always)]
pub(super) unsafe fn scaled<const MIN: bool>(
    [all, below]: [__m512i; 2],
    [d, dmin]: [&[f32; STRIP]; 2],
    xd: f32,
    sum: __m512,
) -> __m512 {
    // SAFETY: passed on from the caller.
    unsafe {
        let xd = _mm512_set1_ps(xd);
        let scale = _mm512_mul_ps(floats(d), xd);
        if MIN {
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), scale, sum);
            _mm512_fnmadd_ps(_mm512_cvtepi32_ps(below), _mm512_mul_ps(floats(dmin), xd), sum)
        } else {
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(all, below)), scale, sum)
        }
    }
}

impl Lanes for Avx512 {
    const ROWS: usize = 16;
    const GROUP: usize = 12;
    type I = __m512i;
    type F = __m512;
    type Signed = Moved32;
    type Moved = Moved32;

    #[inline(always)]
    unsafe fn sixteen(rows: Rows, at: usize) -> [__m512i; 4] {
        // SAFETY: passed on from the caller.
        unsafe {
            let line = |i: usize| four_rows([0, 4, 8, 12].map(|first| rows.at(first + i).add(at)));
            turned([line(0), line(1), line(2), line(3)])
        }
    }
    #[inline(always)]
    unsafe fn thirty_two(rows: Rows, at: usize) -> [__m512i; 8] {
        // SAFETY: passed on from the caller.
        unsafe {
            // Rows i and i + 4: quarters 0 and 2 hold their first halves.
            let line = |i: usize| {
                let row = |i: usize| _mm256_loadu_si256(rows.at(i).add(at).cast());
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(row(i)), row(i + 4))
            };
            let upper = turned([line(0), line(1), line(2), line(3)]);
            let lower = turned([line(8), line(9), line(10), line(11)]);
            std::array::from_fn(|q| match q {
                0..4 => _mm512_shuffle_i32x4::<0b1000_1000>(upper[q], lower[q]),
                _ => _mm512_shuffle_i32x4::<0b1101_1101>(upper[q - 4], lower[q - 4]),
            })
        }
    }
    #[inline(always)]
    unsafe fn four(rows: Rows, at: usize) -> __m512i {
        // SAFETY: passed on from the caller.
        unsafe {
            let word = |i: usize| rows.at(i).add(at).cast::<i32>().read_unaligned();
            let [a, b, c, d] = [0, 4, 8, 12].map(|i| _mm_setr_epi32(word(i), word(i + 1), word(i + 2), word(i + 3)));
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
            let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn tail_half(rows: Rows, end: usize) -> __m512 {
        // SAFETY: passed on from the caller. Sixteen bytes are read and the last two kept: see [`Lanes::head`].
        unsafe {
            let [.., last] = Self::sixteen(rows, end - 16);
            Self::two_halves(last)[1]
        }
    }
    /// Sixteen bytes of each row are read and the first four kept: numbers one by one take twice the instructions.
    #[inline(always)]
    unsafe fn head(rows: Rows) -> __m512i {
        // SAFETY: passed on from the caller.
        unsafe {
            let line = |i: usize| four_rows([0, 4, 8, 12].map(|first| rows.at(first + i)));
            let (a, b) = (_mm512_unpacklo_epi32(line(0), line(1)), _mm512_unpacklo_epi32(line(2), line(3)));
            _mm512_unpacklo_epi64(a, b)
        }
    }
    #[inline(always)]
    unsafe fn head_half(rows: Rows) -> __m512 {
        // SAFETY: passed on from the caller.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(Self::head(rows))) }
    }
    #[inline(always)]
    unsafe fn two_halves(pairs: __m512i) -> [__m512; 2] {
        // SAFETY: passed on from the caller.
        unsafe {
            let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs));
            [_mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)), _mm512_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_f(from: *const f32) -> __m512 {
        // SAFETY: passed on from the caller.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn bytes(byte: u8) -> __m512i {
        // SAFETY: passed on from the caller; so below.
        unsafe { _mm512_set1_epi8(byte as i8) }
    }
    #[inline(always)]
    unsafe fn words(word: u32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(word as i32) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn less(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sub_epi8(a, b) }
    }
    #[inline(always)]
    unsafe fn less_32(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn joined(low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_rol_epi32::<16>(low), _mm512_rol_epi32::<16>(high)) }
    }
    #[inline(always)]
    unsafe fn right(v: __m512i, bits: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srl_epi16(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn left(v: __m512i, bits: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sll_epi16(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn right_32(v: __m512i, bits: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn signed_right(v: __m512i, bits: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sra_epi16(v, _mm_cvtsi32_si128(bits as i32)) }
    }
    #[inline(always)]
    unsafe fn shuffle(v: __m512i, order: &'static [u8; 16]) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_shuffle_epi8(v, everywhere(order)) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &'static [u8; 16], codes: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_shuffle_epi8(everywhere(table), codes) }
    }
    #[inline(always)]
    unsafe fn times(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn negative(x: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_xor_ps(x, _mm512_set1_ps(-0.0)) }
    }
    #[inline(always)]
    unsafe fn to_f(v: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    /// In 32 bits: whole sums are multiplied.
    #[inline(always)]
    unsafe fn put_scale(four: __m512i, j: usize, to: *mut Quad, half: usize) {
        // SAFETY: as above. A byte at the top, moved down, keeps its sign.
        unsafe { Self::put(_mm512_srai_epi32::<24>(Self::shuffle(four, &TOP[j])), to, half) }
    }
    #[inline(always)]
    unsafe fn put_signed(tile: *mut Moved32, half: usize, q: usize, v: __m512i) {
        // SAFETY: as above. Another sign bit is 128 more.
        unsafe { Self::put(_mm512_xor_si512(v, Self::bytes(128)), &raw mut (*tile).q[q], half) }
    }
    #[inline(always)]
    unsafe fn put_signed_scale(tile: *mut Moved32, half: usize, d: __m512) {
        // SAFETY: as above.
        unsafe { Self::put_f(d, &raw mut (*tile).d, half) }
    }

    #[inline(always)]
    unsafe fn put_moved(tile: *mut Moved32, half: usize, q: usize, v: __m512i, _by: u8) {
        // SAFETY: as above.
        unsafe { Self::put(v, &raw mut (*tile).q[q], half) }
    }
    #[inline(always)]
    unsafe fn put_moved_scale(tile: *mut Moved32, half: usize, d: __m512) {
        // SAFETY: as above.
        unsafe { Self::put_f(d, &raw mut (*tile).d, half) }
    }

    #[inline(always)]
    unsafe fn bytes32<const M: usize, const FOURS: usize>(
        tiles: &[Bytes32],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        // SAFETY: passed on from the caller; so below.
        unsafe { by_tiles(tiles, place, to) }
    }
    #[inline(always)]
    unsafe fn moved32<const M: usize, const FOURS: usize>(
        tiles: &[Moved32],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        // SAFETY: as above.
        unsafe { by_tiles(tiles, place, to) }
    }
    #[inline(always)]
    unsafe fn signed32<const M: usize>(tiles: &[Moved32], place: &Place<'_>, to: &mut [[f32; STRIP]; M]) {
        // SAFETY: as above.
        unsafe { by_tiles(tiles, place, to) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
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
            for (b, tile) in tiles.iter().enumerate() {
                let x = place.block::<M>(b, LARGE / 4, subs / 2);
                let mut all = [_mm512_setzero_si512(); M];
                for sub in 0..subs {
                    let mut part = [_mm512_setzero_si512(); M];
                    for q in 0..SUB / 4 {
                        let q = sub * (SUB / 4) + q;
                        let w = quad(tile.q.get_unchecked(q));
                        for i in 0..M {
                            part[i] = _mm512_dpbusd_epi32(part[i], w, _mm512_set1_epi32(x.unit(q, i)));
                        }
                    }
                    let scale = quad(tile.scales.get_unchecked(sub));
                    for i in 0..M {
                        all[i] = _mm512_add_epi32(all[i], _mm512_mullo_epi32(part[i], scale));
                    }
                }
                let below = below::<M>(tile, x, subs);
                for i in 0..M {
                    // Sums rest in memory, so that all registers serve the integers.
                    let sum = scaled::<MIN>([all[i], below[i]], [&tile.d, &tile.dmin], x.scale(i), floats(&to[i]));
                    _mm512_storeu_ps(to[i].as_mut_ptr(), sum);
                }
            }
        }
    }
}
