//! [`Simd`] on 64-bit ARM: eight lanes in two registers, so that tiles have the shape that they have on AVX2.
//!
//! Every processor of this architecture has these instructions; no function needs to be entered specially.

use crate::isa::Isa;
use crate::simd::{SPLIT_BIAS, Simd};
use half::bf16;
use std::arch::aarch64::*;

/// The vector instructions of 64-bit ARM.
#[derive(Clone, Copy, Debug)]
pub struct Neon;

type V = float32x4x2_t;
type M = uint32x4x2_t;
type Half = float32x4_t;

/// An operation on both halves. Intrinsics are unsafe functions outside of code that is marked as having NEON.
#[inline(always)]
fn one(a: V, f: unsafe fn(Half) -> Half) -> V {
    // SAFETY: NEON is a part of this architecture.
    unsafe { float32x4x2_t(f(a.0), f(a.1)) }
}

#[inline(always)]
fn two(a: V, b: V, f: unsafe fn(Half, Half) -> Half) -> V {
    // SAFETY: as above.
    unsafe { float32x4x2_t(f(a.0, b.0), f(a.1, b.1)) }
}

#[inline(always)]
fn compare(a: V, b: V, f: unsafe fn(Half, Half) -> uint32x4_t) -> M {
    // SAFETY: as above.
    unsafe { uint32x4x2_t(f(a.0, b.0), f(a.1, b.1)) }
}

/// Rounded to the nearest bf16, ties to even; NaN stays NaN.
#[inline]
#[target_feature(enable = "neon")]
fn narrow(x: Half) -> uint16x4_t {
    let bits = vreinterpretq_u32_f32(x);
    let high = vshrq_n_u32::<16>(bits);
    let odd = vandq_u32(high, vdupq_n_u32(1));
    let rounded = vshrq_n_u32::<16>(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd));
    let quiet = vorrq_u32(high, vdupq_n_u32(0x40));
    vmovn_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen(bits: uint16x4_t) -> Half {
    vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
}

#[inline]
#[target_feature(enable = "neon")]
fn low_bf16(pairs: Half) -> Half {
    vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(pairs)))
}

#[inline]
#[target_feature(enable = "neon")]
fn high_bf16(pairs: Half) -> Half {
    vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs), vdupq_n_u32(0xffff_0000)))
}

#[inline]
#[target_feature(enable = "neon")]
fn with_sign(a: Half, sign: Half) -> Half {
    vbslq_f32(vdupq_n_u32(0x8000_0000), sign, a)
}

/// Not the instruction of this name, which makes NaN of NaN.
#[inline]
#[target_feature(enable = "neon")]
fn max(a: Half, b: Half) -> Half {
    vbslq_f32(vcgtq_f32(a, b), a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn min(a: Half, b: Half) -> Half {
    vbslq_f32(vcltq_f32(a, b), a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn pow2(n: int32x4_t) -> Half {
    vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))))
}

#[inline]
#[target_feature(enable = "neon")]
fn scale_pow2(v: Half, n: Half) -> Half {
    // Two factors, because 2^n alone may be out of range where v * 2^n is not.
    let n = vcvtnq_s32_f32(n);
    let half = vshrq_n_s32::<1>(n);
    vmulq_f32(vmulq_f32(v, pow2(half)), pow2(vsubq_s32(n, half)))
}

#[inline]
#[target_feature(enable = "neon")]
fn exponent_bits(x: Half) -> int32x4_t {
    vshrq_n_s32::<23>(vsubq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(SPLIT_BIAS as i32)))
}

#[inline]
#[target_feature(enable = "neon")]
fn exponent(x: Half) -> Half {
    vcvtq_f32_s32(exponent_bits(x))
}

#[inline]
#[target_feature(enable = "neon")]
fn mantissa(x: Half) -> Half {
    vreinterpretq_f32_s32(vsubq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32::<23>(exponent_bits(x))))
}

/// The transpose of four rows of four.
#[inline]
#[target_feature(enable = "neon")]
fn transpose_4x4(rows: [Half; 4]) -> [Half; 4] {
    let (a, b) = (vtrnq_f32(rows[0], rows[1]), vtrnq_f32(rows[2], rows[3]));
    [
        vcombine_f32(vget_low_f32(a.0), vget_low_f32(b.0)),
        vcombine_f32(vget_low_f32(a.1), vget_low_f32(b.1)),
        vcombine_f32(vget_high_f32(a.0), vget_high_f32(b.0)),
        vcombine_f32(vget_high_f32(a.1), vget_high_f32(b.1)),
    ]
}

impl Simd for Neon {
    const LANES: usize = 8;
    type V = V;
    type M = M;

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Neon
    }
    #[inline(always)]
    fn splat(self, x: f32) -> V {
        // SAFETY: NEON is available.
        unsafe { float32x4x2_t(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> V {
        // SAFETY: the caller vouches for eight readable values.
        unsafe { float32x4x2_t(vld1q_f32(src), vld1q_f32(src.add(4))) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32, v: V) {
        // SAFETY: the caller vouches for eight writable values.
        unsafe {
            vst1q_f32(dst, v.0);
            vst1q_f32(dst.add(4), v.1);
        }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> V {
        let mut lanes = [0.0; 8];
        let n = src.len().min(8);
        lanes[..n].copy_from_slice(&src[..n]);
        self.load(&lanes)
    }
    #[inline(always)]
    fn store_partial(self, dst: &mut [f32], v: V) {
        let mut lanes = [0.0; 8];
        self.store(&mut lanes, v);
        let n = dst.len().min(8);
        dst[..n].copy_from_slice(&lanes[..n]);
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> V {
        assert!(src.len() >= 8);
        // SAFETY: NEON is available; sixteen bytes are inside the slice, and a bf16 is its 16 bits.
        unsafe {
            let words = vld1q_u16(src.as_ptr().cast());
            float32x4x2_t(widen(vget_low_u16(words)), widen(vget_high_u16(words)))
        }
    }
    #[inline(always)]
    fn store_bf16(self, dst: &mut [bf16], v: V) {
        assert!(dst.len() >= 8);
        // SAFETY: sixteen bytes are inside the slice; every bit pattern is a bf16.
        unsafe { vst1q_u16(dst.as_mut_ptr().cast(), vcombine_u16(narrow(v.0), narrow(v.1))) }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        two(a, b, vaddq_f32)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        two(a, b, vsubq_f32)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        two(a, b, vmulq_f32)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        two(a, b, vdivq_f32)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // SAFETY: NEON is available.
        unsafe { float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }
    #[inline(always)]
    fn neg_fma(self, a: V, b: V, c: V) -> V {
        // SAFETY: NEON is available.
        unsafe { float32x4x2_t(vfmsq_f32(c.0, a.0, b.0), vfmsq_f32(c.1, a.1, b.1)) }
    }
    #[inline(always)]
    fn low_bf16(self, pairs: V) -> V {
        one(pairs, low_bf16)
    }
    #[inline(always)]
    fn high_bf16(self, pairs: V) -> V {
        one(pairs, high_bf16)
    }
    #[inline(always)]
    fn neg(self, a: V) -> V {
        one(a, vnegq_f32)
    }
    #[inline(always)]
    fn abs(self, a: V) -> V {
        one(a, vabsq_f32)
    }
    #[inline(always)]
    fn with_sign(self, a: V, sign: V) -> V {
        two(a, sign, with_sign)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        two(a, b, max)
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        two(a, b, min)
    }
    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        one(a, vsqrtq_f32)
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        one(a, vrndnq_f32)
    }
    #[inline(always)]
    fn lt(self, a: V, b: V) -> M {
        compare(a, b, vcltq_f32)
    }
    #[inline(always)]
    fn le(self, a: V, b: V) -> M {
        compare(a, b, vcleq_f32)
    }
    #[inline(always)]
    fn eq(self, a: V, b: V) -> M {
        compare(a, b, vceqq_f32)
    }
    #[inline(always)]
    fn select(self, m: M, yes: V, no: V) -> V {
        // SAFETY: NEON is available.
        unsafe { float32x4x2_t(vbslq_f32(m.0, yes.0, no.0), vbslq_f32(m.1, yes.1, no.1)) }
    }
    #[inline(always)]
    fn all(self, m: M) -> bool {
        // SAFETY: NEON is available.
        unsafe { vminvq_u32(vandq_u32(m.0, m.1)) == u32::MAX }
    }
    #[inline(always)]
    fn first(self, n: usize) -> M {
        // SAFETY: NEON is available; both are four readable words.
        unsafe {
            let n = vdupq_n_u32(n.min(8) as u32);
            let (low, high) = (vld1q_u32([0, 1, 2, 3].as_ptr()), vld1q_u32([4, 5, 6, 7].as_ptr()));
            uint32x4x2_t(vcltq_u32(low, n), vcltq_u32(high, n))
        }
    }
    #[inline(always)]
    fn reduce_sum(self, v: V) -> f32 {
        // SAFETY: NEON is available.
        unsafe {
            let four = vaddq_f32(v.0, v.1);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: V) -> f32 {
        // SAFETY: NEON is available.
        unsafe { vmaxvq_f32(vmaxq_f32(v.0, v.1)) }
    }
    #[inline(always)]
    fn scale_pow2(self, v: V, n: V) -> V {
        two(v, n, scale_pow2)
    }
    #[inline(always)]
    fn split_pow2(self, v: V) -> (V, V) {
        (one(v, mantissa), one(v, exponent))
    }
    #[inline(always)]
    unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: NEON is available; the caller vouches for all places of the block.
        unsafe {
            for side in [0, 4] {
                let mut columns = [[vdupq_n_f32(0.0); 4]; 2];
                for (half, columns) in columns.iter_mut().enumerate() {
                    let row = |r: usize| src.wrapping_add((4 * half + r) * src_stride + side);
                    *columns =
                        transpose_4x4([vld1q_f32(row(0)), vld1q_f32(row(1)), vld1q_f32(row(2)), vld1q_f32(row(3))]);
                }
                for c in 0..4 {
                    self.store_ptr(dst.add((side + c) * dst_stride), float32x4x2_t(columns[0][c], columns[1][c]));
                }
            }
        }
    }
}
