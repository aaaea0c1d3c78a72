//! Thin products on AVX2 and AVX-512: eight or sixteen rows of weights to a vector.

use super::{Job, Pair, Weight};
use crate::isa::Isa;
use crate::parallel::lines;
use crate::simd::{fetch, fetch_near};
use crate::simd_avx512::{four_rows, turned};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::ops::Range;

/// How far ahead a row of `w` is fetched, in bytes.
const AHEAD: usize = 256;
/// Rows a multiple of this many bytes apart are fetched to the second-level cache, twice as far ahead.
const CROWDED: usize = 2048;

/// A vector of chains.
///
/// # Safety
/// All functions need the instruction set.
pub(super) trait Lanes {
    /// Rows of `w` to a vector.
    const ROWS: usize;
    /// The vector.
    type V: Copy;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(v: Self::V, to: *mut f32);
    unsafe fn multiply_add(a: Self::V, w: Self::V, sum: Self::V) -> Self::V;
}

/// What a weight is on such vectors.
///
/// # Safety
/// As [`Lanes`].
pub(super) trait Columns<L: Lanes>: Weight {
    /// Some columns.
    type Block: AsRef<[L::V]>;
    /// How many.
    const COUNT: usize;
    /// Loads a row's next [`Columns::COUNT`] values, of as many rows as there are lanes, `stride` apart, transposed:
    /// vector p holds column p.
    unsafe fn columns(block: *const Self, stride: usize) -> Self::Block;
    /// Continues the chains.
    #[inline(always)]
    unsafe fn add_product(a: L::V, w: L::V, sum: L::V) -> L::V {
        // SAFETY: passed on from the caller.
        unsafe { L::multiply_add(a, w, sum) }
    }
}

/// # Safety
/// As [`Job::run`]; the machine must have the instruction set.
pub(super) unsafe fn run<W: Columns<Eight> + Columns<Sixteen>>(isa: Isa, job: &Job<'_, W>, columns: Range<usize>) {
    // SAFETY: passed on from the caller.
    unsafe {
        match isa {
            Isa::Avx512 => run_avx512(job, columns),
            _ => run_avx2(job, columns),
        }
    }
}

/// # Safety
/// As [`Job::run`]; AVX2, FMA and F16C must be available.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<W: Columns<Eight>>(job: &Job<'_, W>, columns: Range<usize>) {
    // SAFETY: passed on from the caller.
    unsafe { by_rows::<Eight, W>(job, columns) }
}

/// # Safety
/// As [`Job::run`]; AVX-512 F, BW, DQ and VL must be available.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn run_avx512<W: Columns<Sixteen>>(job: &Job<'_, W>, columns: Range<usize>) {
    // SAFETY: passed on from the caller.
    unsafe { by_rows::<Sixteen, W>(job, columns) }
}

/// # Safety
/// As [`Job::run`]; AVX-512 with bf16 dot instructions must be available.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run_pairs<W: Columns<Sixteen>>(job: &Job<'_, W>, columns: Range<usize>) {
    // SAFETY: passed on from the caller.
    unsafe { by_rows::<Sixteen, W>(job, columns) }
}

#[inline(always)]
unsafe fn by_rows<L: Lanes, W: Columns<L>>(job: &Job<'_, W>, columns: Range<usize>) {
    // SAFETY: passed on from the caller. Two groups at a time hide the latency of the chains where one row of `a` gives
    // each a single chain of few lanes; with more rows the registers are needed for these.
    unsafe {
        match job.rows {
            1 if L::ROWS == 16 => strips::<L, W, 1, 1>(job, columns),
            2 if L::ROWS == 16 => strips::<L, W, 2, 1>(job, columns),
            1 => strips::<L, W, 1, 2>(job, columns),
            2 => strips::<L, W, 2, 2>(job, columns),
            3 => strips::<L, W, 3, 1>(job, columns),
            4 => strips::<L, W, 4, 1>(job, columns),
            5 => strips::<L, W, 5, 1>(job, columns),
            6 => strips::<L, W, 6, 1>(job, columns),
            7 => strips::<L, W, 7, 1>(job, columns),
            _ => strips::<L, W, 8, 1>(job, columns),
        }
    }
}

#[inline(always)]
unsafe fn strips<L: Lanes, W: Columns<L>, const M: usize, const G: usize>(job: &Job<'_, W>, columns: Range<usize>) {
    let (mut next, row_bytes) = (columns.start, job.w_stride * size_of::<W>());
    while next < columns.end {
        let lines = lines(columns.end - next, G * L::ROWS, row_bytes);
        for strip in 0..lines.strips {
            // SAFETY: passed on from the caller; all rows are inside `columns`.
            unsafe {
                match lines.count == G * L::ROWS {
                    true => group::<L, W, M, G>(job, next + strip, lines.apart),
                    false => few::<L, W, M>(job, next..columns.end),
                }
            }
        }
        next += lines.strips * lines.count;
    }
}

/// Less columns than a strip has.
#[inline(always)]
unsafe fn few<L: Lanes, W: Columns<L>, const M: usize>(job: &Job<'_, W>, columns: Range<usize>) {
    let mut j = columns.start;
    // SAFETY: passed on from the caller.
    unsafe {
        while j + L::ROWS <= columns.end {
            group::<L, W, M, 1>(job, j, 1);
            j += L::ROWS;
        }
        for j in j..columns.end {
            for i in 0..M {
                let (a, w) = (&job.a[i * job.a_stride..][..job.k], &job.w[j * job.w_stride..][..job.k]);
                let mut sum = L::splat(job.first(i, j));
                for (&a, w) in a.iter().zip(w) {
                    sum = W::add_product(L::splat(a), L::splat(w.unit()), sum);
                }
                job.put(i, j, lanes::<L>(sum)[0]);
            }
        }
    }
}

/// The lanes of a vector, and zeros where it has less than sixteen.
#[inline(always)]
unsafe fn lanes<L: Lanes>(v: L::V) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: there is room for the widest.
    unsafe { L::store(v, lanes.as_mut_ptr()) };
    lanes
}

/// G times as many columns of `c` as there are lanes, `apart` from each other, M rows.
#[inline(always)]
unsafe fn group<L: Lanes, W: Columns<L>, const M: usize, const G: usize>(job: &Job<'_, W>, j: usize, apart: usize) {
    // A whole cache line of each row is used up before the next is touched: rows a power of two apart compete for the
    // same few places in the first-level cache.
    let line = 64 / size_of::<W>();
    let stride = apart * job.w_stride;
    // SAFETY: passed on from the caller; prefetches may point anywhere.
    unsafe {
        let mut acc = [[L::splat(0.0); M]; G];
        for (g, acc) in acc.iter_mut().enumerate() {
            for (i, acc) in acc.iter_mut().enumerate() {
                let first: [f32; 16] = std::array::from_fn(|r| match r < L::ROWS {
                    true => job.first(i, j + (g * L::ROWS + r) * apart),
                    false => 0.0,
                });
                *acc = L::load(first.as_ptr());
            }
        }
        let w = job.w.as_ptr().add(j * job.w_stride);
        // Rows this far apart share places in the first-level cache, which does not hold a line of each.
        let is_crowded = (stride * size_of::<W>()).is_multiple_of(CROWDED);
        let mut p = 0;
        while p + line <= job.k {
            for (g, acc) in acc.iter_mut().enumerate() {
                let rows = w.add(g * L::ROWS * stride + p);
                // Past the end of a row comes the one that is read next.
                let next = |r: usize, ahead: usize| rows.wrapping_add(r * stride).cast::<u8>().wrapping_add(ahead);
                match is_crowded {
                    true => (0..L::ROWS).for_each(|r| fetch(next(r, 2 * AHEAD))),
                    false => (0..L::ROWS).for_each(|r| fetch_near(next(r, AHEAD))),
                }
                for q in (0..line).step_by(W::COUNT) {
                    block::<L, W, M>(job, rows.add(q), stride, p + q, acc);
                }
            }
            p += line;
        }
        while p + W::COUNT <= job.k {
            for (g, acc) in acc.iter_mut().enumerate() {
                block::<L, W, M>(job, w.add(g * L::ROWS * stride + p), stride, p, acc);
            }
            p += W::COUNT;
        }
        for p in p..job.k {
            for (g, acc) in acc.iter_mut().enumerate() {
                let mut column = [0.0_f32; 16];
                for (r, x) in column[..L::ROWS].iter_mut().enumerate() {
                    *x = (*w.add((g * L::ROWS + r) * stride + p)).unit();
                }
                let column = L::load(column.as_ptr());
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = W::add_product(L::splat(*job.a.as_ptr().add(i * job.a_stride + p)), column, *acc);
                }
            }
        }
        for (g, acc) in acc.iter().enumerate() {
            for (i, &acc) in acc.iter().enumerate() {
                for (r, sum) in lanes::<L>(acc).into_iter().take(L::ROWS).enumerate() {
                    job.put(i, j + (g * L::ROWS + r) * apart, sum);
                }
            }
        }
    }
}

/// Continues the chains by some columns.
#[inline(always)]
unsafe fn block<L: Lanes, W: Columns<L>, const M: usize>(
    job: &Job<'_, W>,
    w: *const W,
    stride: usize,
    p: usize,
    acc: &mut [L::V; M],
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let columns = W::columns(w, stride);
        for (q, &column) in columns.as_ref().iter().enumerate() {
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = L::splat(*job.a.as_ptr().add(i * job.a_stride + p + q));
                *acc = W::add_product(a, column, *acc);
            }
        }
    }
}

/// Eight lanes.
pub(super) struct Eight;

impl Lanes for Eight {
    const ROWS: usize = 8;
    type V = __m256;
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: passed on from the caller; so below.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(v: __m256, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m256, w: __m256, sum: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, w, sum) }
    }
}

/// Sixteen lanes.
pub(super) struct Sixteen;

impl Lanes for Sixteen {
    const ROWS: usize = 16;
    type V = __m512;
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: passed on from the caller; so below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(v: __m512, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, w: __m512, sum: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, w, sum) }
    }
}

impl Columns<Eight> for f32 {
    type Block = [__m256; 4];
    const COUNT: usize = 4;
    /// Rows r and r + 4 share a register from the start, so that only shuffles within 128-bit halves are left to do.
    #[inline(always)]
    unsafe fn columns(block: *const f32, stride: usize) -> [__m256; 4] {
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
}

/// Four values of a row and of the fourth row below it.
#[inline(always)]
unsafe fn two_rows(row: *const f32, stride: usize) -> __m256 {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(row.add(4 * stride))) }
}

impl Columns<Eight> for bf16 {
    type Block = [__m256; 4];
    const COUNT: usize = 4;
    #[inline(always)]
    unsafe fn columns(block: *const bf16, stride: usize) -> [__m256; 4] {
        // SAFETY: passed on from the caller; two bytes each.
        unsafe {
            four_columns_16(block.cast(), stride)
                .map(|column| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(column))))
        }
    }
}

impl Columns<Eight> for f16 {
    type Block = [__m256; 4];
    const COUNT: usize = 4;
    #[inline(always)]
    unsafe fn columns(block: *const f16, stride: usize) -> [__m256; 4] {
        // SAFETY: passed on from the caller; two bytes each.
        unsafe { four_columns_16(block.cast(), stride).map(|column| _mm256_cvtph_ps(column)) }
    }
}

/// Numbers of 16 bits, eight to a column.
#[inline(always)]
unsafe fn four_columns_16(block: *const u16, stride: usize) -> [__m128i; 4] {
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

/// The next sixteen bytes of sixteen rows, `stride` bytes apart: vector q holds the q-th four of each row.
#[inline(always)]
unsafe fn four_lanes(first: *const u8, stride: usize) -> [__m512i; 4] {
    // SAFETY: passed on from the caller.
    unsafe {
        // Rows i, i + 4, i + 8 and i + 12 share a register from the start.
        let line = |i: usize| four_rows([0, 4, 8, 12].map(|r| first.add((i + r) * stride)));
        turned([line(0), line(1), line(2), line(3)])
    }
}

impl Columns<Sixteen> for f32 {
    type Block = [__m512; 4];
    const COUNT: usize = 4;
    #[inline(always)]
    unsafe fn columns(block: *const f32, stride: usize) -> [__m512; 4] {
        // SAFETY: passed on from the caller.
        unsafe { four_lanes(block.cast(), size_of::<f32>() * stride).map(|column| _mm512_castsi512_ps(column)) }
    }
}

/// A number of two bytes whose neighbours are multiplied in bf16.
trait Half: Sized {
    /// 32 of a row, and as many of the fourth row below it, as bf16: the first sixteen of both, and the rest.
    ///
    /// # Safety
    /// Both must be readable; AVX-512 with bf16 dot instructions must be available.
    unsafe fn two_rows(row: *const Self, stride: usize) -> [__m512i; 2];
}

impl Half for bf16 {
    #[inline(always)]
    unsafe fn two_rows(row: *const bf16, stride: usize) -> [__m512i; 2] {
        // SAFETY: passed on from the caller.
        unsafe {
            let joined = |at: *const bf16| {
                let (above, below) = (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(4 * stride).cast()));
                _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(above), 0b1111_0000, below)
            };
            [joined(row), joined(row.add(16))]
        }
    }
}

impl Half for f16 {
    #[inline(always)]
    unsafe fn two_rows(row: *const f16, stride: usize) -> [__m512i; 2] {
        // SAFETY: passed on from the caller; both types are 512 bits.
        unsafe {
            let wide = |row: *const f16| _mm512_cvtph_ps(_mm256_loadu_si256(row.cast()));
            let below = row.add(4 * stride);
            let (a, b, c, d) = (wide(row), wide(row.add(16)), wide(below), wide(below.add(16)));
            let joined = |low, high| std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            [joined(a, c), joined(b, d)]
        }
    }
}

impl<E: Half> Columns<Sixteen> for Pair<E>
where
    Pair<E>: Weight,
{
    type Block = [__m512; 16];
    const COUNT: usize = 16;
    /// A whole line of each row at once: rows that share a place in the first-level cache push each other out. Two are
    /// joined while they are loaded; what is left are shuffles within quarters, and then of quarters.
    #[inline(always)]
    unsafe fn columns(block: *const Self, stride: usize) -> [__m512; 16] {
        // SAFETY: passed on from the caller; a pair is two numbers.
        unsafe {
            let (first, stride) = (block.cast::<E>(), 2 * stride);
            let line = |i: usize| E::two_rows(first.add(i * stride), stride);
            let upper = [line(0), line(1), line(2), line(3)];
            let lower = [line(8), line(9), line(10), line(11)];
            let mut columns = [_mm512_setzero_ps(); 16];
            for half in 0..2 {
                let upper = turned([upper[0][half], upper[1][half], upper[2][half], upper[3][half]]);
                let lower = turned([lower[0][half], lower[1][half], lower[2][half], lower[3][half]]);
                for q in 0..4 {
                    let at = 8 * half + q;
                    columns[at] = _mm512_castsi512_ps(_mm512_shuffle_i32x4::<0b1000_1000>(upper[q], lower[q]));
                    columns[at + 4] = _mm512_castsi512_ps(_mm512_shuffle_i32x4::<0b1101_1101>(upper[q], lower[q]));
                }
            }
            columns
        }
    }
    #[inline(always)]
    unsafe fn add_product(a: __m512, w: __m512, sum: __m512) -> __m512 {
        // SAFETY: passed on from the caller; both types are 512 bits.
        unsafe {
            let (a, w) = (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(w));
            _mm512_dpbf16_ps(sum, a, w)
        }
    }
}

impl Columns<Sixteen> for bf16 {
    type Block = [__m512; 8];
    const COUNT: usize = 8;
    #[inline(always)]
    unsafe fn columns(block: *const bf16, stride: usize) -> [__m512; 8] {
        // SAFETY: passed on from the caller.
        unsafe {
            let pairs = four_lanes(block.cast(), size_of::<bf16>() * stride);
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            std::array::from_fn(|q| {
                _mm512_castsi512_ps(match q % 2 {
                    0 => _mm512_slli_epi32::<16>(pairs[q / 2]),
                    _ => _mm512_and_si512(pairs[q / 2], upper),
                })
            })
        }
    }
}

impl Columns<Sixteen> for f16 {
    type Block = [__m512; 8];
    const COUNT: usize = 8;
    #[inline(always)]
    unsafe fn columns(block: *const f16, stride: usize) -> [__m512; 8] {
        /// The lower halves of all lanes, then the upper ones.
        static HALVES: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = (i % 16 * 2 + i / 16) as u16;
                i += 1;
            }
            order
        };
        // SAFETY: passed on from the caller.
        unsafe {
            let order = _mm512_loadu_si512(HALVES.as_ptr().cast());
            let halves =
                four_lanes(block.cast(), size_of::<f16>() * stride).map(|pairs| _mm512_permutexvar_epi16(order, pairs));
            std::array::from_fn(|q| {
                _mm512_cvtph_ps(match q % 2 {
                    0 => _mm512_castsi512_si256(halves[q / 2]),
                    _ => _mm512_extracti64x4_epi64::<1>(halves[q / 2]),
                })
            })
        }
    }
}
