//! Rows of activations, rounded to bytes for products with quantised rows.

use super::dot::{LARGE, SMALL, SUMS, X32, X256};
use crate::isa::Isa;
use crate::parallel::for_chunks3;
use crate::simd::{Kernel, Simd, dispatch_on};

/// Some rows, in bytes with scales.
pub(super) struct Activations<'a> {
    pub(super) k: usize,
    q: &'a mut [i8],
    d: &'a mut [f32],
    /// Sums of 32 numbers in f32, or sums of 16 integers.
    sums: &'a mut [f32],
}

/// Floats to borrow for a row of `k`: its bytes, its scales, its sums.
fn floats_per_row(k: usize, block: usize) -> [usize; 3] {
    let scales = (k / block).next_multiple_of(SUMS);
    [k / 4, scales, if block == SMALL { scales } else { k / 16 / 2 }]
}

impl<'a> Activations<'a> {
    /// Floats that `rows` rows need in [`Activations::of`].
    pub(super) fn scratch_len(rows: usize, k: usize, block: usize) -> usize {
        rows * floats_per_row(k, block).iter().sum::<usize>()
    }

    /// Rounds the rows of `x` `[rows, k]` to the nearest of 255 levels per `block`, which is 32 or 256.
    pub(super) fn of(isa: Isa, x: &[f32], k: usize, block: usize, scratch: &'a mut [f32]) -> Self {
        let rows = x.len() / k;
        let [bytes, scales, sums] = floats_per_row(k, block);
        let (q, rest) = scratch.split_at_mut(rows * bytes);
        let (d, s) = rest.split_at_mut(rows * scales);
        let q: &mut [i8] = bytemuck::cast_slice_mut(q);
        for_chunks3((&mut *q, k), (&mut *d, scales), (&mut *s, sums), |row, q, d, sums| {
            dispatch_on(isa, Round { x: &x[row * k..][..k], q, d, sums, block });
        });
        Self { k, q, d, sums: s }
    }

    /// One row, in blocks of 32.
    #[inline(always)]
    pub(super) fn row32(&self, row: usize) -> X32<'_> {
        let scales = (self.k / SMALL).next_multiple_of(SUMS);
        X32 {
            q: &self.q[row * self.k..][..self.k],
            d: &self.d[row * scales..][..scales],
            sum: &self.sums[row * scales..][..scales],
        }
    }

    /// One row, in blocks of 256.
    #[inline(always)]
    pub(super) fn row256(&self, row: usize) -> X256<'_> {
        let (scales, sums) = ((self.k / LARGE).next_multiple_of(SUMS), self.k / 16);
        let all: &[i16] = bytemuck::cast_slice(self.sums);
        X256 {
            q: &self.q[row * self.k..][..self.k],
            d: &self.d[row * scales..][..scales],
            sums: &all[row * sums..][..sums],
        }
    }
}

struct Round<'a> {
    x: &'a [f32],
    q: &'a mut [i8],
    d: &'a mut [f32],
    sums: &'a mut [f32],
    block: usize,
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.d.fill(0.0);
        if self.block == SMALL {
            self.sums.fill(0.0);
            let blocks = self.x.chunks_exact(SMALL).zip(self.q.chunks_exact_mut(SMALL));
            for ((x, q), (d, sum)) in blocks.zip(self.d.iter_mut().zip(self.sums)) {
                *d = round_block(x, q);
                *sum = *d * q.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
            }
        } else {
            let sums: &mut [i16] = bytemuck::cast_slice_mut(self.sums);
            let blocks = self.x.chunks_exact(LARGE).zip(self.q.chunks_exact_mut(LARGE));
            for ((x, q), (d, sums)) in blocks.zip(self.d.iter_mut().zip(sums.chunks_exact_mut(16))) {
                *d = round_block(x, q);
                for (sum, q) in sums.iter_mut().zip(q.chunks_exact(16)) {
                    *sum = q.iter().map(|&q| i16::from(q)).sum();
                }
            }
        }
    }
}

/// The bytes of one block; returns their scale. What is not finite stays visible: the scale is not finite, either.
#[inline(always)]
fn round_block(x: &[f32], q: &mut [i8]) -> f32 {
    let mut most = [0.0_f32; SUMS];
    let mut poison = [0.0_f32; SUMS];
    for x in x.chunks_exact(SUMS) {
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
        *q = (x * inverse + MAGIC).to_bits() as i8;
    }
    d
}
