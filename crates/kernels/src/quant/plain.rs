//! The products in plain Rust: what the vector versions compute, and the fallback.
//!
//! A row of weights at a time is unpacked to bytes, and meets all rows of activations.

use super::activations::{LARGE, SMALL};
use super::product::Job;
use super::unpack::{Block32, Block256};
use std::ops::Range;

/// Columns of a product with a type whose scales are f32.
pub(super) fn plain32<B: Block32>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    let k = job.w.cols;
    let (q, rest) = memory.split_at_mut(k / 4);
    let q: &mut [i8] = bytemuck::cast_slice_mut(q);
    let (d, rest) = rest.split_at_mut(k / SMALL);
    let (d, min): (&mut [f32], &mut [f32]) =
        (bytemuck::cast_slice_mut(d), bytemuck::cast_slice_mut(&mut rest[..k / SMALL]));
    let len = B::TYPE.block_len();
    for column in columns {
        let blocks = job.w.part(column..column + 1).chunks_exact(B::TYPE.block_bytes());
        let scales = d.chunks_mut(len / SMALL).zip(min.chunks_mut(len / SMALL));
        for (block, (q, (d, min))) in blocks.zip(q.chunks_exact_mut(len).zip(scales)) {
            B::unpack(block, q, d, min);
        }
        for row in 0..job.x.rows {
            let x = job.x.group(row, 1);
            let mins = if B::HAS_MIN { Some((&*min, bytemuck::cast_slice(x.sums))) } else { None };
            let sum = match B::OFFSET {
                Some(_) => chain32::<i8>(q, d, bytemuck::cast_slice(x.units), x.scales, mins),
                None => chain32::<i16>(q, d, bytemuck::cast_slice(x.units), x.scales, mins),
            };
            // SAFETY: columns are this piece's own.
            unsafe { job.put(row, column, sum) };
        }
    }
}

/// One output: see [`super::product`].
fn chain32<X: Copy + Into<i32>>(w: &[i8], d: &[f32], x: &[X], xd: &[f32], mins: Option<(&[f32], &[f32])>) -> f32 {
    let mut sum = 0.0_f32;
    for (b, (w, x)) in w.chunks_exact(SMALL).zip(x.chunks_exact(SMALL)).enumerate() {
        let dot = w.iter().zip(x).map(|(&w, &x)| {
            let x: i32 = x.into();
            i32::from(w) * x
        });
        let dot: i32 = dot.sum();
        sum = (dot as f32).mul_add(d[b] * xd[b], sum);
        if let Some((min, xsum)) = mins {
            sum = (-min[b]).mul_add(xsum[b], sum);
        }
    }
    sum
}

/// Columns of a product with a type whose scales are integers.
pub(super) fn plain256<B: Block256>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    let (k, count) = (job.w.cols, job.w.cols / LARGE);
    let (q, rest) = memory.split_at_mut(k / 4);
    let (integers, rest) = rest.split_at_mut(16 * count);
    let q = bytemuck::cast_slice_mut::<i32, u8>(q).as_chunks_mut::<LARGE>().0;
    let (scales, mins) = bytemuck::cast_slice_mut::<i32, i16>(integers).as_chunks_mut::<16>().0.split_at_mut(count);
    let d = bytemuck::cast_slice_mut::<i32, f32>(rest).as_chunks_mut::<2>().0;
    for column in columns {
        let blocks = job.w.part(column..column + 1).chunks_exact(B::TYPE.block_bytes());
        for (b, block) in blocks.enumerate() {
            d[b] = B::unpack(block, &mut q[b], &mut scales[b], &mut mins[b]).into();
        }
        for row in 0..job.x.rows {
            let group = job.x.group(row, 1);
            let (x, xd) = (bytemuck::cast_slice::<i32, i8>(group.units), group.scales);
            let xsums = bytemuck::cast_slice::<i32, i16>(group.sums);
            let mut sum = 0.0_f32;
            for b in 0..count {
                let (x, xsums) = (&x[LARGE * b..][..LARGE], &xsums[LARGE / B::SUB * b..]);
                let (dot, below) = integers_of::<B>(&q[b], &scales[b], &mins[b], x, xsums);
                if B::OFFSET == 0 {
                    sum = (dot as f32).mul_add(d[b][0] * xd[b], sum);
                    sum = (-(below as f32)).mul_add(d[b][1] * xd[b], sum);
                } else {
                    sum = ((dot - below) as f32).mul_add(d[b][0] * xd[b], sum);
                }
            }
            // SAFETY: columns are this piece's own.
            unsafe { job.put(row, column, sum) };
        }
    }
}

/// Words of memory that a piece of work borrows for rows of `k`.
pub(super) fn scratch_len(_rows: usize, k: usize) -> usize {
    k / 4 + k / 16 + k / 128
}

/// The scaled products of a block, and what its minima, or what stands for zero, take away.
fn integers_of<B: Block256>(
    q: &[u8; 256],
    scales: &[i16; 16],
    mins: &[i16; 16],
    x: &[i8],
    xsums: &[i16],
) -> (i32, i32) {
    let dot = q.chunks_exact(16).zip(x.chunks_exact(16)).zip(scales);
    let dot = dot.map(|((q, x), &scale)| {
        let part: i32 = q.iter().zip(x).map(|(&q, &x)| i32::from(q) * i32::from(x)).sum();
        part * i32::from(scale)
    });
    let step = B::SUB / 16;
    let below = (0..LARGE / B::SUB).map(|j| {
        let min = if B::OFFSET == 0 { mins[step * j] } else { B::OFFSET * scales[step * j] };
        i32::from(min) * i32::from(xsums[j])
    });
    (dot.sum(), below.sum())
}
