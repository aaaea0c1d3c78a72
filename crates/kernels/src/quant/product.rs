//! Products of f32 rows with quantised weights, in place: the weights are read once per call, as they lie in the file.
//!
//! Activations are rounded to integers of a byte ([`Activations`]). Within a block of 32 (256 where the weights' scales
//! are integers) products are added up as integers, which is exact in any order. Between blocks there is one chain per
//! output, in ascending order of k, whatever the instruction set:
//!
//! ```text
//! sum = fma(integers of the block, d_w * d_x, sum), and then, where the block has a minimum,
//! sum = fma(-min_w, d_x * (sum of the block's activations), sum)
//! ```
//!
//! So a row's result depends neither on its neighbours nor on the number of threads. Types without such a product, and
//! plain numbers, are widened to f32 a few rows at a time and go through the f32 product, which promises the same.

use super::activations::{Activations, LINE, Layout, Rounding};
use super::plain::{self, plain32, plain256};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::strips::{OnVectors, on_vectors, signed_layout};
use super::types::GgmlType;
use super::unpack::*;
use crate::elementwise::{Unary, gated_in_place};
use crate::gemm::blocked;
use crate::gemm::units::{Halves, Plain, Widened};
use crate::gemm::{Mat, MatMut, Operand, Start, gemm_bf16, gemm_f32};
use crate::gemv;
use crate::isa::{Isa, has_bf16_dot, has_tiles, isa};
use crate::parallel::{for_pieces, for_ranges};
use crate::scratch::with_scratch;
use half::{bf16, f16};
use std::ops::Range;

/// A matrix of weights `[rows, cols]` as a GGUF file holds it.
#[derive(Clone, Copy, Debug)]
pub struct Quantised<'a> {
    /// Element type.
    pub ty: GgmlType,
    /// The blocks, row after row.
    pub bytes: &'a [u8],
    /// Outputs.
    pub rows: usize,
    /// Inputs: a multiple of the type's block.
    pub cols: usize,
}

impl<'a> Quantised<'a> {
    /// Panics where `bytes` are not those of the matrix.
    pub fn new(ty: GgmlType, bytes: &'a [u8], rows: usize, cols: usize) -> Self {
        let wanted = ty.bytes(cols).map(|row| row * rows);
        assert_eq!(wanted, Some(bytes.len()), "bytes of a [{rows}, {cols}] {} matrix", ty.name());
        Self { ty, bytes, rows, cols }
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.cols / self.ty.block_len() * self.ty.block_bytes()
    }

    pub(super) fn part(&self, rows: Range<usize>) -> &'a [u8] {
        &self.bytes[rows.start * self.row_bytes()..rows.end * self.row_bytes()]
    }
}

/// Rows of weights that are multiplied together.
pub(super) const STRIP: usize = 16;
/// Fewest bytes of weights per piece of parallel work.
const PIECE_BYTES: usize = 32 * 1024;
/// Pieces per thread: more even out what else the machine does, fewer cost less to hand out.
const PIECES: usize = 4;

/// Numbers of gate and of up that wait to meet: 128 KiB each, an eighth or less of a second-level cache; four times as many
/// where a block of the activations that they become has 256.
const PANEL: usize = 32 * 1024;
/// Fewest columns of them: as many as the loops take at a time, and a block of the activations that they become.
const PANEL_COLUMNS: usize = 4 * STRIP;
/// Most rows of them.
const PANEL_ROWS: usize = 480;
/// Rows that every size of a group divides.
const ROWS_TOGETHER: usize = 48;
/// Numbers of a product that are few.
const WHOLE: usize = 4 * PANEL;

/// `out[i][j] = sum over p of x[i][p] w[j][p] + bias[j]`: `x` is `[m, cols]`, `out` is `[m, rows]`.
pub fn matmul_quantised(out: &mut [f32], x: &[f32], w: Quantised<'_>, bias: Option<&[f32]>) {
    matmul_quantised_on(isa(), out, x, w, bias);
}

/// [`matmul_quantised`] of weights in BF16, or of halves that are rounded to it, with activations in bf16: [`gemm_bf16`].
/// Panics where they are of another type.
pub fn matmul_bf16(out: &mut [f32], x: &[bf16], w: Quantised<'_>, bias: Option<&[f32]>) {
    let (k, n) = (w.cols, w.rows);
    let m = x.len().checked_div(k).unwrap_or(0);
    let Some(weights) = (match w.ty {
        GgmlType::Bf16 => bytemuck::try_cast_slice(w.bytes).map(|own| Operand::Bf16(Mat::rows(own, n, k).t())).ok(),
        GgmlType::F16 => bytemuck::try_cast_slice(w.bytes).map(|own| Operand::F16(Mat::rows(own, n, k).t())).ok(),
        other => panic!("matmul_bf16 of {}", other.name()),
    }) else {
        // Not where a number of two bytes may lie: rare, and slower.
        let own: Vec<u16> = w.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        return matmul_bf16(out, x, Quantised { bytes: bytemuck::cast_slice(&own), ..w }, bias);
    };
    let start = bias.map_or(Start::Zero, Start::Bias);
    gemm_bf16(MatMut::rows(out, m, n), Operand::Bf16(Mat::rows(x, m, k)), weights, start);
}

/// Whether [`matmul_bf16`] reads halves at the speed of BF16: with a dot instruction they are rounded in registers.
pub fn reads_halves_as_bf16() -> bool {
    has_bf16_dot() && !has_tiles()
}

/// Whether [`feed_forward`] takes gate, up and down of these types.
pub fn can_feed_forward(types: [GgmlType; 3]) -> bool {
    feed_forward_paths(isa(), types).is_some()
}

/// `out = down (act(gate x + bias) * (up x + bias)) + bias`, the gated feed-forward of Shazeer (2020), eq. 5, to the bit what
/// [`matmul_quantised`] and [`gated`](crate::elementwise::gated) give one after another. What lies between the products is
/// nowhere whole but in the integers that the last one takes. `x` is `[m, gate.cols]`, `out` is `[m, down.rows]`. Panics
/// where sizes do not agree, or not [`can_feed_forward`].
pub fn feed_forward(act: Unary, out: &mut [f32], x: &[f32], weights: [Quantised<'_>; 3], biases: [Option<&[f32]>; 3]) {
    feed_forward_on(isa(), act, out, x, weights, biases);
}

pub(super) fn feed_forward_on(
    isa: Isa,
    act: Unary,
    out: &mut [f32],
    x: &[f32],
    weights: [Quantised<'_>; 3],
    biases: [Option<&[f32]>; 3],
) {
    let [gate, up, down] = weights;
    let m = x.len().checked_div(gate.cols).unwrap_or(0);
    assert!(
        [gate.rows, gate.cols] == [up.rows, up.cols] && down.cols == gate.rows,
        "feed_forward: gate {:?}, up {:?}, down {:?}",
        [gate.rows, gate.cols],
        [up.rows, up.cols],
        [down.rows, down.cols]
    );
    assert!(
        x.len() == m * gate.cols && out.len() == m * down.rows,
        "feed_forward: {} outputs, {} inputs",
        out.len(),
        x.len()
    );
    let has_all = |(w, bias): (&Quantised, Option<&[f32]>)| bias.is_none_or(|bias| bias.len() == w.rows);
    assert!(weights.iter().zip(biases).all(has_all), "feed_forward: lengths of biases");
    let paths = feed_forward_paths(isa, weights.map(|w| w.ty)).expect("types that were asked about");
    if out.is_empty() {
        return;
    }
    let [path, _, last] = &paths;
    let pieces = Pieces::of(m, [gate, up], last);
    let lens = [(path, gate.cols), (last, down.cols)].map(|(path, k)| Activations::scratch_len(m, k, path.layout));
    with_scratch(lens[0] + lens[1] + if pieces.is_whole { 2 * m * down.cols } else { 0 }, |scratch: &mut [f32]| {
        let (scratch, rest) = scratch.split_at_mut(lens[0]);
        let (wide, both) = rest.split_at_mut(lens[1]);
        let x = Activations::of(isa, x, gate.cols, (path.layout, path.group), scratch);
        let to = Rounding::new(isa, (m, down.cols), (last.layout, last.group), wide);
        let operands = ([gate, up], [biases[0], biases[1]]);
        if pieces.is_whole {
            gated_whole((isa, act), &paths, &to, &x, operands, both);
        } else {
            gated((isa, act), &paths, &to, &x, operands, &pieces);
        }
        in_place(last, out, &to.done(), down, biases[2]);
    });
}

/// How the products inside of a feed-forward are divided.
struct Pieces {
    /// Whether both are whole: for few rows, where pieces of whole blocks would be fewer than threads.
    is_whole: bool,
    /// Rows and columns of a piece of work.
    rows: usize,
    columns: usize,
    /// Columns of it that wait at a time.
    panel: usize,
}

impl Pieces {
    fn of(m: usize, weights: [Quantised<'_>; 2], last: &Path) -> Self {
        let (n, block) = (weights[0].rows, last.layout.block());
        let best = piece(m, n, weights.iter().map(Quantised::row_bytes).sum());
        let columns = (best / block * block).max(block);
        // Rows are cut, too, where columns alone make too few pieces. Groups of rows stay whole, whatever their size.
        let wanted = (rayon::current_num_threads() * PIECES).div_ceil(n.div_ceil(columns));
        let cuts = m.div_ceil(PANEL_ROWS).max(wanted);
        let rows = m.div_ceil(cuts).next_multiple_of(ROWS_TOGETHER);
        let panel = (PANEL / rows.min(m)).next_multiple_of(block.max(PANEL_COLUMNS)).min(columns);
        Self { is_whole: best < block && m * n <= WHOLE, rows, columns, panel }
    }
}

/// How gate, up and down are computed, if the first two take the same activations.
fn feed_forward_paths(isa: Isa, [gate, up, down]: [GgmlType; 3]) -> Option<[Path; 3]> {
    let paths = [path(isa, gate)?, path(isa, up)?, path(isa, down)?];
    paths[0].is_like(&paths[1]).then_some(paths)
}

pub(super) fn matmul_quantised_on(isa: Isa, out: &mut [f32], x: &[f32], w: Quantised<'_>, bias: Option<&[f32]>) {
    check(out, x, &w, bias);
    match path(isa, w.ty) {
        _ if out.is_empty() => {}
        Some(path) => {
            with_scratch(Activations::scratch_len(x.len() / w.cols, w.cols, path.layout), |scratch: &mut [f32]| {
                let x = Activations::of(isa, x, w.cols, (path.layout, path.group), scratch);
                in_place(&path, out, &x, w, bias);
            })
        }
        None => widened(out, x, w, bias),
    }
}

/// Panics where sizes do not agree.
fn check(out: &[f32], x: &[f32], w: &Quantised<'_>, bias: Option<&[f32]>) {
    let m = x.len().checked_div(w.cols).unwrap_or(0);
    assert!(
        x.len() == m * w.cols && out.len() == m * w.rows && bias.is_none_or(|bias| bias.len() == w.rows),
        "matmul_quantised: {} of {} outputs, {} of {} inputs",
        out.len(),
        w.rows,
        x.len(),
        w.cols
    );
}

/// One call's operands.
pub(super) struct Job<'a> {
    pub(super) w: Quantised<'a>,
    pub(super) x: &'a Activations<'a>,
    pub(super) bias: Option<&'a [f32]>,
    /// Where the first output lies, and the numbers from one row of outputs to the next.
    out: Pointer,
    stride: usize,
}

struct Pointer(*mut f32);

// SAFETY: every piece writes its own columns.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

impl Job<'_> {
    /// Writes an output.
    ///
    /// # Safety
    /// No other thread writes this column.
    #[inline(always)]
    pub(super) unsafe fn put(&self, row: usize, column: usize, sum: f32) {
        debug_assert!(row < self.x.rows && column < self.w.rows);
        let sum = self.bias.map_or(sum, |bias| sum + bias[column]);
        // SAFETY: `out` has an element for every row of activations, in every column that this piece computes.
        unsafe { *self.out.0.wrapping_add(row * self.stride + column) = sum };
    }

    /// Asks for where outputs of a row will be written.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline(always)]
    pub(super) fn expect(&self, row: usize, column: usize) {
        crate::simd::fetch_near(self.out.0.wrapping_add(row * self.stride + column).cast());
    }

    /// Writes a strip of outputs.
    ///
    /// # Safety
    /// No other thread writes these columns.
    #[inline(always)]
    pub(super) unsafe fn put_all(&self, row: usize, column: usize, sums: &[f32; STRIP]) {
        debug_assert!(row < self.x.rows && column + STRIP <= self.w.rows);
        let mut out = *sums;
        if let Some(bias) = self.bias {
            out.iter_mut().zip(&bias[column..][..STRIP]).for_each(|(out, bias)| *out += bias);
        }
        // SAFETY: `out` has an element for every row of activations, in every column that this piece computes.
        unsafe { self.out.0.wrapping_add(row * self.stride + column).cast::<[f32; STRIP]>().write_unaligned(out) };
    }
}

/// Computes some columns of a job, in borrowed memory.
pub(super) type Run = fn(&Job<'_>, Range<usize>, &mut [i32]);

/// How products with a type are computed.
pub(super) struct Path {
    /// How activations lie.
    pub(super) layout: Layout,
    /// Most rows of activations in a group.
    pub(super) group: usize,
    /// The loop over columns.
    pub(super) run: Run,
    /// Words that it borrows, for so many rows of activations of such a length.
    pub(super) scratch: fn(usize, usize) -> usize,
}

impl Path {
    /// Whether both take the same activations.
    fn is_like(&self, other: &Self) -> bool {
        self.layout == other.layout && self.group == other.group
    }
}

/// How products with a type of scales in f32 are computed, the fastest way that the instruction set has.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn small<F: OnVectors + Block32>(isa: Isa) -> Path {
    fastest::<F>(isa, layout::<F>(signed_layout(isa)), plain32::<F>)
}

/// How activations lie that meet a type of scales in f32; `signed` where its numbers need all eight bits and the sign.
fn layout<F: Block32>(signed: Layout) -> Layout {
    match F::OFFSET {
        Some(_) if F::HAS_MIN => Layout::Bytes32,
        Some(offset) => Layout::Moved32(offset as u8),
        None => signed,
    }
}

/// The same for a type of integer scales.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn large<F: OnVectors + Block256>(isa: Isa) -> Path {
    fastest::<F>(isa, Layout::Bytes256(F::SUB), plain256::<F>)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn fastest<F: OnVectors>(isa: Isa, layout: Layout, plain: Run) -> Path {
    on_vectors::<F>(isa, layout).unwrap_or(Path { layout, group: 1, run: plain, scratch: plain::scratch_len })
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn small<F: Block32>(_: Isa) -> Path {
    Path { layout: layout::<F>(Layout::Words32), group: 1, run: plain32::<F>, scratch: plain::scratch_len }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn large<F: Block256>(_: Isa) -> Path {
    Path { layout: Layout::Bytes256(F::SUB), group: 1, run: plain256::<F>, scratch: plain::scratch_len }
}

/// How products with a type are computed on an instruction set.
fn path(isa: Isa, ty: GgmlType) -> Option<Path> {
    assert!(isa.is_supported(), "this machine has no {}", isa.name());
    Some(match ty {
        GgmlType::Q4_0 => small::<Q4_0>(isa),
        GgmlType::Q4_1 => small::<Q4_1>(isa),
        GgmlType::Q5_0 => small::<Q5_0>(isa),
        GgmlType::Q5_1 => small::<Q5_1>(isa),
        GgmlType::Mxfp4 => small::<Mxfp4>(isa),
        GgmlType::Tq1_0 => small::<Tq1_0>(isa),
        GgmlType::Tq2_0 => small::<Tq2_0>(isa),
        GgmlType::Q8_0 => small::<Q8_0>(isa),
        GgmlType::Iq4Nl => small::<Iq4Nl>(isa),
        GgmlType::Iq4Xs => small::<Iq4Xs>(isa),
        GgmlType::Q2K => large::<Q2K>(isa),
        GgmlType::Q3K => large::<Q3K>(isa),
        GgmlType::Q6K => large::<Q6K>(isa),
        GgmlType::Q4K => large::<Q4K>(isa),
        GgmlType::Q5K => large::<Q5K>(isa),
        _ => return None,
    })
}

/// Columns per piece of parallel work with `n` rows of weights of so many bytes.
fn piece(m: usize, n: usize, row_bytes: usize) -> usize {
    let least = PIECE_BYTES.div_ceil(m * row_bytes).next_multiple_of(STRIP);
    let even = n.div_ceil(rayon::current_num_threads() * PIECES).next_multiple_of(STRIP);
    least.max(even)
}

fn in_place(path: &Path, out: &mut [f32], x: &Activations<'_>, w: Quantised<'_>, bias: Option<&[f32]>) {
    let (m, n) = (x.rows, w.rows);
    let job = Job { w, x, bias, out: Pointer(out.as_mut_ptr()), stride: n };
    for_ranges(n, piece(m, n, w.row_bytes()), |columns| {
        with_scratch((path.scratch)(m, w.cols), |memory: &mut [i32]| (path.run)(&job, columns, memory));
    });
}

/// Both products, one after the other, and the activations of the next one.
fn gated_whole(
    (isa, act): (Isa, Unary),
    paths: &[Path; 3],
    to: &Rounding<'_>,
    x: &Activations<'_>,
    (weights, biases): ([Quantised<'_>; 2], [Option<&[f32]>; 2]),
    both: &mut [f32],
) {
    let (gate, up) = both.split_at_mut(both.len() / 2);
    in_place(&paths[0], gate, x, weights[0], biases[0]);
    in_place(&paths[1], up, x, weights[1], biases[1]);
    gated_in_place(isa, act, gate, up);
    // SAFETY: there is one thread.
    unsafe { to.round(gate, weights[0].rows, (0, 0)) };
}

/// Both products of some columns at a time, which stay in the second-level cache until they have become activations of the
/// next one.
fn gated(
    (isa, act): (Isa, Unary),
    [path, other, last]: &[Path; 3],
    to: &Rounding<'_>,
    x: &Activations<'_>,
    (weights, biases): ([Quantised<'_>; 2], [Option<&[f32]>; 2]),
    pieces: &Pieces,
) {
    let (n, k) = (weights[0].rows, weights[0].cols);
    let across = n.div_ceil(pieces.columns);
    for_pieces(x.rows.div_ceil(pieces.rows) * across, |index| {
        let row = index / across * pieces.rows;
        let x = &x.part(row..x.rows.min(row + pieces.rows));
        let first = index % across * pieces.columns;
        let columns = first..n.min(first + pieces.columns);
        let m = x.rows;
        let words = (path.scratch)(m, k).max((other.scratch)(m, k));
        with_scratch(words + 2 * m * pieces.panel + LINE, |memory: &mut [i32]| {
            let aligned = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
            let (panels, memory) = memory[aligned..].split_at_mut(2 * m * pieces.panel);
            for first in columns.clone().step_by(pieces.panel) {
                let panel = first..columns.end.min(first + pieces.panel);
                let width = panel.len();
                let (gate, up) =
                    bytemuck::cast_slice_mut::<i32, f32>(&mut panels[..2 * m * width]).split_at_mut(m * width);
                for (i, (run, to)) in [(path.run, &mut *gate), (other.run, &mut *up)].into_iter().enumerate() {
                    let out = Pointer(to.as_mut_ptr().wrapping_sub(first));
                    let job = Job { w: weights[i], x, bias: biases[i], out, stride: width };
                    run(&job, panel.clone(), memory);
                }
                gated_in_place(isa, act, gate, up);
                // SAFETY: these columns of these rows are this piece's own.
                unsafe { to.round(gate, width, (row, first / last.layout.block())) };
            }
        });
    });
}

/// The f32 product with weights widened some rows at a time. Halves are read as they are.
fn widened(out: &mut [f32], x: &[f32], w: Quantised<'_>, bias: Option<&[f32]>) {
    let (k, n) = (w.cols, w.rows);
    let m = x.len() / k;
    let x = Mat::rows(x, m, k);
    let whole = bias.map_or(Start::Zero, Start::Bias);
    if let (GgmlType::F16, Ok(w)) = (w.ty, bytemuck::try_cast_slice::<u8, f16>(w.bytes)) {
        let (c, w) = (MatMut::rows(out, m, n), Mat::rows(w, n, k).t());
        return match m <= gemv::MAX_ROWS {
            true => gemv::gemv(c, x, w, whole),
            false => blocked::product::<Plain, Halves>(isa(), c, x, w, whole),
        };
    }
    if let (GgmlType::Bf16, Ok(w)) = (w.ty, bytemuck::try_cast_slice::<u8, bf16>(w.bytes)) {
        let (c, w) = (MatMut::rows(out, m, n), Mat::rows(w, n, k).t());
        return match m <= gemv::MAX_ROWS {
            true => gemv::gemv(c, x, w, whole),
            false => blocked::product::<Plain, Widened>(isa(), c, x, w, whole),
        };
    }
    if let (GgmlType::F32, Ok(w)) = (w.ty, bytemuck::try_cast_slice::<u8, f32>(w.bytes)) {
        return gemm_f32(MatMut::rows(out, m, n), x, Mat::rows(w, n, k).t(), whole);
    }
    w.packed().forward(out, m, bias, |c, wide: Mat<'_, f32>, start| gemm_f32(c, x, wide, start));
}
