//! Products with weights that are decoded some rows at a time, forward and backward.

use crate::gemm::{Mat, MatMut, Start};
use crate::gemv;
use crate::parallel::{CHUNK, for_chunks, for_pieces};
use crate::scratch::with_scratch;
use bytemuck::Pod;
use std::ops::Range;

/// Numbers that are decoded at a time: 4 MiB of f32.
const WIDENED: usize = 1 << 20;
/// The same beside few rows, on each thread: what is decoded is still in the second-level cache when it is multiplied.
const BESIDE_FEW: usize = 1 << 16;
/// Rows that are decoded together are a multiple of this: as many as any product adds up or puts side by side at once.
const STEP: usize = 32;

/// A matrix of weights `[rows, cols]` that can be decoded.
#[derive(Clone, Copy)]
pub(super) struct Packed<D> {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Decodes rows, as many as there is room for, from one on, on the caller's thread.
    pub(super) decode: D,
}

impl<D> Packed<D> {
    /// How many rows are decoded together, if so many numbers should be.
    fn together(&self, numbers: usize) -> usize {
        ((numbers / self.cols / STEP).max(1) * STEP).min(self.rows)
    }

    /// Decodes some rows after the other, on all threads, and hands them to `work`.
    fn by_pieces<T: Pod + Send>(&self, mut work: impl FnMut(Range<usize>, Mat<'_, T>))
    where
        D: Fn(usize, &mut [T]) + Sync,
    {
        let (n, k, together) = (self.rows, self.cols, self.together(WIDENED));
        let chunk = (CHUNK / k).max(1) * k;
        with_scratch(words::<T>(together * k), |memory: &mut [i32]| {
            let wide: &mut [T] = bytemuck::cast_slice_mut(memory);
            for first in (0..n).step_by(together) {
                let rows = first..n.min(first + together);
                let wide = &mut wide[..rows.len() * k];
                for_chunks(wide, chunk, |at, out| (self.decode)(first + at / k, out));
                work(rows.clone(), Mat::rows(wide, rows.len(), k));
            }
        });
    }

    /// `out = x w^T + bias` for `m` rows: `multiply` is the product with some of the decoded rows, turned.
    pub(super) fn forward<T: Pod + Send>(
        &self,
        out: &mut [f32],
        m: usize,
        bias: Option<&[f32]>,
        multiply: impl Fn(MatMut<'_, f32>, Mat<'_, T>, Start<'_>) + Sync,
    ) where
        D: Fn(usize, &mut [T]) + Sync,
    {
        let n = self.rows;
        let start = |rows: &Range<usize>| bias.map_or(Start::Zero, |bias| Start::Bias(&bias[rows.clone()]));
        if m <= gemv::MAX_ROWS {
            return self.beside_few(out, m, |c, wide, rows| multiply(c, wide, start(rows)));
        }
        self.by_pieces(|rows, wide| {
            let c = MatMut::strided(&mut out[rows.start..], m, rows.len(), n, 1);
            multiply(c, wide.t(), start(&rows));
        });
    }

    /// The same for few rows: each thread decodes what it multiplies.
    fn beside_few<T: Pod + Send>(
        &self,
        out: &mut [f32],
        m: usize,
        multiply: impl Fn(MatMut<'_, f32>, Mat<'_, T>, &Range<usize>) + Sync,
    ) where
        D: Fn(usize, &mut [T]) + Sync,
    {
        let (n, k) = (self.rows, self.cols);
        let (together, out) = (self.together(BESIDE_FEW), Outputs(out.as_mut_ptr()));
        for_pieces(n.div_ceil(together), |piece| {
            let rows = piece * together..n.min((piece + 1) * together);
            let sums = m * rows.len();
            with_scratch(sums + words::<T>(rows.len() * k), |memory: &mut [i32]| {
                let (sums, wide) = memory.split_at_mut(sums);
                let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
                let wide: &mut [T] = &mut bytemuck::cast_slice_mut(wide)[..rows.len() * k];
                (self.decode)(rows.start, wide);
                multiply(MatMut::rows(sums, m, rows.len()), Mat::rows(wide, rows.len(), k).t(), &rows);
                for (i, sums) in sums.chunks_exact(rows.len()).enumerate() {
                    // SAFETY: these columns of the `m` rows of `n` outputs are this piece's own.
                    unsafe { out.put(i * n + rows.start, sums) };
                }
            });
        });
    }

    /// `out = start + dy w` for the `m` rows of `dy`: `multiply` is the product of some columns of `dy` with as many decoded
    /// rows. Sums continue from one piece to the next.
    pub(super) fn backward<T: Pod + Send>(
        &self,
        out: &mut [f32],
        dy: Mat<'_, f32>,
        start: Start<'_>,
        multiply: impl Fn(MatMut<'_, f32>, Mat<'_, f32>, Mat<'_, T>, Start<'_>),
    ) where
        D: Fn(usize, &mut [T]) + Sync,
    {
        let (m, n, k) = (dy.rows, self.rows, self.cols);
        if m == 0 {
            return;
        }
        self.by_pieces(|rows, wide| {
            let columns = Mat::strided(&dy.data[rows.start..], m, rows.len(), n, 1);
            let start = if rows.start == 0 { start } else { Start::Sum };
            multiply(MatMut::rows(out, m, k), columns, wide, start);
        });
    }
}

/// Words of 32 bits that so many numbers take: memory of a kind that products do not ask for themselves.
fn words<T>(len: usize) -> usize {
    (len * size_of::<T>()).div_ceil(size_of::<i32>())
}

/// Outputs that several threads write.
struct Outputs(*mut f32);

// SAFETY: every piece writes its own columns.
unsafe impl Sync for Outputs {}

impl Outputs {
    /// # Safety
    /// So many outputs must be there, and no other thread at them.
    unsafe fn put(&self, at: usize, sums: &[f32]) {
        // SAFETY: passed on from the caller.
        unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), self.0.add(at), sums.len()) };
    }
}
