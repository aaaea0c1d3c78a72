//! Matrix products. The one file that knows the GEMM library.
//!
//! Contract, where `a` is row-major: every element of a result is one chain over ascending k,
//! `acc = fma(a[i][k], b[k][j], acc)` from zero (two roundings instead of one on the scalar instruction set), then
//! `+ beta * c`. Nothing else in the call has a part in it: a row is the same to the bit alone or among a thousand, on
//! one thread or many. Batched and single decoding agree because of this. The library keeps the chain once its shortcuts
//! for thin shapes and its split of k are off; products with few rows, which it then runs at a fraction of memory speed,
//! go to `gemv`, which keeps the same chain. Where `a` is transposed a long k is cut at fixed places.

use crate::gemv;
use crate::isa::has_bf16_dot;
use crate::scratch::with_scratch;
use gemmkit::{GemmScalar, Parallelism, tuning};
use half::bf16;
use std::sync::Once;

/// A matrix in a slice: element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    /// Where the elements are.
    pub data: &'a [T],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between vertical neighbours.
    pub row_stride: usize,
    /// Distance between horizontal neighbours.
    pub col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix without gaps.
    pub fn rows(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// A matrix with any strides. Panics where an element would lie outside `data`.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride, col_stride);
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transpose: the same elements with rows and columns exchanged.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// The part that starts at (row, col).
    fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        let start = (row * self.row_stride + col * self.col_stride).min(self.data.len());
        Self { data: &self.data[start..], rows, cols, ..self }
    }

    fn view(self) -> gemmkit::MatRef<'a, T> {
        gemmkit::MatRef::new(self.data, self.rows, self.cols, self.row_stride as isize, self.col_stride as isize)
    }
}

/// A matrix in a slice, to be written. See [`Mat`].
#[derive(Debug)]
pub struct MatMut<'a, T> {
    /// Where the elements are.
    pub data: &'a mut [T],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between vertical neighbours.
    pub row_stride: usize,
    /// Distance between horizontal neighbours.
    pub col_stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// A row-major matrix without gaps.
    pub fn rows(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// A matrix with any strides. Panics where an element would lie outside `data`.
    pub fn strided(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride, col_stride);
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transpose: the same elements with rows and columns exchanged.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// The same matrix, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }

    fn part(&mut self, row: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_, T> {
        let start = (row * self.row_stride + col * self.col_stride).min(self.data.len());
        let (row_stride, col_stride) = (self.row_stride, self.col_stride);
        MatMut { data: &mut self.data[start..], rows, cols, row_stride, col_stride }
    }
}

fn check_extent(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) {
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
        assert!(last < len, "matrix {rows}x{cols} (strides {row_stride}, {col_stride}) needs {} of {len}", last + 1);
    }
}

/// `c = a b + beta c`. With `beta` zero, `c` is not read.
pub fn gemm_f32(c: MatMut<'_, f32>, a: Mat<'_, f32>, b: Mat<'_, f32>, beta: f32) {
    check_shapes("gemm_f32", &c, &a, &b);
    if gemv::suits(&c, &a, &b) {
        return gemv::gemv(c, a, b, beta);
    }
    if a.col_stride > 1 && a.row_stride == 1 && a.cols > SUM_DEPTH {
        return sum_of_products(c, a, b, beta);
    }
    library_gemm(c, a, b, beta);
}

/// Rows that a sum over rows takes in one go: both operands' panels then stay in the second-level cache.
const SUM_DEPTH: usize = 256;

/// A product over a long k whose `a` is transposed: the gradient of a weight, a sum over all tokens. The rows of such a
/// result are no tokens, so they need not be one chain, and the whole of k at once runs at a fifth of the speed.
fn sum_of_products(mut c: MatMut<'_, f32>, a: Mat<'_, f32>, b: Mat<'_, f32>, beta: f32) {
    for start in (0..a.cols).step_by(SUM_DEPTH) {
        let depth = SUM_DEPTH.min(a.cols - start);
        let beta = if start == 0 { beta } else { 1.0 };
        let (part_a, part_b) = (a.part(0, a.rows, start, depth), b.part(start, depth, 0, b.cols));
        library_gemm(c.reborrow(), part_a, part_b, beta);
    }
}

/// `c = a b + beta c` with bf16 operands: products and sums in f32.
///
/// Where the CPU has a bf16 dot instruction, the product of a call is rounded to bf16 once, at its end (the library
/// returns its operands' type); elsewhere the operands are widened, which is exact, and the result is that of
/// [`gemm_f32`].
pub fn gemm_bf16(c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, beta: f32) {
    check_shapes("gemm_bf16", &c, &a, &b);
    if has_bf16_dot() {
        return dot_gemm_bf16(c, a, b, beta);
    }
    if gemv::suits(&c, &a, &b) {
        return with_scratch(a.rows * a.cols, |wide| gemv::gemv(c, widened(a, wide), b, beta));
    }
    widening_gemm_bf16(c, a, b, beta);
}

fn check_shapes<T>(op: &str, c: &MatMut<'_, f32>, a: &Mat<'_, T>, b: &Mat<'_, T>) {
    assert!(
        a.rows == c.rows && b.cols == c.cols && a.cols == b.rows,
        "{op}: [{}, {}] = [{}, {}] * [{}, {}] does not fit",
        c.rows,
        c.cols,
        a.rows,
        a.cols,
        b.rows,
        b.cols
    );
}

/// Hands the product to the library, on the rayon pool in force.
fn library_gemm<T: GemmScalar>(c: MatMut<'_, T>, a: Mat<'_, T>, b: Mat<'_, T>, beta: T) {
    keep_one_chain_per_element();
    let threads = match rayon::current_num_threads() {
        1 => Parallelism::Serial,
        n => Parallelism::Rayon(n),
    };
    let c = gemmkit::MatMut::new(c.data, c.rows, c.cols, c.row_stride as isize, c.col_stride as isize);
    gemmkit::gemm(T::ONE, a.view(), b.view(), beta, c, threads);
}

/// Turns off what would make an element's arithmetic depend on the shape of the call: the library's routes for thin
/// products, the split of k into several panels; and its private thread pools, so that the caller's pool counts.
fn keep_one_chain_per_element() {
    /// Longer than any k.
    const WHOLE: usize = 1 << 30;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tuning::set_gemv_threshold(0);
        tuning::set_small_mn_dim(0);
        tuning::set_small_mn_pack_min_k(usize::MAX);
        tuning::set_small_k_threshold(0);
        tuning::set_kc(WHOLE);
        tuning::set_kc_min(WHOLE);
        tuning::set_deep_kc_bytes(usize::MAX);
        tuning::set_pool_classes(0);
    });
}

/// Elements of an operand that are widened at a time: 16 MiB of f32.
const WIDEN: usize = 4 << 20;

/// Widens the operands block by block into scratch; the whole of k at a time, so that each element stays one chain.
fn widening_gemm_bf16(mut c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, beta: f32) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let block = (WIDEN / k.max(1)).max(64);
    let (block_m, block_n) = (block.min(m).max(1), block.min(n).max(1));
    with_scratch((block_m + block_n) * k, |scratch: &mut [f32]| {
        let (wide_a, wide_b) = scratch.split_at_mut(block_m * k);
        for i in (0..m).step_by(block_m) {
            let rows = block_m.min(m - i);
            let part_a = widened(a.part(i, rows, 0, k), wide_a);
            for j in (0..n).step_by(block_n) {
                let cols = block_n.min(n - j);
                let part_b = widened(b.part(0, k, j, cols), wide_b);
                gemm_f32(c.part(i, rows, j, cols), part_a, part_b, beta);
            }
        }
    });
}

/// Copies a matrix into `scratch` as f32, without gaps, in the order its elements lie in memory.
fn widened<'a>(mat: Mat<'_, bf16>, scratch: &'a mut [f32]) -> Mat<'a, f32> {
    if mat.row_stride < mat.col_stride {
        return widened(mat.t(), scratch).t();
    }
    let (rows, cols) = (mat.rows, mat.cols);
    let scratch = &mut scratch[..rows * cols];
    if mat.col_stride == 1 && (mat.row_stride == cols || rows == 1) {
        crate::convert::bf16_to_f32(scratch, &mat.data[..rows * cols]);
    } else {
        crate::parallel::for_chunks(scratch, cols.max(1) * 16, |offset, piece| {
            for (i, out) in piece.chunks_mut(cols).enumerate() {
                let row = &mat.data[(offset / cols + i) * mat.row_stride..];
                for (j, x) in out.iter_mut().enumerate() {
                    *x = row[j * mat.col_stride].to_f32();
                }
            }
        });
    }
    Mat::rows(scratch, rows, cols)
}

/// The library's own bf16 product, rounded to bf16, then widened into `c`.
fn dot_gemm_bf16(mut c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, beta: f32) {
    if c.row_stride < c.col_stride {
        return dot_gemm_bf16(c.t(), b.t(), a.t(), beta);
    }
    let (m, n) = (c.rows, c.cols);
    let rows_per_block = (WIDEN / n.max(1)).clamp(64, m.max(64));
    with_scratch(rows_per_block.min(m) * n, |narrow: &mut [bf16]| {
        for i in (0..m).step_by(rows_per_block) {
            let rows = rows_per_block.min(m - i);
            let narrow = &mut narrow[..rows * n];
            library_gemm(MatMut::rows(narrow, rows, n), a.part(i, rows, 0, a.cols), b, bf16::ZERO);
            widen_into(c.part(i, rows, 0, n), narrow, beta);
        }
    });
}

/// `c = product + beta c`
fn widen_into(c: MatMut<'_, f32>, product: &[bf16], beta: f32) {
    let (rows, n, row_stride, col_stride) = (c.rows, c.cols, c.row_stride, c.col_stride);
    if rows == 0 || n == 0 {
        return;
    }
    let used = (rows - 1) * row_stride + (n - 1) * col_stride + 1;
    crate::parallel::for_chunks(&mut c.data[..used], row_stride.max(1) * 4, |offset, piece| {
        let first = offset / row_stride.max(1);
        for (i, row) in piece.chunks_mut(row_stride.max(1)).enumerate() {
            let source = &product[(first + i) * n..][..n];
            for (x, p) in row.iter_mut().step_by(col_stride).zip(source) {
                *x = if beta == 0.0 { p.to_f32() } else { p.to_f32() + beta * *x };
            }
        }
    });
}
