//! [`Lanes`] on 64-bit ARM: four rows to a vector, so that a strip is four of them.

use super::lanes::{Block, Lanes, Place, Quad, Rows};
use super::tile::{Bytes32, Bytes256, Signed32, TOP};
use crate::quant::activations::{LARGE, SMALL};
use crate::quant::product::STRIP;
use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

/// Vectors of a strip.
const VECTORS: usize = STRIP / 4;

/// The instructions that every 64-bit ARM has, and a way to multiply bytes.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Neon<P>(PhantomData<P>);

/// How bytes are multiplied.
pub(in crate::quant) trait Products: Copy + 'static {
    /// Adds to each lane the products of its four bytes.
    ///
    /// # Safety
    /// The machine must have the instructions. A byte of `x` is at least -127, or its scale is not finite and the sum of no
    /// matter.
    unsafe fn add(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;
}

/// In two steps: pairs in 16 bits, then pairs of them.
#[derive(Clone, Copy)]
pub(in crate::quant) struct InSteps;

impl Products for InSteps {
    #[inline(always)]
    unsafe fn add(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is a part of this architecture. Two products are at most 2 * 128 * 127.
        unsafe {
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(w, x)))
        }
    }
}

/// At once, where there is the dot instruction (of ARM 8.2, and of every core since 8.4).
#[derive(Clone, Copy)]
pub(in crate::quant) struct AtOnce;

impl Products for AtOnce {
    #[inline(always)]
    unsafe fn add(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller vouches for the instruction, which touches registers alone. Its intrinsic is not stable yet.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

/// Half-precision numbers to f32. The intrinsic is not stable yet.
#[inline(always)]
fn widened(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: every 64-bit ARM has the instruction, which touches registers alone.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = out(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack)
        );
    }
    wide
}

/// A vector of a part of a tile.
#[inline(always)]
unsafe fn part(quad: &Quad, v: usize) -> int8x16_t {
    // SAFETY: the caller's index is below the number of vectors.
    unsafe { vld1q_s8(quad.as_ptr().add(16 * v).cast()) }
}

/// A vector of numbers of a tile.
#[inline(always)]
unsafe fn floats(of: &[f32; STRIP], v: usize) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vld1q_f32(of.as_ptr().add(4 * v)) }
}

/// A vector of sums, to be written.
#[inline(always)]
unsafe fn put_sums(sums: &mut [f32; STRIP], v: usize, from: float32x4_t) {
    // SAFETY: as above.
    unsafe { vst1q_f32(sums.as_mut_ptr().add(4 * v), from) }
}

/// Integer sums of a few rows with a strip.
type Integers<const M: usize> = [[int32x4_t; VECTORS]; M];

/// Continues sums by some neighbours in k.
#[inline(always)]
unsafe fn add_quads<P: Products, const M: usize>(quads: &[Quad], x: Block<M>, first: usize, sums: &mut Integers<M>) {
    for (q, quad) in quads.iter().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe {
            let w: [_; VECTORS] = std::array::from_fn(|v| part(quad, v));
            for i in 0..M {
                let x = vreinterpretq_s8_s32(vdupq_n_s32(x.unit(first + q, i)));
                for v in 0..VECTORS {
                    sums[i][v] = P::add(sums[i][v], w[v], x);
                }
            }
        }
    }
}

/// Pairs of 16-bit numbers multiplied, and their products added up.
#[inline(always)]
unsafe fn add_pairs(sum: int32x4_t, a: int16x8_t, b: int16x8_t) -> int32x4_t {
    // SAFETY: NEON is a part of this architecture.
    unsafe { vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b))) }
}

impl<P: Products> Lanes for Neon<P> {
    const ROWS: usize = 4;
    const GROUP: usize = 4;
    type I = uint8x16_t;
    type F = float32x4_t;
    type Signed = Signed32;
    type Moved = Signed32;

    #[inline(always)]
    unsafe fn sixteen(rows: Rows, at: usize) -> [uint8x16_t; 4] {
        // SAFETY: passed on from the caller.
        unsafe {
            let line = |i: usize| vreinterpretq_u32_u8(vld1q_u8(rows.at(i).add(at)));
            let wide = |v: uint32x4_t| vreinterpretq_u64_u32(v);
            let (a, b) = (vtrn1q_u32(line(0), line(1)), vtrn2q_u32(line(0), line(1)));
            let (c, d) = (vtrn1q_u32(line(2), line(3)), vtrn2q_u32(line(2), line(3)));
            [
                vtrn1q_u64(wide(a), wide(c)),
                vtrn1q_u64(wide(b), wide(d)),
                vtrn2q_u64(wide(a), wide(c)),
                vtrn2q_u64(wide(b), wide(d)),
            ]
            .map(|v| vreinterpretq_u8_u64(v))
        }
    }
    #[inline(always)]
    unsafe fn thirty_two(rows: Rows, at: usize) -> [uint8x16_t; 8] {
        // SAFETY: passed on from the caller.
        let (low, high) = unsafe { (Self::sixteen(rows, at), Self::sixteen(rows, at + 16)) };
        std::array::from_fn(|q| if q < 4 { low[q] } else { high[q - 4] })
    }
    #[inline(always)]
    unsafe fn four(rows: Rows, at: usize) -> uint8x16_t {
        // SAFETY: passed on from the caller.
        unsafe {
            let words: [u32; 4] = std::array::from_fn(|i| rows.at(i).add(at).cast::<u32>().read_unaligned());
            vreinterpretq_u8_u32(vld1q_u32(words.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn head(rows: Rows) -> uint8x16_t {
        // SAFETY: passed on from the caller.
        unsafe { Self::four(rows, 0) }
    }
    #[inline(always)]
    unsafe fn tail_half(rows: Rows, end: usize) -> float32x4_t {
        // SAFETY: passed on from the caller.
        unsafe {
            let halves: [u16; 4] = std::array::from_fn(|i| rows.at(i).add(end - 2).cast::<u16>().read_unaligned());
            widened(vld1_u16(halves.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn head_half(rows: Rows) -> float32x4_t {
        // SAFETY: passed on from the caller; no more than the two bytes are read.
        unsafe { Self::tail_half(rows, 2) }
    }
    #[inline(always)]
    unsafe fn two_halves(pairs: uint8x16_t) -> [float32x4_t; 2] {
        // SAFETY: passed on from the caller.
        unsafe {
            let pairs = vreinterpretq_u32_u8(pairs);
            [widened(vmovn_u32(pairs)), widened(vshrn_n_u32::<16>(pairs))]
        }
    }
    #[inline(always)]
    unsafe fn load_f(from: *const f32) -> float32x4_t {
        // SAFETY: passed on from the caller.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn bytes(byte: u8) -> uint8x16_t {
        // SAFETY: NEON is a part of this architecture; so below.
        unsafe { vdupq_n_u8(byte) }
    }
    #[inline(always)]
    unsafe fn words(word: u32) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_u32(vdupq_n_u32(word)) }
    }
    #[inline(always)]
    unsafe fn and(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vandq_u8(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    unsafe fn less(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vsubq_u8(a, b) }
    }
    #[inline(always)]
    unsafe fn less_32(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_u32(vsubq_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b))) }
    }
    #[inline(always)]
    unsafe fn joined(low: uint8x16_t, high: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (vreinterpretq_u32_u8(low), vreinterpretq_u32_u8(high));
            vreinterpretq_u8_u32(vsliq_n_u32::<16>(vshrq_n_u32::<16>(low), high))
        }
    }
    #[inline(always)]
    unsafe fn right(v: uint8x16_t, bits: usize) -> uint8x16_t {
        // SAFETY: as above. To the left by less than nothing is to the right.
        unsafe { vreinterpretq_u8_u16(vshlq_u16(vreinterpretq_u16_u8(v), vdupq_n_s16(-(bits as i16)))) }
    }
    #[inline(always)]
    unsafe fn left(v: uint8x16_t, bits: usize) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_u16(vshlq_u16(vreinterpretq_u16_u8(v), vdupq_n_s16(bits as i16))) }
    }
    #[inline(always)]
    unsafe fn right_32(v: uint8x16_t, bits: usize) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-(bits as i32)))) }
    }
    #[inline(always)]
    unsafe fn signed_right(v: uint8x16_t, bits: usize) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_s16(vshlq_s16(vreinterpretq_s16_u8(v), vdupq_n_s16(-(bits as i16)))) }
    }
    #[inline(always)]
    unsafe fn shuffle(v: uint8x16_t, order: &'static [u8; 16]) -> uint8x16_t {
        // SAFETY: as above. What is not below sixteen gives zero.
        unsafe { vqtbl1q_u8(v, vld1q_u8(order.as_ptr())) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &'static [u8; 16], codes: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), codes) }
    }
    #[inline(always)]
    unsafe fn times(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn negative(x: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vnegq_f32(x) }
    }
    #[inline(always)]
    unsafe fn to_f(v: uint8x16_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_u8(v)) }
    }
    /// In 32 bits: whole sums are multiplied.
    #[inline(always)]
    unsafe fn put_scale(four: uint8x16_t, j: usize, to: *mut Quad, half: usize) {
        // SAFETY: as above. A byte at the top, moved down, keeps its sign.
        unsafe {
            let scale = vshrq_n_s32::<24>(vreinterpretq_s32_u8(Self::shuffle(four, &TOP[j])));
            Self::put(vreinterpretq_u8_s32(scale), to, half);
        }
    }
    #[inline(always)]
    unsafe fn put_signed(tile: *mut Signed32, half: usize, q: usize, v: uint8x16_t) {
        // SAFETY: passed on from the caller.
        unsafe { Self::put(v, &raw mut (*tile).q[q], half) }
    }
    #[inline(always)]
    unsafe fn put_signed_scale(tile: *mut Signed32, half: usize, d: float32x4_t) {
        // SAFETY: passed on from the caller.
        unsafe { Self::put_f(d, &raw mut (*tile).d, half) }
    }
    #[inline(always)]
    unsafe fn put_moved(tile: *mut Signed32, half: usize, q: usize, v: uint8x16_t, by: u8) {
        // SAFETY: passed on from the caller.
        unsafe { Self::put_signed(tile, half, q, Self::less(v, Self::bytes(by))) }
    }
    #[inline(always)]
    unsafe fn put_moved_scale(tile: *mut Signed32, half: usize, d: float32x4_t) {
        // SAFETY: passed on from the caller.
        unsafe { Self::put_f(d, &raw mut (*tile).d, half) }
    }

    #[inline(always)]
    unsafe fn bytes32<const M: usize, const FOURS: usize>(
        tiles: &[Bytes32],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        // SAFETY: a group of activations has as many blocks as was checked; instructions are promised. So below.
        unsafe {
            place.check::<M>(tiles.len(), SMALL / 4, 1);
            let first = place.block::<M>(0, SMALL / 4, 1);
            for (b, tile) in tiles.iter().enumerate() {
                let (x, mut all) = (first.further(b, SMALL / 4, 1), [[vdupq_n_s32(0); VECTORS]; M]);
                add_quads::<P, M>(&tile.q, x, 0, &mut all);
                for i in 0..M {
                    let (xd, x_sum) = (x.scale(i), vdupq_n_f32(f32::from_bits(x.sum(0, i) as u32)));
                    for v in 0..VECTORS {
                        let scale = vmulq_n_f32(floats(&tile.d, v), xd);
                        let sum = vfmaq_f32(floats(&to[i], v), vcvtq_f32_s32(all[i][v]), scale);
                        put_sums(&mut to[i], v, vfmsq_f32(sum, floats(&tile.min, v), x_sum));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn moved32<const M: usize, const FOURS: usize>(
        tiles: &[Signed32],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        // SAFETY: passed on from the caller.
        unsafe { Self::signed32(tiles, place, to) }
    }

    #[inline(always)]
    unsafe fn signed32<const M: usize>(tiles: &[Signed32], place: &Place<'_>, to: &mut [[f32; STRIP]; M]) {
        // SAFETY: as above.
        unsafe {
            place.check::<M>(tiles.len(), SMALL / 4, 1);
            let first = place.block::<M>(0, SMALL / 4, 1);
            for (b, tile) in tiles.iter().enumerate() {
                let (x, mut all) = (first.further(b, SMALL / 4, 1), [[vdupq_n_s32(0); VECTORS]; M]);
                add_quads::<P, M>(&tile.q, x, 0, &mut all);
                for i in 0..M {
                    for v in 0..VECTORS {
                        let scale = vmulq_n_f32(floats(&tile.d, v), x.scale(i));
                        let sum = vfmaq_f32(floats(&to[i], v), vcvtq_f32_s32(all[i][v]), scale);
                        put_sums(&mut to[i], v, sum);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn bytes256<const M: usize, const SUB: usize, const FOURS: usize, const MIN: bool>(
        tiles: &[Bytes256],
        place: &Place<'_>,
        to: &mut [[f32; STRIP]; M],
    ) {
        let subs = LARGE / SUB;
        // SAFETY: as above.
        unsafe {
            place.check::<M>(tiles.len(), LARGE / 4, subs / 2);
            let first = place.block::<M>(0, LARGE / 4, subs / 2);
            for (b, tile) in tiles.iter().enumerate() {
                let (x, mut all) = (first.further(b, LARGE / 4, subs / 2), [[vdupq_n_s32(0); VECTORS]; M]);
                for sub in 0..subs {
                    let (at, mut part_sums) = (sub * (SUB / 4), [[vdupq_n_s32(0); VECTORS]; M]);
                    add_quads::<P, M>(&tile.q[at..at + SUB / 4], x, at, &mut part_sums);
                    for v in 0..VECTORS {
                        let scale = vreinterpretq_s32_s8(part(&tile.scales[sub], v));
                        for i in 0..M {
                            all[i][v] = vmlaq_s32(all[i][v], part_sums[i][v], scale);
                        }
                    }
                }
                for i in 0..M {
                    let mut below = [vdupq_n_s32(0); VECTORS];
                    for j in 0..subs / 2 {
                        let x = vreinterpretq_s16_s32(vdupq_n_s32(x.sum(j, i)));
                        for v in 0..VECTORS {
                            below[v] = add_pairs(below[v], vreinterpretq_s16_s8(part(&tile.mins[j], v)), x);
                        }
                    }
                    for v in 0..VECTORS {
                        let (scale, mut sum) = (vmulq_n_f32(floats(&tile.d, v), x.scale(i)), floats(&to[i], v));
                        if MIN {
                            sum = vfmaq_f32(sum, vcvtq_f32_s32(all[i][v]), scale);
                            let dmin = vmulq_n_f32(floats(&tile.dmin, v), x.scale(i));
                            sum = vfmsq_f32(sum, vcvtq_f32_s32(below[v]), dmin);
                        } else {
                            sum = vfmaq_f32(sum, vcvtq_f32_s32(vsubq_s32(all[i][v], below[v])), scale);
                        }
                        put_sums(&mut to[i], v, sum);
                    }
                }
            }
        }
    }
}
