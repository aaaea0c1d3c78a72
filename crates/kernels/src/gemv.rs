//! Products with at most eight rows: one token, or a few, against a weight matrix.
//!
//! `c[i][j] = sum over k of a[i][k] w[j][k]`, with `w` row-major, is bound by reading `w` once. The obvious way, a dot
//! product per row of `w` with the lanes along k, adds in another order than the blocked product and would break
//! the contract of [`crate::gemm`]. So the lanes run along j: eight rows of `w` are loaded eight columns at a time and
//! transposed in registers, and every lane then continues its own chain over ascending k. Two neighbouring bf16 of a row
//! count as one column ([`Pair`]) where the CPU adds two products at a time.

use crate::gemm::{Mat, MatMut, Start};
use crate::isa::{Isa, isa};
use crate::parallel::for_ranges;
use crate::scratch::with_scratch;
use half::{bf16, f16};
use std::ops::Range;

/// Most rows of `a` this path takes.
pub(crate) const MAX_ROWS: usize = 8;

/// Bytes of weights per piece of parallel work.
const PIECE_BYTES: usize = 128 * 1024;

/// What a weight may be stored as.
pub(crate) trait Weight: Copy + Send + Sync + 'static {
    /// Whether products need [`Isa::Avx512`] with its bf16 dot instruction.
    #[cfg(target_arch = "x86_64")]
    const IS_PAIR: bool = false;
    /// What a lane holds of it.
    fn unit(self) -> f32;
    /// Continues eight chains.
    ///
    /// # Safety
    /// AVX2 and FMA must be available, and for pairs the bf16 dot instruction.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn add_product(
        a: std::arch::x86_64::__m256,
        w: std::arch::x86_64::__m256,
        sum: std::arch::x86_64::__m256,
    ) -> std::arch::x86_64::__m256 {
        // SAFETY: passed on from the caller.
        unsafe { std::arch::x86_64::_mm256_fmadd_ps(a, w, sum) }
    }
    /// Loads eight rows of four values, rows `stride` apart, transposed: vector p holds column p.
    ///
    /// # Safety
    /// AVX2 must be available and the block readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn four_columns(block: *const Self, stride: usize) -> [std::arch::x86_64::__m256; 4];
}

/// Whether a product is one for this path: few rows, both operands contiguous along k, rows of `c` contiguous.
pub(crate) fn suits<T, U>(c: &MatMut<'_, f32>, a: &Mat<'_, T>, b: &Mat<'_, U>) -> bool {
    let contiguous = (a.col_stride == 1 || a.cols == 1) && b.row_stride == 1 && c.col_stride == 1;
    (1..=MAX_ROWS).contains(&a.rows) && contiguous && b.col_stride >= b.rows && a.cols > 0
}

/// Two neighbours in k, multiplied together.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Pair([bf16; 2]);

/// Whether a bf16 product [`suits`] and its rows consist of whole pairs.
pub(crate) fn suits_pairs(c: &MatMut<'_, f32>, a: &Mat<'_, bf16>, b: &Mat<'_, bf16>) -> bool {
    suits(c, a, b) && a.cols.is_multiple_of(2) && b.col_stride.is_multiple_of(2)
}

/// `c = start + a b` for a product that [`suits_pairs`], on a CPU with the bf16 dot instruction.
pub(crate) fn gemv_pairs(c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, start: Start<'_>) {
    assert!(crate::isa::has_bf16_dot());
    let units = a.cols / 2;
    // SAFETY: two bf16 lie side by side as in a pair, which is aligned as they are.
    let pairs = unsafe { std::slice::from_raw_parts(b.data.as_ptr().cast::<Pair>(), b.data.len() / 2) };
    let b = Mat { data: pairs, rows: units, cols: b.cols, row_stride: 1, col_stride: b.col_stride / 2 };
    with_scratch(a.rows * units, |factors: &mut [f32]| {
        for (i, row) in factors.chunks_exact_mut(units).enumerate() {
            for (x, pair) in row.iter_mut().zip(a.data[i * a.row_stride..][..a.cols].chunks_exact(2)) {
                *x = Pair([pair[0], pair[1]]).unit();
            }
        }
        gemv(c, Mat::rows(factors, a.rows, units), b, start);
    });
}

/// `c = start + a b` for a product that [`suits`].
pub(crate) fn gemv<W: Weight>(c: MatMut<'_, f32>, a: Mat<'_, f32>, b: Mat<'_, W>, start: Start<'_>) {
    gemv_on(isa(), c, a, b, start);
}

/// Like [`gemv`], on a given instruction set.
pub(crate) fn gemv_on<W: Weight>(isa: Isa, c: MatMut<'_, f32>, a: Mat<'_, f32>, b: Mat<'_, W>, start: Start<'_>) {
    assert!(isa.is_supported());
    let (k, n) = (b.rows, b.cols);
    let job = Job {
        c: Pointer(c.data.as_mut_ptr()),
        c_stride: c.row_stride,
        a: a.data,
        a_stride: a.row_stride,
        rows: a.rows,
        w: b.data,
        w_stride: b.col_stride,
        k,
        start,
    };
    let rows_per_piece = (PIECE_BYTES / (k * size_of::<W>())).next_multiple_of(2 * BLOCK).max(2 * BLOCK);
    for_ranges(n, rows_per_piece, |columns| {
        // SAFETY: `suits` and the matrices' own checks put all elements inside the slices; pieces write disjoint columns.
        unsafe { job.run(isa, columns) }
    });
}

/// Rows of `w` that are transposed together.
const BLOCK: usize = 8;

struct Pointer(*mut f32);
// SAFETY: every piece writes its own columns.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

struct Job<'a, W> {
    c: Pointer,
    c_stride: usize,
    a: &'a [f32],
    a_stride: usize,
    rows: usize,
    w: &'a [W],
    w_stride: usize,
    k: usize,
    start: Start<'a>,
}

impl<W: Weight> Job<'_, W> {
    /// # Safety
    /// `columns` must be inside the matrix, and no other thread may write them.
    unsafe fn run(&self, isa: Isa, columns: Range<usize>) {
        // SAFETY: passed on from the caller; the instruction set was checked.
        unsafe {
            match isa {
                Isa::Scalar => self.portable::<false>(columns),
                Isa::Neon => self.portable::<true>(columns),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::Avx512 if W::IS_PAIR => avx2::run_pairs(self, columns),
                #[cfg(target_arch = "x86_64")]
                // Sixteen lanes would not help: this is bound by memory.
                Isa::Avx2 | Isa::Avx512 => avx2::run(self, columns),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx2 | Isa::Avx512 => unreachable!("support was checked above"),
            }
        }
    }

    /// Plain Rust; with `FUSED` the chains are those of an instruction set that rounds once per step.
    ///
    /// # Safety
    /// As [`Job::run`].
    unsafe fn portable<const FUSED: bool>(&self, columns: Range<usize>) {
        for first in columns.clone().step_by(BLOCK) {
            let width = BLOCK.min(columns.end - first);
            for i in 0..self.rows {
                let a = &self.a[i * self.a_stride..][..self.k];
                // Eight chains side by side, so that they do not wait for each other.
                let mut acc: [f32; BLOCK] = std::array::from_fn(|j| match j < width {
                    // SAFETY: passed on from the caller.
                    true => unsafe { self.first(i, first + j) },
                    false => 0.0,
                });
                for (p, &a) in a.iter().enumerate() {
                    for (j, acc) in acc[..width].iter_mut().enumerate() {
                        let w = self.w[(first + j) * self.w_stride + p].unit();
                        *acc = if FUSED { a.mul_add(w, *acc) } else { a * w + *acc };
                    }
                }
                for (j, &acc) in acc[..width].iter().enumerate() {
                    // SAFETY: passed on from the caller.
                    unsafe { self.put(i, first + j, acc) }
                }
            }
        }
    }

    /// Where the chain of an element starts.
    ///
    /// # Safety
    /// As [`Job::run`], for column `j`.
    #[inline(always)]
    unsafe fn first(&self, i: usize, j: usize) -> f32 {
        match self.start {
            Start::Zero => 0.0,
            // SAFETY: the element is inside `c` and no other thread touches it.
            Start::Sum => unsafe { *self.c.0.add(i * self.c_stride + j) },
            Start::Bias(bias) => bias[j],
        }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// As [`Job::run`], for column `j`.
    #[inline(always)]
    unsafe fn put(&self, i: usize, j: usize, sum: f32) {
        // SAFETY: the element is inside `c` and no other thread touches it.
        unsafe { *self.c.0.add(i * self.c_stride + j) = sum };
    }
}

impl Weight for f32 {
    #[inline(always)]
    fn unit(self) -> f32 {
        self
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn four_columns(block: *const f32, stride: usize) -> [std::arch::x86_64::__m256; 4] {
        // SAFETY: passed on from the caller.
        unsafe { avx2::four_columns_f32(block, stride) }
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn unit(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn four_columns(block: *const bf16, stride: usize) -> [std::arch::x86_64::__m256; 4] {
        // SAFETY: passed on from the caller.
        unsafe { avx2::four_columns_16(block.cast(), stride).map(|column| avx2::widen(column)) }
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn unit(self) -> f32 {
        crate::quant::f16_to_f32(self.to_bits())
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn four_columns(block: *const f16, stride: usize) -> [std::arch::x86_64::__m256; 4] {
        // SAFETY: passed on from the caller; two bytes each.
        unsafe { avx2::four_columns_16(block.cast(), stride).map(|column| std::arch::x86_64::_mm256_cvtph_ps(column)) }
    }
}

impl Weight for Pair {
    #[cfg(target_arch = "x86_64")]
    const IS_PAIR: bool = true;

    #[inline(always)]
    fn unit(self) -> f32 {
        f32::from_bits(u32::from(self.0[0].to_bits()) | u32::from(self.0[1].to_bits()) << 16)
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn add_product(
        a: std::arch::x86_64::__m256,
        w: std::arch::x86_64::__m256,
        sum: std::arch::x86_64::__m256,
    ) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::{__m256, __m256bh, _mm256_dpbf16_ps};
        // SAFETY: passed on from the caller; both types are 256 bits.
        unsafe {
            _mm256_dpbf16_ps(
                sum,
                std::mem::transmute::<__m256, __m256bh>(a),
                std::mem::transmute::<__m256, __m256bh>(w),
            )
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn four_columns(block: *const Pair, stride: usize) -> [std::arch::x86_64::__m256; 4] {
        // SAFETY: passed on from the caller; a pair is as long as an f32, and loads need no alignment.
        unsafe { avx2::four_columns_f32(block.cast(), stride) }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BLOCK, Job, Start, Weight};
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// How far ahead a row of `w` is fetched, in bytes.
    const AHEAD: usize = 512;
    /// Rows a multiple of this many bytes apart are fetched to the second-level cache.
    const CROWDED: usize = 2048;

    /// # Safety
    /// As [`Job::run`]; AVX2, FMA and F16C must be available.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run<W: Weight>(job: &Job<'_, W>, columns: Range<usize>) {
        // SAFETY: passed on from the caller.
        unsafe { by_rows(job, columns) }
    }

    /// # Safety
    /// As [`Job::run`]; AVX-512 with bf16 dot instructions must be available.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bf16")]
    pub(super) unsafe fn run_pairs<W: Weight>(job: &Job<'_, W>, columns: Range<usize>) {
        // SAFETY: passed on from the caller.
        unsafe { by_rows(job, columns) }
    }

    #[inline(always)]
    unsafe fn by_rows<W: Weight>(job: &Job<'_, W>, columns: Range<usize>) {
        // SAFETY: passed on from the caller. Two blocks at a time hide the latency of the chains where one row of `a`
        // gives each block a single chain; with more rows the registers are needed for these.
        unsafe {
            match job.rows {
                1 => blocks::<W, 1, 2>(job, columns),
                2 => blocks::<W, 2, 2>(job, columns),
                3 => blocks::<W, 3, 1>(job, columns),
                4 => blocks::<W, 4, 1>(job, columns),
                5 => blocks::<W, 5, 1>(job, columns),
                6 => blocks::<W, 6, 1>(job, columns),
                7 => blocks::<W, 7, 1>(job, columns),
                _ => blocks::<W, 8, 1>(job, columns),
            }
        }
    }

    #[inline(always)]
    unsafe fn blocks<W: Weight, const M: usize, const G: usize>(job: &Job<'_, W>, columns: Range<usize>) {
        let mut j = columns.start;
        // SAFETY: passed on from the caller; every range of columns below stays inside `columns`.
        unsafe {
            while j + G * BLOCK <= columns.end {
                group::<W, M, G>(job, j);
                j += G * BLOCK;
            }
            while j + BLOCK <= columns.end {
                group::<W, M, 1>(job, j);
                j += BLOCK;
            }
            for j in j..columns.end {
                for i in 0..M {
                    let (a, w) = (&job.a[i * job.a_stride..][..job.k], &job.w[j * job.w_stride..][..job.k]);
                    let mut sum = _mm256_set1_ps(job.first(i, j));
                    for (&a, w) in a.iter().zip(w) {
                        sum = W::add_product(_mm256_set1_ps(a), _mm256_set1_ps(w.unit()), sum);
                    }
                    job.put(i, j, _mm256_cvtss_f32(sum));
                }
            }
        }
    }

    /// G times eight columns of `c`, M rows.
    #[inline(always)]
    unsafe fn group<W: Weight, const M: usize, const G: usize>(job: &Job<'_, W>, j: usize) {
        // A whole cache line of each row is used up before the next is touched: rows a power of two apart compete for
        // the same few places in the first-level cache.
        let line = 64 / size_of::<W>();
        // SAFETY: passed on from the caller; prefetches may point anywhere.
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); M]; G];
            for (g, acc) in acc.iter_mut().enumerate() {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = first_block(job, i, j + g * BLOCK);
                }
            }
            let w = job.w.as_ptr().add(j * job.w_stride);
            // Rows this far apart share places in the first-level cache, which does not hold a line of each.
            let is_crowded = (job.w_stride * size_of::<W>()).is_multiple_of(CROWDED);
            let mut p = 0;
            while p + line <= job.k {
                // Past the end of these rows come the rows of the next group.
                let ahead = p + AHEAD / size_of::<W>();
                let ahead = if ahead < job.k { ahead } else { ahead - job.k + G * BLOCK * job.w_stride };
                for (g, acc) in acc.iter_mut().enumerate() {
                    let rows = w.add(g * BLOCK * job.w_stride + p);
                    let next = w.wrapping_add(g * BLOCK * job.w_stride + ahead);
                    for r in 0..BLOCK {
                        let next = next.wrapping_add(r * job.w_stride).cast();
                        if is_crowded {
                            _mm_prefetch::<_MM_HINT_T1>(next);
                        } else {
                            _mm_prefetch::<_MM_HINT_T0>(next);
                        }
                    }
                    for q in (0..line).step_by(BLOCK) {
                        block::<W, M>(job, rows.add(q), p + q, acc);
                    }
                }
                p += line;
            }
            while p + BLOCK <= job.k {
                for (g, acc) in acc.iter_mut().enumerate() {
                    block::<W, M>(job, w.add(g * BLOCK * job.w_stride + p), p, acc);
                }
                p += BLOCK;
            }
            for p in p..job.k {
                for (g, acc) in acc.iter_mut().enumerate() {
                    let mut column = [0.0_f32; BLOCK];
                    for (r, x) in column.iter_mut().enumerate() {
                        *x = (*w.add((g * BLOCK + r) * job.w_stride + p)).unit();
                    }
                    let column = _mm256_loadu_ps(column.as_ptr());
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let a = _mm256_set1_ps(*job.a.as_ptr().add(i * job.a_stride + p));
                        *acc = W::add_product(a, column, *acc);
                    }
                }
            }
            for (g, acc) in acc.iter().enumerate() {
                for (i, &acc) in acc.iter().enumerate() {
                    put_block(job, i, j + g * BLOCK, acc);
                }
            }
        }
    }

    /// Continues the chains by eight steps.
    #[inline(always)]
    unsafe fn block<W: Weight, const M: usize>(job: &Job<'_, W>, w: *const W, p: usize, acc: &mut [__m256; M]) {
        // SAFETY: passed on from the caller.
        unsafe {
            // Four columns at a time leave registers for the chains of eight rows.
            for half in [0, BLOCK / 2] {
                let columns = W::four_columns(w.add(half), job.w_stride);
                for (q, &column) in columns.iter().enumerate() {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let a = _mm256_broadcast_ss(&*job.a.as_ptr().add(i * job.a_stride + p + half + q));
                        *acc = W::add_product(a, column, *acc);
                    }
                }
            }
        }
    }

    /// Where the chains of eight elements start.
    #[inline(always)]
    unsafe fn first_block<W: Weight>(job: &Job<'_, W>, i: usize, j: usize) -> __m256 {
        // SAFETY: the eight elements are inside `c`, or of the bias, and no other thread touches them.
        unsafe {
            match job.start {
                Start::Zero => _mm256_setzero_ps(),
                Start::Sum => _mm256_loadu_ps(job.c.0.add(i * job.c_stride + j)),
                Start::Bias(bias) => _mm256_loadu_ps(bias[j..][..BLOCK].as_ptr()),
            }
        }
    }

    #[inline(always)]
    unsafe fn put_block<W: Weight>(job: &Job<'_, W>, i: usize, j: usize, sums: __m256) {
        // SAFETY: the eight elements are inside `c` and no other thread touches them.
        unsafe { _mm256_storeu_ps(job.c.0.add(i * job.c_stride + j), sums) };
    }

    /// Rows r and r + 4 share a register from the start, so that only shuffles within 128-bit halves are left to do.
    ///
    /// # Safety
    /// As [`Weight::four_columns`].
    #[inline(always)]
    pub(super) unsafe fn four_columns_f32(block: *const f32, stride: usize) -> [__m256; 4] {
        // SAFETY: passed on from the caller.
        unsafe {
            let (r0, r1) = (two_rows(block, stride), two_rows(block.add(stride), stride));
            let (r2, r3) = (two_rows(block.add(2 * stride), stride), two_rows(block.add(3 * stride), stride));
            let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            [
                _mm256_shuffle_ps::<0b0100_0100>(a, c),
                _mm256_shuffle_ps::<0b1110_1110>(a, c),
                _mm256_shuffle_ps::<0b0100_0100>(b, d),
                _mm256_shuffle_ps::<0b1110_1110>(b, d),
            ]
        }
    }

    /// Four values of a row and of the fourth row below it.
    #[inline(always)]
    unsafe fn two_rows(row: *const f32, stride: usize) -> __m256 {
        // SAFETY: passed on from the caller.
        unsafe {
            _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(row.add(4 * stride)))
        }
    }

    /// Numbers of 16 bits, eight to a column.
    ///
    /// # Safety
    /// As [`Weight::four_columns`].
    #[inline(always)]
    pub(super) unsafe fn four_columns_16(block: *const u16, stride: usize) -> [__m128i; 4] {
        // SAFETY: passed on from the caller.
        unsafe {
            let (p0, p1) = (two_rows_16(block, stride), two_rows_16(block.add(2 * stride), stride));
            let (p2, p3) = (two_rows_16(block.add(4 * stride), stride), two_rows_16(block.add(6 * stride), stride));
            let (a, b) = (_mm_unpacklo_epi32(p0, p1), _mm_unpacklo_epi32(p2, p3));
            let (c, d) = (_mm_unpackhi_epi32(p0, p1), _mm_unpackhi_epi32(p2, p3));
            [_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b), _mm_unpacklo_epi64(c, d), _mm_unpackhi_epi64(c, d)]
        }
    }

    /// Four values of a row and of the next, interleaved.
    #[inline(always)]
    unsafe fn two_rows_16(row: *const u16, stride: usize) -> __m128i {
        // SAFETY: passed on from the caller: eight bytes of each row.
        unsafe { _mm_unpacklo_epi16(_mm_loadl_epi64(row.cast()), _mm_loadl_epi64(row.add(stride).cast())) }
    }

    /// bf16 to f32.
    #[inline(always)]
    pub(super) unsafe fn widen(x: __m128i) -> __m256 {
        // SAFETY: AVX2 is available.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))) }
    }
}
