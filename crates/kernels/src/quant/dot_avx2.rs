//! [`Ints`] on 256-bit vectors: AVX2, and AVX-512 VNNI, whose dot instructions do two steps at once. (Vectors of 512
//! bits would add up in another order, and Zen 4 splits them anyway.)

use super::dot::{IntKernel, Ints, LARGE, Row32, Row256, SMALL, SUMS, X32, X256, total};
use std::arch::x86_64::*;

/// The two steps that instruction sets differ in.
trait Steps: Copy {
    /// Sums of four products, unsigned times signed; no sum of two may leave 16 bits.
    unsafe fn fours(self, unsigned: __m256i, signed: __m256i) -> __m256i;
    /// `sum` plus the sums of two products of 16-bit numbers.
    unsafe fn add_twos(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i;
}

#[derive(Clone, Copy)]
struct Avx2;

impl Steps for Avx2 {
    #[inline(always)]
    unsafe fn fours(self, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1)) }
    }
    #[inline(always)]
    unsafe fn add_twos(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
    }
}

#[derive(Clone, Copy)]
struct Vnni;

impl Steps for Vnni {
    #[inline(always)]
    unsafe fn fours(self, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: AVX-512 VNNI and VL are available.
        unsafe { _mm256_dpbusd_epi32(_mm256_setzero_si256(), unsigned, signed) }
    }
    #[inline(always)]
    unsafe fn add_twos(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX-512 VNNI and VL are available.
        unsafe { _mm256_dpwssd_epi32(sum, a, b) }
    }
}

/// Whether this machine has dot instructions for bytes on 256-bit vectors.
pub(super) fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
}

/// Runs work compiled with AVX2 and FMA.
///
/// # Safety
/// The machine must have both.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn enter(kernel: impl IntKernel) {
    kernel.run(Vectors(Avx2));
}

/// Runs work compiled with AVX-512 VNNI.
///
/// # Safety
/// The machine must have it, VL, AVX2 and FMA.
#[target_feature(enable = "avx2,fma,avx512vnni,avx512vl")]
pub(super) unsafe fn enter_vnni(kernel: impl IntKernel) {
    kernel.run(Vectors(Vnni));
}

/// Proof that the instructions of `S` are available.
#[derive(Clone, Copy)]
struct Vectors<S>(S);

#[inline(always)]
unsafe fn load<T>(from: &[T], at: usize) -> __m256i {
    debug_assert!((at * size_of::<T>()) + 32 <= size_of_val(from));
    // SAFETY: the caller vouches for 32 bytes from there on.
    unsafe { _mm256_loadu_si256(from.as_ptr().add(at).cast()) }
}

/// The sum of all lanes, in [`total`]'s order.
#[inline(always)]
unsafe fn sum_of(v: __m256) -> f32 {
    let mut lanes = [0.0; SUMS];
    // SAFETY: eight numbers have room.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), v) };
    total(lanes)
}

impl<S: Steps> Ints for Vectors<S> {
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: &[u8; 16]) -> [i8; 16] {
        let mut found = [0; 16];
        // SAFETY: sixteen bytes are read and written; AVX2 is available.
        unsafe {
            let (table, index) = (_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(index.as_ptr().cast()));
            _mm_storeu_si128(found.as_mut_ptr().cast(), _mm_shuffle_epi8(table, index));
        }
        found
    }

    #[inline(always)]
    fn dot32<const M: usize>(self, w: &Row32<'_>, x: &[X32<'_>; M]) -> [f32; M] {
        let blocks = w.q.len() / SMALL;
        let padded = blocks.next_multiple_of(SUMS);
        assert!(w.d.len() >= padded && w.min.is_none_or(|min| min.len() >= padded), "scales of a row of weights");
        for x in x {
            assert!(x.q.len() >= blocks * SMALL && x.d.len() >= padded && x.sum.len() >= padded, "activations' row");
        }
        // SAFETY: the lengths were checked, and the instructions are available.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; M];
            let mut scales = [[0.0_f32; SUMS]; M];
            for first in (0..blocks).step_by(SUMS) {
                let wd = _mm256_loadu_ps(w.d.as_ptr().add(first));
                for (scales, x) in scales.iter_mut().zip(x) {
                    let xd = _mm256_loadu_ps(x.d.as_ptr().add(first));
                    _mm256_storeu_ps(scales.as_mut_ptr(), _mm256_mul_ps(wd, xd));
                }
                for b in first..blocks.min(first + SUMS) {
                    let wq = load(w.q, b * SMALL);
                    let magnitude = _mm256_abs_epi8(wq);
                    for ((sums, scales), x) in sums.iter_mut().zip(&scales).zip(x) {
                        let fours = self.0.fours(magnitude, _mm256_sign_epi8(load(x.q, b * SMALL), wq));
                        let scale = _mm256_broadcast_ss(&scales[b - first]);
                        sums[b % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(fours), scale, sums[b % 2]);
                    }
                }
            }
            let mut all = sums.map(|[even, odd]| _mm256_add_ps(even, odd));
            if let Some(min) = w.min {
                for first in (0..blocks).step_by(SUMS) {
                    let min = _mm256_loadu_ps(min.as_ptr().add(first));
                    for (all, x) in all.iter_mut().zip(x) {
                        *all = _mm256_fnmadd_ps(min, _mm256_loadu_ps(x.sum.as_ptr().add(first)), *all);
                    }
                }
            }
            all.map(|all| sum_of(all))
        }
    }

    #[inline(always)]
    fn dot256<const M: usize>(self, w: &Row256<'_>, x: &[X256<'_>; M]) -> [f32; M] {
        let blocks = w.d.len();
        let fits = w.q.len() >= blocks * LARGE && w.dmin.len() >= blocks;
        assert!(fits && w.scales.len() >= 16 * blocks && w.mins.len() >= 16 * blocks, "scales of a row of weights");
        for x in x {
            let fits = x.q.len() >= blocks * LARGE && x.d.len() >= blocks && x.sums.len() >= 16 * blocks;
            assert!(fits, "activations' row");
        }
        // SAFETY: the lengths were checked, and the instructions are available.
        unsafe {
            let mut all = [_mm256_setzero_ps(); M];
            for b in 0..blocks {
                let scales = load(w.scales, 16 * b);
                let mut sums = [_mm256_setzero_si256(); M];
                for c in 0..SUMS {
                    let wq = load(w.q, b * LARGE + c * SMALL);
                    // Sixteen-bit number c of either half, everywhere in that half.
                    let pair = _mm256_set1_epi16((((2 * c + 1) << 8) | (2 * c)) as i16);
                    let scale = _mm256_shuffle_epi8(scales, pair);
                    for (sum, x) in sums.iter_mut().zip(x) {
                        let twos = _mm256_maddubs_epi16(wq, load(x.q, b * LARGE + c * SMALL));
                        *sum = self.0.add_twos(*sum, twos, scale);
                    }
                }
                let mins = load(w.mins, 16 * b);
                for ((all, sum), x) in all.iter_mut().zip(sums).zip(x) {
                    let below = _mm256_madd_epi16(mins, load(x.sums, 16 * b));
                    let (d, dmin) = (_mm256_set1_ps(w.d[b] * x.d[b]), _mm256_set1_ps(w.dmin[b] * x.d[b]));
                    *all = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), d, *all);
                    *all = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(below), dmin, *all);
                }
            }
            all.map(|all| sum_of(all))
        }
    }
}
