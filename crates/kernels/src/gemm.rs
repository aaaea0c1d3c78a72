//! Matrix products. The one file that knows the GEMM library, which multiplies where the CPU has bf16 dot instructions.
//!
//! Contract in f32, where `a` is not transposed: every element of a result is one chain over ascending k, `sum = fma(a[i][k], b[k][j], sum)`, from
//! zero, from what is there, or from a bias (two roundings instead of one on the scalar instruction set). Nothing else in
//! the call has a part in it: a row is the same to the bit alone or among a thousand, on one thread or many. Batched and
//! single decoding agree because of this. Products with few rows are bound by memory and go to `gemv`, the others to
//! `blocked`; both keep the chain. The library keeps it, too, once its shortcuts for thin shapes and its split of k are
//! off.

pub(crate) mod blocked;

use crate::gemv;
use crate::isa::has_bf16_dot;
use crate::scratch::with_scratch;
use gemmkit::{Parallelism, tuning};
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

/// What the sums of a product start from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Zero; `c` is not read.
    Zero,
    /// What `c` holds.
    Sum,
    /// One value per column.
    Bias(&'a [f32]),
}

/// `c = start + a b`.
pub fn gemm_f32(c: MatMut<'_, f32>, a: Mat<'_, f32>, b: Mat<'_, f32>, start: Start<'_>) {
    check_shapes("gemm_f32", &c, &a, &b, start);
    if a.cols == 0 {
        return begin(c, start);
    }
    if gemv::suits(&c, &a, &b) {
        return gemv::gemv(c, a, b, start);
    }
    blocked::product(c, a, b, start);
}

/// `c = start + a b` with bf16 operands: products and sums in f32.
///
/// Where the CPU has a bf16 dot instruction, the product of a call is rounded to bf16 once, at its end (the library
/// returns its operands' type); elsewhere the operands are widened, which is exact, and the result is that of
/// [`gemm_f32`].
pub fn gemm_bf16(c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, start: Start<'_>) {
    check_shapes("gemm_bf16", &c, &a, &b, start);
    if a.cols == 0 {
        return begin(c, start);
    }
    if has_bf16_dot() {
        return dot_gemm_bf16(c, a, b, start);
    }
    if gemv::suits(&c, &a, &b) {
        return with_scratch(a.rows * a.cols, |wide| gemv::gemv(c, widened(a, wide), b, start));
    }
    blocked::product(c, a, b, start);
}

/// Writes what the sums start from.
fn begin(c: MatMut<'_, f32>, start: Start<'_>) {
    for i in 0..c.rows {
        for j in 0..c.cols {
            let place = &mut c.data[i * c.row_stride + j * c.col_stride];
            match start {
                Start::Zero => *place = 0.0,
                Start::Sum => {}
                Start::Bias(bias) => *place = bias[j],
            }
        }
    }
}

fn check_shapes<T>(op: &str, c: &MatMut<'_, f32>, a: &Mat<'_, T>, b: &Mat<'_, T>, start: Start<'_>) {
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), c.cols, "{op}: the bias has one value per column");
    }
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

/// Hands a product to the library, on the rayon pool in force.
fn library_gemm(c: MatMut<'_, bf16>, a: Mat<'_, bf16>, b: Mat<'_, bf16>) {
    keep_one_chain_per_element();
    let threads = match rayon::current_num_threads() {
        1 => Parallelism::Serial,
        n => Parallelism::Rayon(n),
    };
    let c = gemmkit::MatMut::new(c.data, c.rows, c.cols, c.row_stride as isize, c.col_stride as isize);
    gemmkit::gemm(bf16::ONE, a.view(), b.view(), bf16::ZERO, c, threads);
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

/// Elements of a bf16 result that are widened at a time: 8 MiB.
const WIDEN: usize = 4 << 20;

/// Copies the few rows of a thin product's operand into `scratch` as f32, without gaps.
fn widened<'a>(mat: Mat<'_, bf16>, scratch: &'a mut [f32]) -> Mat<'a, f32> {
    for (i, row) in scratch.chunks_exact_mut(mat.cols).enumerate() {
        crate::convert::bf16_to_f32(row, &mat.data[i * mat.row_stride..][..mat.cols]);
    }
    Mat::rows(scratch, mat.rows, mat.cols)
}

/// The library's own bf16 product, rounded to bf16, then widened into `c`.
fn dot_gemm_bf16(mut c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, start: Start<'_>) {
    if c.row_stride < c.col_stride {
        assert!(!matches!(start, Start::Bias(_)), "a bias needs a row-major result");
        return dot_gemm_bf16(c.t(), b.t(), a.t(), start);
    }
    let (m, n) = (c.rows, c.cols);
    let rows_per_block = (WIDEN / n.max(1)).clamp(64, m.max(64));
    with_scratch(rows_per_block.min(m) * n, |narrow: &mut [bf16]| {
        for i in (0..m).step_by(rows_per_block) {
            let rows = rows_per_block.min(m - i);
            let narrow = &mut narrow[..rows * n];
            library_gemm(MatMut::rows(narrow, rows, n), a.part(i, rows, 0, a.cols), b);
            widen_into(c.part(i, rows, 0, n), narrow, start);
        }
    });
}

/// `c = start + product`
fn widen_into(c: MatMut<'_, f32>, product: &[bf16], start: Start<'_>) {
    let (rows, n, row_stride, col_stride) = (c.rows, c.cols, c.row_stride, c.col_stride);
    if rows == 0 || n == 0 {
        return;
    }
    let used = (rows - 1) * row_stride + (n - 1) * col_stride + 1;
    crate::parallel::for_chunks(&mut c.data[..used], row_stride.max(1) * 4, |offset, piece| {
        let first = offset / row_stride.max(1);
        for (i, row) in piece.chunks_mut(row_stride.max(1)).enumerate() {
            let source = &product[(first + i) * n..][..n];
            let places = row.iter_mut().step_by(col_stride).zip(source);
            match start {
                Start::Zero => places.for_each(|(x, p)| *x = p.to_f32()),
                Start::Sum => places.for_each(|(x, p)| *x += p.to_f32()),
                Start::Bias(bias) => places.zip(bias).for_each(|((x, p), bias)| *x = bias + p.to_f32()),
            }
        }
    });
}
