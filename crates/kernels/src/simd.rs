//! One vector vocabulary for all instruction sets.
//!
//! A kernel is written once, generic over [`Simd`], as a struct of its arguments that implements [`Kernel`];
//! [`dispatch`] runs it with the instruction set in use. Everything inside `run` must be `#[inline(always)]`, since
//! only code inlined into the entry function is compiled with its instructions. For the same reason no rayon call and
//! no non-inlined closure belongs inside `run`: split the work first, dispatch per piece.

use crate::isa::{Isa, isa};
use crate::quant::f16_to_f32;
use half::{bf16, f16};

/// The widest vector of any instruction set, in f32 lanes.
pub const MAX_LANES: usize = 16;

/// Asks for the cache line of `at` to be brought into the second-level cache, on x86-64; `at` may point anywhere.
#[inline(always)]
pub(crate) fn fetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint touches nothing, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for it to be brought into the first-level cache.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn fetch_near(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint touches nothing, and every 64-bit ARM has it.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(readonly, nostack, preserves_flags));
    }
}

/// A token that proves an instruction set is available, and its operations on vectors of f32.
///
/// Loads and stores of whole vectors panic where the slice is too short; the partial forms use as many lanes as the
/// slice has, up to `LANES`. Lanes that are not loaded are zero.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Number of f32 lanes.
    const LANES: usize;
    /// A vector of f32.
    type V: Copy;
    /// One truth value per lane.
    type M: Copy;

    /// The instruction set this token stands for.
    fn isa(self) -> Isa;
    /// All lanes equal to `x`.
    fn splat(self, x: f32) -> Self::V;
    /// All lanes zero.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }
    /// Loads `LANES` values.
    ///
    /// # Safety
    /// `src` must be valid for reading `LANES` values; alignment is not needed.
    unsafe fn load_ptr(self, src: *const f32) -> Self::V;
    /// Stores `LANES` values.
    ///
    /// # Safety
    /// `dst` must be valid for writing `LANES` values; alignment is not needed.
    unsafe fn store_ptr(self, dst: *mut f32, v: Self::V);
    /// Loads the first `LANES` values of `src`.
    #[inline(always)]
    fn load(self, src: &[f32]) -> Self::V {
        assert!(src.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.load_ptr(src.as_ptr()) }
    }
    /// Stores into the first `LANES` places of `dst`.
    #[inline(always)]
    fn store(self, dst: &mut [f32], v: Self::V) {
        assert!(dst.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.store_ptr(dst.as_mut_ptr(), v) }
    }
    /// Stores the lowest eight bits of each lane into the first `LANES` places of `dst`.
    #[inline(always)]
    fn store_low_bytes(self, dst: &mut [i8], v: Self::V) {
        let mut lanes = [0.0; MAX_LANES];
        self.store(&mut lanes, v);
        for (byte, lane) in dst[..Self::LANES].iter_mut().zip(lanes) {
            *byte = lane.to_bits() as i8;
        }
    }
    /// Loads `min(src.len(), LANES)` values, the other lanes are zero.
    fn load_partial(self, src: &[f32]) -> Self::V;
    /// Stores the first `min(dst.len(), LANES)` lanes.
    fn store_partial(self, dst: &mut [f32], v: Self::V);
    /// Loads `LANES` bf16 values, widened (exact).
    fn load_bf16(self, src: &[bf16]) -> Self::V;
    /// Loads `LANES` values of half precision, widened (exact).
    ///
    /// # Safety
    /// `src` must be valid for reading `LANES` values; alignment is not needed.
    #[inline(always)]
    unsafe fn load_f16(self, src: *const f16) -> Self::V {
        let mut wide = [0.0; MAX_LANES];
        for (i, wide) in wide[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: the caller vouches for the values.
            *wide = f16_to_f32(unsafe { src.add(i).read_unaligned() }.to_bits());
        }
        self.load(&wide)
    }
    /// `LANES` numbers of a table, which half bytes stand for: the upper one of each byte first.
    #[inline(always)]
    fn look_up(self, table: &[f32; 16], codes: &[u8]) -> Self::V {
        let mut numbers = [0.0; MAX_LANES];
        for (pair, &code) in numbers[..Self::LANES].chunks_exact_mut(2).zip(codes) {
            pair.copy_from_slice(&[table[usize::from(code >> 4)], table[usize::from(code & 15)]]);
        }
        self.load(&numbers)
    }
    /// Stores `LANES` values rounded to the nearest bf16, ties to even; NaN stays NaN.
    fn store_bf16(self, dst: &mut [bf16], v: Self::V);
    /// Loads `min(src.len(), LANES)` bf16 values, the other lanes are zero.
    #[inline(always)]
    fn load_bf16_partial(self, src: &[bf16]) -> Self::V {
        let mut buffer = [bf16::ZERO; MAX_LANES];
        let n = src.len().min(Self::LANES);
        buffer[..n].copy_from_slice(&src[..n]);
        self.load_bf16(&buffer)
    }
    /// Stores the first `min(dst.len(), LANES)` lanes as bf16.
    #[inline(always)]
    fn store_bf16_partial(self, dst: &mut [bf16], v: Self::V) {
        let mut buffer = [bf16::ZERO; MAX_LANES];
        let n = dst.len().min(Self::LANES);
        self.store_bf16(&mut buffer, v);
        dst[..n].copy_from_slice(&buffer[..n]);
    }

    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`: fused, except on [`Scalar`], where it is two roundings.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c + a.low * b.low + a.high * b.high`, where a lane of `a` and of `b` is two bf16. One instruction where the CPU has
    /// it (its rounding is its own), else two steps of [`Simd::fma`], low first.
    ///
    /// # Safety
    /// On AVX-512 the machine must have the instruction; kernels that use it are started by [`dispatch_pairs`].
    #[inline(always)]
    unsafe fn dot_bf16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.fma(self.high_bf16(a), self.high_bf16(b), self.fma(self.low_bf16(a), self.low_bf16(b), c))
    }
    /// The lower of the two bf16 of each lane, widened.
    fn low_bf16(self, pairs: Self::V) -> Self::V;
    /// The upper one.
    fn high_bf16(self, pairs: Self::V) -> Self::V;
    /// Pairs of bf16, one from each of two rows: lane i is `low[i]` and `high[i]`, or zero without `high`.
    ///
    /// # Safety
    /// `LANES` values must be readable in each.
    #[inline(always)]
    unsafe fn interleave_bf16(self, low: *const bf16, high: Option<*const bf16>) -> Self::V {
        let mut pairs = [0.0_f32; MAX_LANES];
        for (i, pair) in pairs[..Self::LANES].iter_mut().enumerate() {
            // SAFETY: promised by the caller.
            let (low, high) = unsafe { (*low.add(i), high.map_or(bf16::ZERO, |high| *high.add(i))) };
            *pair = f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16);
        }
        self.load(&pairs)
    }
    /// Pairs of bf16 from neighbours in `first`, then in `second`, rounded to nearest, ties to even.
    ///
    /// # Safety
    /// As [`Simd::dot_bf16`].
    #[inline(always)]
    unsafe fn join_bf16(self, first: Self::V, second: Self::V) -> Self::V {
        let mut halves = [bf16::ZERO; 2 * MAX_LANES];
        self.store_bf16(&mut halves, first);
        self.store_bf16(&mut halves[Self::LANES..], second);
        // SAFETY: as many bf16 as two vectors have are one vector of pairs.
        unsafe { self.load_ptr(halves.as_ptr().cast()) }
    }
    /// Pairs of bf16: lane i is `low[i]` and `high[i]`, rounded to nearest, ties to even.
    ///
    /// # Safety
    /// As [`Simd::dot_bf16`].
    #[inline(always)]
    unsafe fn pair_bf16(self, low: Self::V, high: Self::V) -> Self::V {
        let (mut halves, mut pairs) = ([[bf16::ZERO; MAX_LANES]; 2], [0.0_f32; MAX_LANES]);
        self.store_bf16(&mut halves[0], low);
        self.store_bf16(&mut halves[1], high);
        for (i, pair) in pairs.iter_mut().enumerate() {
            *pair = f32::from_bits(u32::from(halves[0][i].to_bits()) | u32::from(halves[1][i].to_bits()) << 16);
        }
        self.load(&pairs)
    }
    /// [`Simd::transpose_8x8`] of pairs of bf16, which are made of neighbours in rows of sixteen f32.
    ///
    /// # Safety
    /// As [`Simd::transpose_8x8`] for 128 places in `src`, and as [`Simd::dot_bf16`].
    #[inline(always)]
    unsafe fn transpose_8x8_to_bf16(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for c in 0..8 {
            for r in 0..8 {
                // SAFETY: the caller vouches for all places of the block.
                unsafe {
                    let at = src.add(r * src_stride + 2 * c);
                    let (low, high) = (bf16::from_f32(*at).to_bits(), bf16::from_f32(*at.add(1)).to_bits());
                    *dst.add(c * dst_stride + r) = f32::from_bits(u32::from(low) | u32::from(high) << 16);
                }
            }
        }
    }
    /// `c - a * b`, fused like [`Simd::fma`].
    #[inline(always)]
    fn neg_fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.fma(self.neg(a), b, c)
    }
    /// `-a`
    fn neg(self, a: Self::V) -> Self::V;
    /// `|a|`
    fn abs(self, a: Self::V) -> Self::V;
    /// `|a|` with the sign of `sign`; `a` must not be negative.
    fn with_sign(self, a: Self::V, sign: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: where either is NaN, `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: where either is NaN, `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Nearest integer, ties to even; a zero may have either sign.
    fn round(self, a: Self::V) -> Self::V;

    /// `a < b` per lane, false for NaN.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a <= b` per lane, false for NaN.
    fn le(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a == b` per lane, false for NaN.
    fn eq(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a > b` per lane, false for NaN.
    #[inline(always)]
    fn gt(self, a: Self::V, b: Self::V) -> Self::M {
        self.lt(b, a)
    }
    /// `a >= b` per lane, false for NaN.
    #[inline(always)]
    fn ge(self, a: Self::V, b: Self::V) -> Self::M {
        self.le(b, a)
    }
    /// `if m { yes } else { no }` per lane.
    fn select(self, m: Self::M, yes: Self::V, no: Self::V) -> Self::V;
    /// Whether all lanes are true.
    fn all(self, m: Self::M) -> bool;
    /// Lanes below `n` are true.
    fn first(self, n: usize) -> Self::M;

    /// Sum of all lanes, always added in the same order.
    fn reduce_sum(self, v: Self::V) -> f32;
    /// Largest lane.
    fn reduce_max(self, v: Self::V) -> f32;

    /// `v * 2^n` for integer-valued `n` in -252..=254; over- and underflow as in exact arithmetic, up to one rounding.
    fn scale_pow2(self, v: Self::V, n: Self::V) -> Self::V;
    /// `(m, e)` with `v = m * 2^e` and `m` in [0.75, 1.5), for finite, positive, normal `v`.
    fn split_pow2(self, v: Self::V) -> (Self::V, Self::V);

    /// Writes the transpose of an 8 by 8 block: `dst[c * dst_stride + r] = src[r * src_stride + c]`, in ascending order of
    /// c: where the lines of `dst` overlap, the later one stands.
    ///
    /// # Safety
    /// All 64 places must be valid, for reading in `src` and for writing in `dst`.
    #[inline(always)]
    unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for c in 0..8 {
            for r in 0..8 {
                // SAFETY: the caller vouches for all places of the block.
                unsafe { *dst.add(c * dst_stride + r) = *src.add(r * src_stride + c) };
            }
        }
    }
}

/// Work that runs on one instruction set, with its arguments as fields.
pub trait Kernel {
    /// What `run` returns.
    type Output;
    /// The work. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `kernel` on the instruction set in use.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    dispatch_on(isa(), kernel)
}

/// Runs `kernel` on `isa`. Panics where the machine lacks it.
#[inline]
pub fn dispatch_on<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa.is_supported(), "this machine has no {}", isa.name());
    match isa {
        Isa::Scalar => kernel.run(Scalar),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: support was checked above.
        Isa::Avx2 => unsafe { crate::simd_avx2::enter(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: support was checked above.
        Isa::Avx512 => unsafe { crate::simd_avx512::enter(kernel) },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => kernel.run(crate::simd_neon::Neon),
        _ => unreachable!("support was checked above"),
    }
}

/// Runs a kernel on pairs of bf16, whose instructions ([`Simd::dot_bf16`], or tiles) it uses, on `isa`. Panics where the
/// machine lacks them.
#[inline]
pub fn dispatch_pairs<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        let has_some = crate::isa::has_bf16_dot_on(isa) || crate::isa::has_tiles_on(isa);
        assert!(has_some, "this machine multiplies no bf16");
        // SAFETY: support was checked above.
        return unsafe { crate::simd_avx512::enter_with_bf16_dot(kernel) };
    }
    dispatch_on(isa, kernel)
}

/// The portable instruction set: eight lanes in an array.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

const SCALAR_LANES: usize = 8;
type Lanes = [f32; SCALAR_LANES];

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> Lanes {
    let mut out = [0.0; SCALAR_LANES];
    for (i, o) in out.iter_mut().enumerate() {
        *o = f(i);
    }
    out
}

#[inline(always)]
fn truths(f: impl Fn(usize) -> bool) -> [bool; SCALAR_LANES] {
    let mut out = [false; SCALAR_LANES];
    for (i, o) in out.iter_mut().enumerate() {
        *o = f(i);
    }
    out
}

impl Simd for Scalar {
    const LANES: usize = SCALAR_LANES;
    type V = Lanes;
    type M = [bool; SCALAR_LANES];

    #[inline(always)]
    fn isa(self) -> Isa {
        Isa::Scalar
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; SCALAR_LANES]
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> Lanes {
        // SAFETY: the caller vouches for `LANES` readable values.
        unsafe { src.cast::<Lanes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32, v: Lanes) {
        // SAFETY: the caller vouches for `LANES` writable values.
        unsafe { dst.cast::<Lanes>().write_unaligned(v) }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> Lanes {
        lanes(|i| src.get(i).copied().unwrap_or(0.0))
    }
    #[inline(always)]
    fn store_partial(self, dst: &mut [f32], v: Lanes) {
        for (d, x) in dst.iter_mut().zip(v) {
            *d = x;
        }
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> Lanes {
        assert!(src.len() >= SCALAR_LANES);
        lanes(|i| f32::from_bits(u32::from(src[i].to_bits()) << 16))
    }
    #[inline(always)]
    fn store_bf16(self, dst: &mut [bf16], v: Lanes) {
        assert!(dst.len() >= SCALAR_LANES);
        for (d, x) in dst.iter_mut().zip(v) {
            *d = bf16::from_f32(x);
        }
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn low_bf16(self, pairs: Lanes) -> Lanes {
        lanes(|i| f32::from_bits(pairs[i].to_bits() << 16))
    }
    #[inline(always)]
    fn high_bf16(self, pairs: Lanes) -> Lanes {
        lanes(|i| f32::from_bits(pairs[i].to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    fn neg(self, a: Lanes) -> Lanes {
        lanes(|i| -a[i])
    }
    #[inline(always)]
    fn abs(self, a: Lanes) -> Lanes {
        lanes(|i| a[i].abs())
    }
    #[inline(always)]
    fn with_sign(self, a: Lanes, sign: Lanes) -> Lanes {
        lanes(|i| a[i].copysign(sign[i]))
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sqrt(self, a: Lanes) -> Lanes {
        lanes(|i| a[i].sqrt())
    }
    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        // Adding and taking away 1.5 * 2^23 rounds to even without a library call; larger values are integers already.
        const MAGIC: f32 = 12_582_912.0;
        lanes(|i| if a[i].abs() < 4_194_304.0 { (a[i] + MAGIC) - MAGIC } else { a[i] })
    }
    #[inline(always)]
    fn lt(self, a: Lanes, b: Lanes) -> Self::M {
        truths(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn le(self, a: Lanes, b: Lanes) -> Self::M {
        truths(|i| a[i] <= b[i])
    }
    #[inline(always)]
    fn eq(self, a: Lanes, b: Lanes) -> Self::M {
        truths(|i| a[i] == b[i])
    }
    #[inline(always)]
    fn select(self, m: Self::M, yes: Lanes, no: Lanes) -> Lanes {
        lanes(|i| if m[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn all(self, m: Self::M) -> bool {
        m.into_iter().all(|x| x)
    }
    #[inline(always)]
    fn first(self, n: usize) -> Self::M {
        truths(|i| i < n)
    }
    #[inline(always)]
    fn reduce_sum(self, v: Lanes) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn reduce_max(self, v: Lanes) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn scale_pow2(self, v: Lanes, n: Lanes) -> Lanes {
        lanes(|i| {
            let n = n[i] as i32;
            let half = n >> 1;
            v[i] * pow2(half) * pow2(n - half)
        })
    }
    #[inline(always)]
    fn split_pow2(self, v: Lanes) -> (Lanes, Lanes) {
        let exponent = |x: f32| (x.to_bits().wrapping_sub(SPLIT_BIAS) as i32) >> 23;
        let m = lanes(|i| f32::from_bits(v[i].to_bits().wrapping_sub((exponent(v[i]) << 23) as u32)));
        (m, lanes(|i| exponent(v[i]) as f32))
    }
}

/// The bits of 0.75: taking them away before shifting out the mantissa centres the mantissa on 1.
pub(crate) const SPLIT_BIAS: u32 = 0x3f40_0000;

#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}
