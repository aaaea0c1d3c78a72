//! Products of f32 rows with quantised weights, in place: the weights are read once per call, as they lie in the file.
//!
//! A few rows of weights at a time are unpacked to bytes that stay in the first cache, and meet rows of activations
//! rounded to bytes ([`super::dot`]). One row of activations and a thousand go through the same steps in the same order:
//! a row's result does not depend on its neighbours, nor on the number of threads. Types without such a product, and
//! plain numbers, are widened to f32 a few rows at a time and go through the f32 product, which promises the same.

use super::activations::Activations;
use super::decode::dequantise_rows;
use super::dot::{IntKernel, Ints, LARGE, Row32, Row256, SMALL, SUMS, X32, X256, dispatch_ints, scale_place};
use super::types::GgmlType;
use super::unpack::*;
use crate::gemm::{Mat, MatMut, Start, gemm_f32};
use crate::gemv;
use crate::isa::{Isa, isa};
use crate::parallel::for_ranges;
use crate::scratch::with_scratch;
use half::{bf16, f16};
use std::marker::PhantomData;
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

    fn row_bytes(&self) -> usize {
        self.cols / self.ty.block_len() * self.ty.block_bytes()
    }

    fn part(&self, rows: Range<usize>) -> &'a [u8] {
        &self.bytes[rows.start * self.row_bytes()..rows.end * self.row_bytes()]
    }
}

/// Bytes of weights per piece of parallel work.
const PIECE_BYTES: usize = 128 * 1024;
/// Bytes of unpacked weights that a few rows of activations meet: a part of the first cache.
const FEW_BYTES: usize = 8 * 1024;
/// Rows of weights that are unpacked for many rows of activations.
const TILE: usize = 16;
/// Rows of activations that share a load of weights.
const SHARED: usize = 4;
/// Numbers that are widened at a time: 4 MiB.
const WIDENED: usize = 1 << 20;

/// `out[i][j] = sum over p of x[i][p] w[j][p] + bias[j]`: `x` is `[m, cols]`, `out` is `[m, rows]`.
pub fn matmul_quantised(out: &mut [f32], x: &[f32], w: Quantised<'_>, bias: Option<&[f32]>) {
    matmul_quantised_on(isa(), out, x, w, bias);
}

pub(super) fn matmul_quantised_on(isa: Isa, out: &mut [f32], x: &[f32], w: Quantised<'_>, bias: Option<&[f32]>) {
    let m = x.len().checked_div(w.cols).unwrap_or(0);
    assert!(
        x.len() == m * w.cols && out.len() == m * w.rows && bias.is_none_or(|bias| bias.len() == w.rows),
        "matmul_quantised: {} of {} outputs, {} of {} inputs",
        out.len(),
        w.rows,
        x.len(),
        w.cols
    );
    if m == 0 || w.rows == 0 {
        return;
    }
    match unpacker(w.ty) {
        Unpacker::Small(unpack, has_min) => fused(isa, out, x, w, bias, &Small { unpack, has_min }),
        Unpacker::Large(unpack) => fused(isa, out, x, w, bias, &Large { unpack }),
        Unpacker::None => widened(out, x, w, bias),
    }
}

/// Unpacks rows: their type's way.
enum Unpacker {
    Small(fn(Isa, &[u8], Tile32<'_>), bool),
    Large(fn(Isa, &[u8], Tile256<'_>)),
    None,
}

fn unpacker(ty: GgmlType) -> Unpacker {
    fn small<B: Block32>() -> Unpacker {
        Unpacker::Small(|isa, bytes, tile| dispatch_ints(isa, Unpack32::<B>(bytes, tile, PhantomData)), B::HAS_MIN)
    }
    fn large<B: Block256>() -> Unpacker {
        Unpacker::Large(|isa, bytes, tile| dispatch_ints(isa, Unpack256::<B>(bytes, tile, PhantomData)))
    }
    match ty {
        GgmlType::Q4_0 => small::<Q4_0>(),
        GgmlType::Q4_1 => small::<Q4_1>(),
        GgmlType::Q5_0 => small::<Q5_0>(),
        GgmlType::Q5_1 => small::<Q5_1>(),
        GgmlType::Q8_0 => small::<Q8_0>(),
        GgmlType::Iq4Nl => small::<Iq4Nl>(),
        GgmlType::Iq4Xs => small::<Iq4Xs>(),
        GgmlType::Mxfp4 => small::<Mxfp4>(),
        GgmlType::Tq1_0 => small::<Tq1_0>(),
        GgmlType::Tq2_0 => small::<Tq2_0>(),
        GgmlType::Q2K => large::<Q2K>(),
        GgmlType::Q3K => large::<Q3K>(),
        GgmlType::Q4K => large::<Q4K>(),
        GgmlType::Q5K => large::<Q5K>(),
        GgmlType::Q6K => large::<Q6K>(),
        _ => Unpacker::None,
    }
}

/// Some unpacked rows in borrowed memory, and their products.
trait Fused: Sync {
    /// Numbers that share a scale of activations.
    const BLOCK: usize;
    /// Words of memory per row of `k`.
    fn words(k: usize) -> usize;
    /// Unpacks rows of `k`.
    fn unpack(&self, isa: Isa, bytes: &[u8], k: usize, memory: &mut [i32]);
    /// Products of what lies in memory.
    fn products(&self, isa: Isa, memory: &[i32], place: Place<'_>);
}

/// Which products go where.
struct Place<'a> {
    x: &'a Activations<'a>,
    /// Rows of activations.
    rows: Range<usize>,
    /// Rows of weights.
    columns: Range<usize>,
    out: &'a Pointer,
    bias: Option<&'a [f32]>,
    /// Outputs of a row.
    stride: usize,
}

impl Place<'_> {
    /// Writes the products of row `first + i` with weights `column`.
    #[inline(always)]
    fn put<const M: usize>(&self, first: usize, column: usize, sums: [f32; M]) {
        let bias = self.bias.map(|bias| bias[column]);
        for (i, sum) in sums.into_iter().enumerate() {
            let sum = bias.map_or(sum, |bias| sum + bias);
            // SAFETY: rows and columns are inside `out`, and every piece of work writes its own columns only.
            unsafe { *self.out.0.add((first + i) * self.stride + column) = sum };
        }
    }
}

struct Pointer(*mut f32);
// SAFETY: every piece writes its own columns.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

fn fused<F: Fused>(isa: Isa, out: &mut [f32], x: &[f32], w: Quantised<'_>, bias: Option<&[f32]>, rows: &F) {
    let (k, m, n) = (w.cols, x.len() / w.cols, w.rows);
    with_scratch(Activations::scratch_len(m, k, F::BLOCK), |scratch: &mut [f32]| {
        let (x, out) = (Activations::of(isa, x, k, F::BLOCK, scratch), Pointer(out.as_mut_ptr()));
        let tile = if m <= SHARED { (FEW_BYTES / k).max(1) } else { TILE };
        let per_piece = (PIECE_BYTES / w.row_bytes()).next_multiple_of(tile).max(tile);
        for_ranges(n, per_piece, |columns| {
            let (x, out) = (&x, &out);
            with_scratch(tile * F::words(k), |memory: &mut [i32]| {
                for first in columns.clone().step_by(tile) {
                    let columns = first..columns.end.min(first + tile);
                    let memory = &mut memory[..columns.len() * F::words(k)];
                    rows.unpack(isa, w.part(columns.clone()), k, memory);
                    rows.products(isa, memory, Place { x, rows: 0..m, columns, out, bias, stride: n });
                }
            });
        });
    });
}

/// Rows in blocks of 32.
struct Small {
    unpack: fn(Isa, &[u8], Tile32<'_>),
    has_min: bool,
}

struct Tile32<'a> {
    k: usize,
    q: &'a mut [i8],
    d: &'a mut [f32],
    min: &'a mut [f32],
}

/// Places for the scales of a row, a multiple of eight.
fn scales_of(k: usize) -> usize {
    (k / SMALL).next_multiple_of(SUMS)
}

impl Fused for Small {
    const BLOCK: usize = SMALL;

    fn words(k: usize) -> usize {
        k / 4 + 2 * scales_of(k)
    }

    fn unpack(&self, isa: Isa, bytes: &[u8], k: usize, memory: &mut [i32]) {
        let rows = memory.len() / Self::words(k);
        let (q, scales) = memory.split_at_mut(rows * k / 4);
        let (d, min) = scales.split_at_mut(rows * scales_of(k));
        let (d, min) = (bytemuck::cast_slice_mut(d), bytemuck::cast_slice_mut(min));
        (self.unpack)(isa, bytes, Tile32 { k, q: bytemuck::cast_slice_mut(q), d, min });
    }

    fn products(&self, isa: Isa, memory: &[i32], place: Place<'_>) {
        let k = place.x.k;
        let rows = memory.len() / Self::words(k);
        let (q, scales) = memory.split_at(rows * k / 4);
        let (d, min) = scales.split_at(rows * scales_of(k));
        let (d, min) = (bytemuck::cast_slice(d), bytemuck::cast_slice(min));
        let min = self.has_min.then_some(min);
        dispatch_ints(isa, Products32 { q: bytemuck::cast_slice(q), d, min, place });
    }
}

struct Unpack32<'a, B>(&'a [u8], Tile32<'a>, PhantomData<B>);

impl<B: Block32> IntKernel for Unpack32<'_, B> {
    #[inline(always)]
    fn run<I: Ints>(self, ints: I) {
        let Self(bytes, Tile32 { k, q, d, min }, _) = self;
        let (len, size, scales) = (B::TYPE.block_len(), B::TYPE.block_bytes(), scales_of(k));
        let rows = q.chunks_exact_mut(k).zip(d.chunks_exact_mut(scales).zip(min.chunks_exact_mut(scales)));
        for ((q, (d, min)), bytes) in rows.zip(bytes.chunks_exact(k / len * size)) {
            if B::HAS_MIN {
                min[k / SMALL..].fill(0.0);
            }
            let blocks = q.chunks_exact_mut(len).zip(d.chunks_mut(len / SMALL).zip(min.chunks_mut(len / SMALL)));
            for ((q, (d, min)), block) in blocks.zip(bytes.chunks_exact(size)) {
                B::unpack(ints, block, q, d, min);
            }
        }
    }
}

struct Products32<'a> {
    q: &'a [i8],
    d: &'a [f32],
    min: Option<&'a [f32]>,
    place: Place<'a>,
}

impl Products32<'_> {
    #[inline(always)]
    fn some<I: Ints, const M: usize>(&self, ints: I, first: usize) {
        let (k, scales) = (self.place.x.k, scales_of(self.place.x.k));
        let x: [X32<'_>; M] = std::array::from_fn(|i| self.place.x.row32(first + i));
        for (r, column) in self.place.columns.clone().enumerate() {
            let w = Row32 {
                q: &self.q[r * k..][..k],
                d: &self.d[r * scales..][..scales],
                min: self.min.map(|min| &min[r * scales..][..scales]),
            };
            self.place.put(first, column, ints.dot32(&w, &x));
        }
    }
}

impl IntKernel for Products32<'_> {
    #[inline(always)]
    fn run<I: Ints>(self, ints: I) {
        for first in self.place.rows.clone().step_by(SHARED) {
            match self.place.rows.end - first {
                1 => self.some::<I, 1>(ints, first),
                2 => self.some::<I, 2>(ints, first),
                3 => self.some::<I, 3>(ints, first),
                _ => self.some::<I, 4>(ints, first),
            }
        }
    }
}

/// Rows in blocks of 256.
struct Large {
    unpack: fn(Isa, &[u8], Tile256<'_>),
}

struct Tile256<'a> {
    k: usize,
    q: &'a mut [u8],
    d: &'a mut [f32],
    dmin: &'a mut [f32],
    scales: &'a mut [i16],
    mins: &'a mut [i16],
}

/// Where the parts of `rows` rows begin: scales `d`, `dmin`, then the integer ones and the minima, in words.
fn parts_of(rows: usize, k: usize) -> [usize; 4] {
    let (q, blocks) = (rows * k / 4, rows * k / LARGE);
    [q, q + blocks, q + 2 * blocks, q + 10 * blocks]
}

impl Fused for Large {
    const BLOCK: usize = LARGE;

    fn words(k: usize) -> usize {
        k / 4 + 18 * (k / LARGE)
    }

    fn unpack(&self, isa: Isa, bytes: &[u8], k: usize, memory: &mut [i32]) {
        let [q, d, dmin, scales] = parts_of(memory.len() / Self::words(k), k);
        let (memory, mins) = memory.split_at_mut(scales);
        let (memory, scales) = memory.split_at_mut(dmin);
        let (memory, dmin) = memory.split_at_mut(d);
        let (q, d) = memory.split_at_mut(q);
        let tile = Tile256 {
            k,
            q: bytemuck::cast_slice_mut(q),
            d: bytemuck::cast_slice_mut(d),
            dmin: bytemuck::cast_slice_mut(dmin),
            scales: bytemuck::cast_slice_mut(scales),
            mins: bytemuck::cast_slice_mut(mins),
        };
        (self.unpack)(isa, bytes, tile);
    }

    fn products(&self, isa: Isa, memory: &[i32], place: Place<'_>) {
        let [q, d, dmin, scales] = parts_of(memory.len() / Self::words(place.x.k), place.x.k);
        let kernel = Products256 {
            q: bytemuck::cast_slice(&memory[..q]),
            d: bytemuck::cast_slice(&memory[q..d]),
            dmin: bytemuck::cast_slice(&memory[d..dmin]),
            scales: bytemuck::cast_slice(&memory[dmin..scales]),
            mins: bytemuck::cast_slice(&memory[scales..]),
            place,
        };
        dispatch_ints(isa, kernel);
    }
}

struct Unpack256<'a, B>(&'a [u8], Tile256<'a>, PhantomData<B>);

impl<B: Block256> IntKernel for Unpack256<'_, B> {
    #[inline(always)]
    fn run<I: Ints>(self, _: I) {
        let Self(bytes, tile, _) = self;
        debug_assert!(tile.q.len() % tile.k == 0);
        let numbers = tile.q.as_chunks_mut::<LARGE>().0.iter_mut();
        let integers = tile.scales.as_chunks_mut::<16>().0.iter_mut().zip(tile.mins.as_chunks_mut::<16>().0);
        let scales = tile.d.iter_mut().zip(tile.dmin);
        let blocks = bytes.chunks_exact(B::TYPE.block_bytes());
        for ((q, (scales, mins)), ((d, dmin), block)) in numbers.zip(integers).zip(scales.zip(blocks)) {
            let mut natural = [0; 16];
            (*d, *dmin) = B::unpack(block, q, &mut natural, mins);
            if B::OFFSET != 0 {
                *dmin = *d;
                *mins = natural.map(|scale| B::OFFSET * scale);
            }
            for (j, scale) in natural.into_iter().enumerate() {
                scales[scale_place(j)] = scale;
            }
        }
    }
}

struct Products256<'a> {
    q: &'a [u8],
    d: &'a [f32],
    dmin: &'a [f32],
    scales: &'a [i16],
    mins: &'a [i16],
    place: Place<'a>,
}

impl Products256<'_> {
    #[inline(always)]
    fn some<I: Ints, const M: usize>(&self, ints: I, first: usize) {
        let (k, blocks) = (self.place.x.k, self.place.x.k / LARGE);
        let x: [X256<'_>; M] = std::array::from_fn(|i| self.place.x.row256(first + i));
        for (r, column) in self.place.columns.clone().enumerate() {
            let w = Row256 {
                q: &self.q[r * k..][..k],
                d: &self.d[r * blocks..][..blocks],
                dmin: &self.dmin[r * blocks..][..blocks],
                scales: &self.scales[16 * r * blocks..][..16 * blocks],
                mins: &self.mins[16 * r * blocks..][..16 * blocks],
            };
            self.place.put(first, column, ints.dot256(&w, &x));
        }
    }
}

impl IntKernel for Products256<'_> {
    #[inline(always)]
    fn run<I: Ints>(self, ints: I) {
        for first in self.place.rows.clone().step_by(SHARED) {
            match self.place.rows.end - first {
                1 => self.some::<I, 1>(ints, first),
                2 => self.some::<I, 2>(ints, first),
                3 => self.some::<I, 3>(ints, first),
                _ => self.some::<I, 4>(ints, first),
            }
        }
    }
}

/// The f32 product with weights widened some rows at a time; a few rows of activations read halves as they are.
fn widened(out: &mut [f32], x: &[f32], w: Quantised<'_>, bias: Option<&[f32]>) {
    let (k, n) = (w.cols, w.rows);
    let m = x.len() / k;
    let x = Mat::rows(x, m, k);
    let whole = bias.map_or(Start::Zero, Start::Bias);
    if m <= gemv::MAX_ROWS {
        if let (GgmlType::F16, Ok(w)) = (w.ty, bytemuck::try_cast_slice::<u8, f16>(w.bytes)) {
            return gemv::gemv(MatMut::rows(out, m, n), x, Mat::rows(w, n, k).t(), whole);
        }
        if let (GgmlType::Bf16, Ok(w)) = (w.ty, bytemuck::try_cast_slice::<u8, bf16>(w.bytes)) {
            return gemv::gemv(MatMut::rows(out, m, n), x, Mat::rows(w, n, k).t(), whole);
        }
    }
    let per_tile = (WIDENED / k).max(1).min(n);
    with_scratch(per_tile * k, |wide: &mut [f32]| {
        for first in (0..n).step_by(per_tile) {
            let columns = first..n.min(first + per_tile);
            let wide = &mut wide[..columns.len() * k];
            dequantise_rows(w.ty, w.part(columns.clone()), wide);
            let start = bias.map_or(Start::Zero, |bias| Start::Bias(&bias[columns.clone()]));
            let c = MatMut::strided(&mut out[first..], m, columns.len(), n, 1);
            gemm_f32(c, x, Mat::rows(wide, columns.len(), k).t(), start);
        }
    });
}
