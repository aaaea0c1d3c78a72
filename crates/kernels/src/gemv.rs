//! Products with at most eight rows (sixteen on tiles): one token, or a few, against a weight matrix.
//!
//! `c[i][j] = sum over k of a[i][k] w[j][k]`, with `w` row-major, is bound by reading `w` once. The obvious way, a dot
//! product per row of `w` with the lanes along k, adds in another order than the blocked product and would break
//! the contract of [`crate::gemm`]. So the lanes run along j: as many rows of `w` as there are lanes are loaded a few
//! columns at a time and transposed in registers, and every lane then continues its own chain over ascending k. Two
//! neighbouring bf16 of a row count as one column ([`Pair`]) where the CPU adds two products at a time. On tiles rows of
//! `w` are the left operand as they lie in memory (`on_tiles`), and up to sixteen rows of `a` take as long as one.

use crate::gemm::{Mat, MatMut, Start};
use crate::isa::{Isa, isa};
use crate::parallel::for_ranges;
use crate::quant::f16_to_f32;
use crate::scratch::with_scratch;
use half::{bf16, f16};
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
mod on_tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use on_tiles::{gemv_tiles, suits_tiles};

/// Most rows of `a` this path takes.
pub(crate) const MAX_ROWS: usize = 8;

/// Fewest bytes of weights per piece of parallel work.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces per thread: more even out what else the machine does, fewer read longer lines.
const PIECES: usize = 4;

/// What a weight may be stored as.
pub(crate) trait Weight: Copy + Send + Sync + 'static {
    /// What a lane holds of it.
    fn unit(self) -> f32;
    /// The columns of a product, on vectors.
    ///
    /// # Safety
    /// As [`Job::run`]; the machine must have the instruction set, which is AVX2 or better.
    #[cfg(target_arch = "x86_64")]
    unsafe fn run_vectors(isa: Isa, job: &Job<'_, Self>, columns: Range<usize>);
}

/// Whether a product is one for this path: few rows, both operands contiguous along k, rows of `c` contiguous.
pub(crate) fn suits<T, U>(c: &MatMut<'_, f32>, a: &Mat<'_, T>, b: &Mat<'_, U>) -> bool {
    let contiguous = (a.col_stride == 1 || a.cols == 1) && b.row_stride == 1 && c.col_stride == 1;
    (1..=MAX_ROWS).contains(&a.rows) && contiguous && b.col_stride >= b.rows && a.cols > 0
}

/// Two neighbours in k, multiplied together in bf16, which halves are rounded to.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Pair<E>([E; 2]);

/// Whether a bf16 product [`suits`] and its rows consist of whole pairs.
pub(crate) fn suits_pairs<E>(c: &MatMut<'_, f32>, a: &Mat<'_, bf16>, b: &Mat<'_, E>) -> bool {
    let is_whole = a.cols.is_multiple_of(2) && b.col_stride.is_multiple_of(2);
    crate::isa::has_bf16_dot() && !crate::isa::has_tiles() && is_whole && suits(c, a, b)
}

/// `c = start + a b` for a product that [`suits_pairs`], on a CPU with the bf16 dot instruction.
pub(crate) fn gemv_pairs<E>(c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, E>, start: Start<'_>)
where
    Pair<E>: Weight,
{
    assert!(crate::isa::has_bf16_dot());
    let units = a.cols / 2;
    // SAFETY: two numbers lie side by side as in a pair, which is aligned as they are.
    let pairs = unsafe { std::slice::from_raw_parts(b.data.as_ptr().cast::<Pair<E>>(), b.data.len() / 2) };
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
    let least = PIECE_BYTES.div_ceil(k * size_of::<W>());
    let even = n.div_ceil(rayon::current_num_threads() * PIECES);
    for_ranges(n, least.max(even).next_multiple_of(2 * WIDEST), |columns| {
        // SAFETY: `suits` and the matrices' own checks put all elements inside the slices; pieces write disjoint columns.
        unsafe { job.run(isa, columns) }
    });
}

/// Most rows of `w` that are transposed together.
const WIDEST: usize = 16;
/// Chains side by side in plain Rust.
const BLOCK: usize = 8;

pub(crate) struct Pointer(*mut f32);
// SAFETY: every piece writes its own columns.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

/// One call's operands.
pub(crate) struct Job<'a, W> {
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
                Isa::Avx2 | Isa::Avx512 => W::run_vectors(isa, self, columns),
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
    unsafe fn run_vectors(isa: Isa, job: &Job<'_, f32>, columns: Range<usize>) {
        // SAFETY: passed on from the caller.
        unsafe { x86::run(isa, job, columns) }
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn unit(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn run_vectors(isa: Isa, job: &Job<'_, bf16>, columns: Range<usize>) {
        // SAFETY: passed on from the caller.
        unsafe { x86::run(isa, job, columns) }
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn unit(self) -> f32 {
        f16_to_f32(self.to_bits())
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn run_vectors(isa: Isa, job: &Job<'_, f16>, columns: Range<usize>) {
        // SAFETY: passed on from the caller.
        unsafe { x86::run(isa, job, columns) }
    }
}

impl Weight for Pair<bf16> {
    #[inline(always)]
    fn unit(self) -> f32 {
        f32::from_bits(u32::from(self.0[0].to_bits()) | u32::from(self.0[1].to_bits()) << 16)
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn run_vectors(_: Isa, job: &Job<'_, Self>, columns: Range<usize>) {
        // SAFETY: passed on from the caller; pairs are only made where there is a bf16 dot instruction.
        unsafe { x86::run_pairs(job, columns) }
    }
}

impl Weight for Pair<f16> {
    #[inline(always)]
    fn unit(self) -> f32 {
        Pair(self.0.map(|half| bf16::from_f32(f16_to_f32(half.to_bits())))).unit()
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn run_vectors(_: Isa, job: &Job<'_, Self>, columns: Range<usize>) {
        // SAFETY: as above.
        unsafe { x86::run_pairs(job, columns) }
    }
}
