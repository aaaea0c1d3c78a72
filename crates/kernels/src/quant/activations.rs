//! Rows of activations, rounded to integers of a byte for products with quantised rows.

use crate::isa::Isa;
use crate::parallel::for_chunks3;
use crate::simd::{Kernel, Simd, dispatch_on};

/// Numbers that share a scale where the weights' scales are f32.
pub(super) const SMALL: usize = 32;
/// Numbers that share a scale where the weights' scales are integers.
pub(super) const LARGE: usize = 256;
/// Neighbours that are looked at together.
const LANES: usize = 8;

/// How a row of activations lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Bytes, a scale and a sum in f32 per 32.
    Bytes32,
    /// The same integers in 16 bits, a scale per 32.
    Words32,
    /// Bytes, a scale per 256, and an integer sum of as many numbers as it says.
    Bytes256(usize),
}

impl Layout {
    fn block(self) -> usize {
        if matches!(self, Layout::Bytes256(_)) { LARGE } else { SMALL }
    }

    /// Floats to borrow for a row of `k`: its integers, its scales, its sums.
    fn floats_per_row(self, k: usize) -> [usize; 3] {
        match self {
            Layout::Bytes32 => [k / 4, k / SMALL, k / SMALL],
            Layout::Words32 => [k / 2, k / SMALL, 0],
            Layout::Bytes256(sub) => [k / 4, k / LARGE, k / sub / 2],
        }
    }
}

/// Some rows, in integers with scales.
pub(super) struct Activations<'a> {
    pub(super) rows: usize,
    k: usize,
    layout: Layout,
    q: &'a [f32],
    d: &'a [f32],
    sums: &'a [f32],
}

impl<'a> Activations<'a> {
    /// Floats that `rows` rows need in [`Activations::of`].
    pub(super) fn scratch_len(rows: usize, k: usize, layout: Layout) -> usize {
        rows * layout.floats_per_row(k).iter().sum::<usize>()
    }

    /// Rounds the rows of `x` `[rows, k]` to the nearest of 255 levels per block.
    pub(super) fn of(isa: Isa, x: &[f32], k: usize, layout: Layout, scratch: &'a mut [f32]) -> Self {
        let rows = x.len() / k;
        let [integers, scales, sums] = layout.floats_per_row(k);
        let (q, rest) = scratch.split_at_mut(rows * integers);
        let (d, s) = rest.split_at_mut(rows * scales);
        let s = &mut s[..rows * sums];
        let row = |row: usize, q: &mut [f32], d: &mut [f32], sums: &mut [f32]| {
            dispatch_on(isa, Round { x: &x[row * k..][..k], q, d, sums, layout });
        };
        if sums == 0 {
            crate::parallel::for_chunks2((&mut *q, integers), (&mut *d, scales), |i, q, d| row(i, q, d, &mut []));
        } else {
            for_chunks3((&mut *q, integers), (&mut *d, scales), (&mut *s, sums), row);
        }
        Self { rows, k, layout, q, d, sums: s }
    }

    /// The integers of a row, as bytes.
    #[inline(always)]
    pub(super) fn bytes(&self, row: usize) -> &[i8] {
        debug_assert!(self.layout != Layout::Words32);
        &bytemuck::cast_slice(self.q)[row * self.k..][..self.k]
    }

    /// The integers of a row, in 16 bits.
    #[inline(always)]
    pub(super) fn words(&self, row: usize) -> &[i16] {
        debug_assert!(self.layout == Layout::Words32);
        &bytemuck::cast_slice(self.q)[row * self.k..][..self.k]
    }

    /// The scales of a row.
    #[inline(always)]
    pub(super) fn scales(&self, row: usize) -> &[f32] {
        let scales = self.k / self.layout.block();
        &self.d[row * scales..][..scales]
    }

    /// The sums of a row in [`Layout::Bytes32`].
    #[inline(always)]
    pub(super) fn sums(&self, row: usize) -> &[f32] {
        let sums = self.k / SMALL;
        &self.sums[row * sums..][..sums]
    }

    /// The sums of a row in [`Layout::Bytes256`].
    #[inline(always)]
    pub(super) fn integer_sums(&self, row: usize) -> &[i16] {
        let sums = 2 * self.layout.floats_per_row(self.k)[2];
        &bytemuck::cast_slice(self.sums)[row * sums..][..sums]
    }
}

struct Round<'a> {
    x: &'a [f32],
    q: &'a mut [f32],
    d: &'a mut [f32],
    sums: &'a mut [f32],
    layout: Layout,
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.layout {
            Layout::Bytes32 => {
                let q: &mut [i8] = bytemuck::cast_slice_mut(self.q);
                let blocks = self.x.chunks_exact(SMALL).zip(q.chunks_exact_mut(SMALL));
                for ((x, q), (d, sum)) in blocks.zip(self.d.iter_mut().zip(self.sums)) {
                    *d = round_block(x, q, |bits| bits as i8);
                    *sum = *d * q.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
                }
            }
            Layout::Words32 => {
                let q: &mut [i16] = bytemuck::cast_slice_mut(self.q);
                let blocks = self.x.chunks_exact(SMALL).zip(q.chunks_exact_mut(SMALL));
                for ((x, q), d) in blocks.zip(self.d.iter_mut()) {
                    *d = round_block(x, q, |bits| i16::from(bits as i8));
                }
            }
            Layout::Bytes256(sub) => {
                let q: &mut [i8] = bytemuck::cast_slice_mut(self.q);
                let sums: &mut [i16] = bytemuck::cast_slice_mut(self.sums);
                let blocks = self.x.chunks_exact(LARGE).zip(q.chunks_exact_mut(LARGE));
                for ((x, q), (d, sums)) in blocks.zip(self.d.iter_mut().zip(sums.chunks_exact_mut(LARGE / sub))) {
                    *d = round_block(x, q, |bits| bits as i8);
                    for (sum, q) in sums.iter_mut().zip(q.chunks_exact(sub)) {
                        *sum = q.iter().map(|&q| i16::from(q)).sum();
                    }
                }
            }
        }
    }
}

/// The integers of one block; returns their scale. What is not finite stays visible: the scale is not finite, either.
#[inline(always)]
fn round_block<T>(x: &[f32], q: &mut [T], low: impl Fn(u32) -> T) -> f32 {
    let mut most = [0.0_f32; LANES];
    let mut poison = [0.0_f32; LANES];
    for x in x.chunks_exact(LANES) {
        for ((most, poison), x) in most.iter_mut().zip(&mut poison).zip(x) {
            let size = x.abs();
            *most = if size > *most { size } else { *most };
            // Zero, or NaN where x is infinite or NaN.
            *poison += x * 0.0;
        }
    }
    let most = most.into_iter().fold(0.0, f32::max);
    let d = most / 127.0 + poison.iter().sum::<f32>();
    let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
    for (q, x) in q.iter_mut().zip(x) {
        // Adding and taking away 1.5 * 2^23 rounds to even; the result is at most 127 in size.
        const MAGIC: f32 = 12_582_912.0;
        *q = low((x * inverse + MAGIC).to_bits());
    }
    d
}
