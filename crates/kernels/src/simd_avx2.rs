//! [`Simd`] on AVX2 and FMA: eight lanes.
//!
//! Every method wraps intrinsics that the CPU is known to have: an [`Avx2`] is only made in [`enter`].

use crate::isa::Isa;
use crate::simd::{Kernel, SPLIT_BIAS, Simd};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that AVX2, FMA and F16C are available.
#[derive(Clone, Copy, Debug)]
pub struct Avx2 {
    _private: (),
}

/// Runs a kernel compiled with AVX2, FMA and F16C.
///
/// # Safety
/// The machine must have all of them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2 { _private: () })
}

/// Eight set words followed by eight clear ones: a window into it is the mask of the first n lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
fn mask(n: usize) -> __m256i {
    let n = n.min(8);
    // SAFETY: 8 - n is in 0..=8, so eight words can be read from there.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()) }
}

// SAFETY of all blocks below: an `Avx2` exists only where the machine has AVX2, FMA and F16C.
impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;
    type M = __m256;

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Avx2
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> __m256 {
        // SAFETY: AVX2 is available; the caller vouches for the pointer.
        unsafe { _mm256_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32, v: __m256) {
        // SAFETY: AVX2 is available; the caller vouches for the pointer.
        unsafe { _mm256_storeu_ps(dst, v) }
    }
    #[inline(always)]
    fn store_low_bytes(self, dst: &mut [i8], v: __m256) {
        assert!(dst.len() >= 8);
        // SAFETY: AVX2 is available; eight bytes are inside the slice.
        unsafe {
            let first = _mm256_set1_epi32(0x0c08_0400);
            let fours = _mm256_shuffle_epi8(_mm256_castps_si256(v), first);
            let both = _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
            _mm_storel_epi64(dst.as_mut_ptr().cast(), both);
        }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> __m256 {
        // SAFETY: only lanes inside the slice are touched.
        unsafe {
            // Masks cost more than this branch, which all but the last piece of a slice takes.
            if src.len() >= 8 {
                _mm256_loadu_ps(src.as_ptr())
            } else {
                _mm256_maskload_ps(src.as_ptr(), mask(src.len()))
            }
        }
    }
    #[inline(always)]
    fn store_partial(self, dst: &mut [f32], v: __m256) {
        // SAFETY: only lanes inside the slice are touched.
        unsafe {
            // Masks cost more than this branch, which all but the last piece of a slice takes.
            if dst.len() >= 8 {
                _mm256_storeu_ps(dst.as_mut_ptr(), v);
            } else {
                _mm256_maskstore_ps(dst.as_mut_ptr(), mask(dst.len()), v);
            }
        }
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> __m256 {
        assert!(src.len() >= 8);
        // SAFETY: sixteen bytes are inside the slice; a bf16 is its 16 bits.
        unsafe {
            let narrow = _mm_loadu_si128(src.as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, src: *const f16) -> __m256 {
        // SAFETY: F16C is available; the caller vouches for the values.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.cast())) }
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 16], codes: &[u8]) -> __m256 {
        assert!(codes.len() >= 4);
        // SAFETY: four bytes are inside the slice, sixteen numbers in the table.
        unsafe {
            let bytes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(codes.as_ptr().cast::<i32>().read_unaligned()));
            let order = _mm256_or_si256(_mm256_srli_epi64::<4>(bytes), _mm256_slli_epi64::<32>(bytes));
            // Three bits of a lane choose; the fourth says from which half.
            let half = |at: usize| _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(at)), order);
            _mm256_blendv_ps(half(0), half(8), _mm256_castsi256_ps(_mm256_slli_epi32::<28>(order)))
        }
    }
    #[inline(always)]
    fn store_bf16(self, dst: &mut [bf16], v: __m256) {
        assert!(dst.len() >= 8);
        // SAFETY: sixteen bytes are inside the slice; every bit pattern is a bf16.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let high = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let rounded = _mm256_srli_epi32::<16>(rounded);
            let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let words = _mm256_blendv_epi8(rounded, quiet, is_nan);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
            _mm_storeu_si128(dst.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: FMA is available.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: FMA is available.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn low_bf16(self, pairs: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs))) }
    }
    #[inline(always)]
    fn high_bf16(self, pairs: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32))) }
    }
    #[inline(always)]
    fn neg(self, a: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_xor_ps(a, _mm256_set1_ps(-0.0)) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn with_sign(self, a: __m256, sign: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.0), sign)) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_blendv_ps(no, yes, m) }
    }
    #[inline(always)]
    fn all(self, m: __m256) -> bool {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_movemask_ps(m) == 0xff }
    }
    #[inline(always)]
    fn first(self, n: usize) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_castsi256_ps(mask(n)) }
    }
    #[inline(always)]
    fn reduce_sum(self, v: __m256) -> f32 {
        // SAFETY: AVX2 is available.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: __m256) -> f32 {
        // SAFETY: AVX2 is available.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn scale_pow2(self, v: __m256, n: __m256) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe {
            // Two factors, because 2^n alone may be out of range where v * 2^n is not.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
            _mm256_mul_ps(_mm256_mul_ps(v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))
        }
    }
    #[inline(always)]
    fn split_pow2(self, v: __m256) -> (__m256, __m256) {
        // SAFETY: AVX2 is available.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let exponent = _mm256_srai_epi32::<23>(_mm256_sub_epi32(bits, _mm256_set1_epi32(SPLIT_BIAS as i32)));
            let mantissa = _mm256_sub_epi32(bits, _mm256_slli_epi32::<23>(exponent));
            (_mm256_castsi256_ps(mantissa), _mm256_cvtepi32_ps(exponent))
        }
    }
    #[inline(always)]
    unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: AVX2 is available; the caller vouches for the block.
        unsafe { transpose_8x8(src, src_stride, dst, dst_stride) }
    }
}

/// Four values of a row, made of what lies in memory.
pub(crate) trait LoadFour: Copy {
    /// How many f32 in memory they are made of.
    const STEP: usize;
    /// # Safety
    /// That many must be readable, and the machine must have what the implementation uses.
    unsafe fn load(self, src: *const f32) -> __m128;
}

#[derive(Clone, Copy)]
struct AsTheyAre;

impl LoadFour for AsTheyAre {
    const STEP: usize = 4;

    #[inline(always)]
    unsafe fn load(self, src: *const f32) -> __m128 {
        // SAFETY: promised by the caller.
        unsafe { _mm_loadu_ps(src) }
    }
}

/// See [`Simd::transpose_8x8`]; shared with AVX-512, where wider shuffles would gain nothing over four such blocks.
///
/// # Safety
/// The machine must have AVX2 and all 64 places of both blocks must be valid.
#[inline(always)]
pub(crate) unsafe fn transpose_8x8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
    // SAFETY: promised by the caller.
    unsafe { transpose_8x8_by(AsTheyAre, src, src_stride, dst, dst_stride) }
}

/// The same with values that are made while they are loaded.
///
/// # Safety
/// The machine must have AVX2 and what `four` needs, and all places of both blocks must be valid.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops with constant bounds unroll, iterators not always")]
pub(crate) unsafe fn transpose_8x8_by<L: LoadFour>(
    four: L,
    src: *const f32,
    src_stride: usize,
    dst: *mut f32,
    dst_stride: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        // No closure and no iterator here: what is not inlined would be compiled without AVX2.
        for side in 0..2 {
            let src = src.wrapping_add(L::STEP * side);
            let mut x = [_mm256_setzero_ps(); 4];
            for r in 0..4 {
                // Rows r and r + 4 share a register from the load on: no shuffle across halves is needed afterwards.
                let low = four.load(src.wrapping_add(r * src_stride));
                let high = four.load(src.wrapping_add((r + 4) * src_stride));
                x[r] = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high);
            }
            let (a, b) = (_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
            let (c, d) = (_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
            let columns = [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xee>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xee>(b, d),
            ];
            for i in 0..4 {
                _mm256_storeu_ps(dst.wrapping_add((4 * side + i) * dst_stride), columns[i]);
            }
        }
    }
}
