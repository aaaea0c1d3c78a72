//! [`Simd`] on AVX-512 (F, BW, DQ, VL): sixteen lanes.
//!
//! Every method wraps intrinsics that the CPU is known to have: an [`Avx512`] is only made in [`enter`].

use crate::isa::Isa;
use crate::simd::{Kernel, SPLIT_BIAS, Simd};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that AVX-512 F, BW, DQ and VL are available.
#[derive(Clone, Copy, Debug)]
pub struct Avx512 {
    _private: (),
}

/// Runs a kernel compiled with AVX-512.
///
/// # Safety
/// The machine must have AVX-512 F, BW, DQ and VL, and AVX2 and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512 { _private: () })
}

/// Like [`enter`], with the instructions on bf16 as well.
///
/// # Safety
/// As [`enter`], and the machine must have AVX-512 BF16.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) unsafe fn enter_with_bf16_dot<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512 { _private: () })
}

/// Sixteen bytes of each of four rows, a quarter each.
///
/// # Safety
/// The bytes must be readable; AVX-512 F is needed.
#[inline(always)]
pub(crate) unsafe fn four_rows(rows: [*const u8; 4]) -> __m512i {
    // SAFETY: passed on from the caller.
    unsafe {
        let [a, b, c, d] = rows.map(|row| _mm_loadu_si128(row.cast()));
        let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
        let low = _mm512_inserti32x4::<2>(_mm512_castsi256_si512(low), c);
        _mm512_inserti32x4::<3>(low, d)
    }
}

/// Four lines of four lanes each, in each quarter, turned.
///
/// # Safety
/// AVX-512 F is needed.
#[inline(always)]
pub(crate) unsafe fn turned([r0, r1, r2, r3]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: passed on from the caller.
    unsafe {
        let (a, b) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (c, d) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ]
    }
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    if n >= 16 { 0xffff } else { (1 << n) - 1 }
}

/// Eight f32 to four pairs of bf16.
#[derive(Clone, Copy)]
struct Narrow;

impl crate::simd_avx2::LoadFour for Narrow {
    const STEP: usize = 8;

    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> __m128 {
        // SAFETY: the caller vouches for AVX-512 BF16 and VL, and for eight values; eight bf16 are 128 bits.
        unsafe { std::mem::transmute::<__m128bh, __m128>(_mm256_cvtneps_pbh(_mm256_loadu_ps(src))) }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;
    type M = __mmask16;

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Avx512
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> __m512 {
        // SAFETY: AVX-512 is available; the caller vouches for the pointer.
        unsafe { _mm512_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32, v: __m512) {
        // SAFETY: AVX-512 is available; the caller vouches for the pointer.
        unsafe { _mm512_storeu_ps(dst, v) }
    }
    #[inline(always)]
    fn store_low_bytes(self, dst: &mut [i8], v: __m512) {
        assert!(dst.len() >= 16);
        // SAFETY: AVX-512 is available; sixteen bytes are inside the slice.
        unsafe { _mm_storeu_si128(dst.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(v))) }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> __m512 {
        // SAFETY: only lanes inside the slice are touched.
        unsafe {
            // Masks cost more than this branch, which all but the last piece of a slice takes.
            if src.len() >= 16 {
                _mm512_loadu_ps(src.as_ptr())
            } else {
                _mm512_maskz_loadu_ps(mask(src.len()), src.as_ptr())
            }
        }
    }
    #[inline(always)]
    fn store_partial(self, dst: &mut [f32], v: __m512) {
        // SAFETY: only lanes inside the slice are touched.
        unsafe {
            // Masks cost more than this branch, which all but the last piece of a slice takes.
            if dst.len() >= 16 {
                _mm512_storeu_ps(dst.as_mut_ptr(), v);
            } else {
                _mm512_mask_storeu_ps(dst.as_mut_ptr(), mask(dst.len()), v);
            }
        }
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> __m512 {
        assert!(src.len() >= 16);
        // SAFETY: thirty-two bytes are inside the slice; a bf16 is its 16 bits.
        unsafe {
            let narrow = _mm256_loadu_si256(src.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const f16) -> __m512 {
        // SAFETY: F16C is available; the caller vouches for the values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.cast())) }
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 16], codes: &[u8]) -> __m512 {
        assert!(codes.len() >= 8);
        // SAFETY: eight bytes are inside the slice, sixteen numbers in the table.
        unsafe {
            let bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(codes.as_ptr().cast()));
            // Four bits of a lane choose.
            let order = _mm512_or_si512(_mm512_srli_epi64::<4>(bytes), _mm512_slli_epi64::<32>(bytes));
            _mm512_permutexvar_ps(order, _mm512_loadu_ps(table.as_ptr()))
        }
    }
    #[inline(always)]
    fn store_bf16(self, dst: &mut [bf16], v: __m512) {
        assert!(dst.len() >= 16);
        // SAFETY: thirty-two bytes are inside the slice; every bit pattern is a bf16.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let rounded = _mm512_srli_epi32::<16>(rounded);
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let words = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), quiet);
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(words));
        }
    }
    #[inline(always)]
    fn load_bf16_partial(self, src: &[bf16]) -> __m512 {
        // SAFETY: only lanes inside the slice are touched.
        unsafe {
            let narrow = _mm256_maskz_loadu_epi16(mask(src.len()), src.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX-512 BF16; both types are 512 bits.
        unsafe {
            let (a, b) = (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
            _mm512_dpbf16_ps(c, a, b)
        }
    }
    #[inline(always)]
    fn low_bf16(self, pairs: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs))) }
    }
    #[inline(always)]
    fn high_bf16(self, pairs: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe {
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
    }
    #[inline(always)]
    unsafe fn interleave_bf16(self, low: *const bf16, high: Option<*const bf16>) -> __m512 {
        // SAFETY: AVX-512 is available; the caller vouches for sixteen values in each row.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.cast()));
            let high = match high {
                Some(high) => _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(high.cast()))),
                None => _mm512_setzero_si512(),
            };
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }
    #[inline(always)]
    unsafe fn join_bf16(self, first: __m512, second: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX-512 BF16; both types are 512 bits.
        unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)) }
    }
    #[inline(always)]
    unsafe fn pair_bf16(self, low: __m512, high: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX-512 BF16; sixteen bf16 are 256 bits.
        unsafe {
            let low = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(low));
            let high = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(high));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low), high))
        }
    }
    #[inline(always)]
    unsafe fn transpose_8x8_to_bf16(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: the caller vouches for AVX-512 BF16 and for the block.
        unsafe { crate::simd_avx2::transpose_8x8_by(Narrow, src, src_stride, dst, dst_stride) }
    }
    #[inline(always)]
    fn neg(self, a: __m512) -> __m512 {
        // SAFETY: AVX-512 DQ is available.
        unsafe { _mm512_xor_ps(a, _mm512_set1_ps(-0.0)) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn with_sign(self, a: __m512, sign: __m512) -> __m512 {
        // SAFETY: AVX-512 DQ is available.
        unsafe { _mm512_or_ps(a, _mm512_and_ps(_mm512_set1_ps(-0.0), sign)) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __mmask16, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_mask_blend_ps(m, no, yes) }
    }
    #[inline(always)]
    fn all(self, m: __mmask16) -> bool {
        m == 0xffff
    }
    #[inline(always)]
    fn first(self, n: usize) -> __mmask16 {
        mask(n)
    }
    #[inline(always)]
    fn reduce_sum(self, v: __m512) -> f32 {
        // SAFETY: AVX-512 DQ is available.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        // SAFETY: AVX-512 DQ is available.
        unsafe {
            let eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn scale_pow2(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: AVX-512 is available.
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    fn split_pow2(self, v: __m512) -> (__m512, __m512) {
        // SAFETY: AVX-512 is available.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let exponent = _mm512_srai_epi32::<23>(_mm512_sub_epi32(bits, _mm512_set1_epi32(SPLIT_BIAS as i32)));
            let mantissa = _mm512_sub_epi32(bits, _mm512_slli_epi32::<23>(exponent));
            (_mm512_castsi512_ps(mantissa), _mm512_cvtepi32_ps(exponent))
        }
    }
    #[inline(always)]
    unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: AVX2 is available; the caller vouches for the block.
        unsafe { crate::simd_avx2::transpose_8x8(src, src_stride, dst, dst_stride) }
    }
}
