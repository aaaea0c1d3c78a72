//! Matrix products.
//!
//! Contract, where `a` is not transposed: every element of a result is one chain over ascending k, from zero, from what
//! is there, or from a bias. A link of the chain is `fma(a[i][k], b[k][j], sum)` in f32 (two roundings instead of one on
//! the scalar instruction set), and in bf16, where the CPU has a dot instruction, one such instruction on two neighbours
//! in k, and where it multiplies tiles, what 32 neighbours in k give (`crate::tiles`). Nothing else in the call has a part
//! in it: a row is the same to the bit alone or among a thousand, on one thread or many. Batched and single decoding agree
//! because of this. Products with few rows are bound by memory and go to `gemv`, the others to `blocked`; both keep the
//! chain.

pub(crate) mod blocked;
#[cfg(target_arch = "x86_64")]
mod on_tiles;
mod registers;
pub(crate) mod units;

use crate::gemv;
use crate::isa::{has_fast_bf16, has_tiles, isa};
use crate::quant::halves_to_bf16;
use crate::scratch::with_scratch;
use half::{bf16, f16};
use units::{HalvesRounded, Pairs, Plain, Rounded, Widened};

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
    check_shapes("gemm_f32", &c, (a.rows, a.cols), (b.rows, b.cols), start);
    if a.cols == 0 {
        return begin(c, start);
    }
    if gemv::suits(&c, &a, &b) {
        return gemv::gemv(c, a, b, start);
    }
    blocked::product::<Plain, Plain>(isa(), c, a, b, start);
}

/// An operand of a product in bf16.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Stored as bf16.
    Bf16(Mat<'a, bf16>),
    /// Stored as f32, and rounded to the nearest bf16, ties to even, while it is read.
    F32(Mat<'a, f32>),
    /// Stored in half precision, and rounded likewise.
    F16(Mat<'a, f16>),
}

impl Operand<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Bf16(mat) => (mat.rows, mat.cols),
            Self::F32(mat) => (mat.rows, mat.cols),
            Self::F16(mat) => (mat.rows, mat.cols),
        }
    }
}

/// `c = start + a b` with operands in bf16: products and sums in f32.
///
/// Where the CPU has no fast way to multiply bf16, the operands are widened, which is exact, and the result is that of
/// [`gemm_f32`].
pub fn gemm_bf16(c: MatMut<'_, f32>, a: Operand<'_>, b: Operand<'_>, start: Start<'_>) {
    check_shapes("gemm_bf16", &c, a.shape(), b.shape(), start);
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    if a.shape().1 == 0 {
        return begin(c, start);
    }
    if !has_fast_bf16() {
        return narrowed(a, |a| narrowed(b, |b| widened_product(c, a, b, start)));
    }
    let isa = isa();
    match (a, b) {
        #[cfg(target_arch = "x86_64")]
        (Operand::F32(a), Operand::Bf16(b)) if gemv::suits_tiles(&c, &a, &b) => {
            gemv::gemv_tiles::<Rounded>(c, a, b, start);
        }
        #[cfg(target_arch = "x86_64")]
        (Operand::Bf16(a), Operand::Bf16(b)) if gemv::suits_tiles(&c, &a, &b) => {
            gemv::gemv_tiles::<Pairs>(c, a, b, start);
        }
        (Operand::Bf16(a), Operand::Bf16(b)) if gemv::suits_pairs(&c, &a, &b) => gemv::gemv_pairs(c, a, b, start),
        (Operand::Bf16(a), Operand::F16(b)) if gemv::suits_pairs(&c, &a, &b) => gemv::gemv_pairs(c, a, b, start),
        (Operand::F32(x), Operand::Bf16(b)) if !has_tiles() && gemv::suits(&c, &x, &b) => {
            narrowed(a, |a| gemm_bf16(c, Operand::Bf16(a), Operand::Bf16(b), start));
        }
        (Operand::F32(x), Operand::F16(b)) if !has_tiles() && gemv::suits(&c, &x, &b) => {
            narrowed(a, |a| gemm_bf16(c, Operand::Bf16(a), Operand::F16(b), start));
        }
        (Operand::F16(_), b) => narrowed(a, |a| gemm_bf16(c, Operand::Bf16(a), b, start)),
        (Operand::Bf16(a), Operand::Bf16(b)) => blocked::product::<Pairs, Pairs>(isa, c, a, b, start),
        (Operand::Bf16(a), Operand::F32(b)) => blocked::product::<Pairs, Rounded>(isa, c, a, b, start),
        (Operand::F32(a), Operand::Bf16(b)) => blocked::product::<Rounded, Pairs>(isa, c, a, b, start),
        (Operand::F32(a), Operand::F32(b)) => blocked::product::<Rounded, Rounded>(isa, c, a, b, start),
        (Operand::Bf16(a), Operand::F16(b)) => blocked::product::<Pairs, HalvesRounded>(isa, c, a, b, start),
        (Operand::F32(a), Operand::F16(b)) => blocked::product::<Rounded, HalvesRounded>(isa, c, a, b, start),
    }
}

/// The product where no instruction takes bf16.
fn widened_product(c: MatMut<'_, f32>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, start: Start<'_>) {
    if gemv::suits(&c, &a, &b) {
        return with_scratch(a.rows * a.cols, |wide| gemv::gemv(c, widened(a, wide), b, start));
    }
    blocked::product::<Widened, Widened>(isa(), c, a, b, start);
}

/// Hands an operand on as bf16, rounded where it is something else: with the same strides.
fn narrowed<R>(operand: Operand<'_>, work: impl FnOnce(Mat<'_, bf16>) -> R) -> R {
    match operand {
        Operand::Bf16(mat) => work(mat),
        Operand::F32(mat) => narrowed_by(mat, crate::convert::f32_to_bf16, work),
        Operand::F16(mat) => {
            narrowed_by(mat, |narrow, halves| halves_to_bf16(narrow, bytemuck::cast_slice(halves)), work)
        }
    }
}

/// The same for numbers that `narrow` rounds.
fn narrowed_by<T: Copy, R>(
    mat: Mat<'_, T>,
    narrow: impl FnOnce(&mut [bf16], &[T]),
    work: impl FnOnce(Mat<'_, bf16>) -> R,
) -> R {
    let Mat { data, rows, cols, row_stride, col_stride } = mat;
    let used = (rows - 1) * row_stride + (cols - 1) * col_stride + 1;
    with_scratch(used, |own: &mut [bf16]| {
        narrow(own, &data[..used]);
        work(Mat { data: own, rows, cols, row_stride, col_stride })
    })
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

fn check_shapes(op: &str, c: &MatMut<'_, f32>, a: (usize, usize), b: (usize, usize), start: Start<'_>) {
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), c.cols, "{op}: the bias has one value per column");
    }
    assert!(
        a.0 == c.rows && b.1 == c.cols && a.1 == b.0,
        "{op}: [{}, {}] = [{}, {}] * [{}, {}] does not fit",
        c.rows,
        c.cols,
        a.0,
        a.1,
        b.0,
        b.1
    );
}

/// Copies the few rows of a thin product's operand into `scratch` as f32, without gaps.
fn widened<'a>(mat: Mat<'_, bf16>, scratch: &'a mut [f32]) -> Mat<'a, f32> {
    for (i, row) in scratch.chunks_exact_mut(mat.cols).enumerate() {
        crate::convert::bf16_to_f32(row, &mat.data[i * mat.row_stride..][..mat.cols]);
    }
    Mat::rows(scratch, mat.rows, mat.cols)
}
