//! The products on 256-bit vectors.
//!
//! Sixteen rows of weights are a strip. A piece of a strip at a time is unpacked to tiles that stay in the first-level
//! cache: unsigned bytes (16-bit integers where a type needs all eight bits and the sign), four (two) neighbours of k of
//! eight rows to a vector. A tile meets the rows of activations four at a time, each number of which is spread over a
//! vector, so that a lane is an output and no sum is ever taken across lanes. A single row goes the same way: turning the
//! weights round costs as much as adding up across lanes would.
//!
//! Sums of four products of bytes are added up in 16 bits as long as they fit, which is what makes few bits fast.
//! Another instruction set with a dot instruction replaces [`tile::add_fours`] and gives the same bits, since integers
//! have no rounding.

#![allow(clippy::needless_range_loop, reason = "vectors stay in registers where they are indexed by constants")]

mod large;
mod small;
mod tile;
mod turn;

use super::activations::Activations;
use super::product::{Job, STRIP};
use std::arch::x86_64::*;
use std::ops::Range;
use tile::{Sums, VECTORS};

/// Bytes of tiles that are unpacked at a time: half of the first-level cache.
const TILE_BYTES: usize = 18 * 1024;
/// The same for few rows of activations, for which there is also what they come from and what is fetched ahead.
const FEW_BYTES: usize = 8 * 1024;
/// Rows of activations that share a load of weights.
const SHARED: usize = 4;

/// What the loop over strips needs to know of a type.
pub(super) trait Strips {
    /// Bytes of a block.
    const BYTES: usize;
    /// Some numbers of sixteen rows, unpacked.
    type Tile: Copy;
    /// Tiles per block.
    const TILES: usize;
    /// Unpacks one block of eight rows into half of each tile.
    ///
    /// # Safety
    /// A block must be readable at each row, and [`Strips::TILES`] tiles writable; AVX2, FMA and F16C are needed.
    unsafe fn unpack(rows: &[*const u8; 8], tiles: *mut Self::Tile, half: usize);
    /// Continues the sums of `M` rows of activations, from `row` on, by some tiles, the first of which is the
    /// `first`-th of its rows.
    ///
    /// # Safety
    /// The activations must have these rows and be as long as the tiles; AVX2, FMA and F16C are needed.
    unsafe fn multiply<const M: usize>(
        tiles: &[Self::Tile],
        x: &Activations<'_>,
        row: usize,
        first: usize,
        sums: &mut Sums<M>,
    );
}

/// Words that [`run`] borrows for `m` rows of activations.
pub(super) fn scratch_len(m: usize) -> usize {
    // Room for the largest tiles of a block, and to begin at a cache line.
    m * STRIP + (TILE_BYTES + 64) / 4
}

/// Computes some columns of a product.
///
/// # Safety
/// The machine must have AVX2, FMA and F16C; no other thread may write these columns.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<F: Strips>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    let (m, row_bytes, size) = (job.x.rows, job.w.row_bytes(), F::BYTES);
    assert_eq!(size, job.w.ty.block_bytes(), "bytes of a block of {}", job.w.ty.name());
    let blocks = row_bytes / size;
    let room = if m <= SHARED { FEW_BYTES } else { TILE_BYTES };
    let most = room / (F::TILES * size_of::<F::Tile>());
    let per_piece = blocks.div_ceil(blocks.div_ceil(most.max(1)));
    let (sums, tiles) = memory.split_at_mut(m * STRIP);
    let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
    let aligned = tiles.as_ptr().align_offset(64).min(16);
    let tiles = &mut tiles[aligned..];
    assert!(size_of_val(tiles) >= per_piece * F::TILES * size_of::<F::Tile>(), "room for tiles");
    let tiles: *mut F::Tile = tiles.as_mut_ptr().cast();
    for strip in columns.clone().step_by(STRIP) {
        for first in (0..blocks).step_by(per_piece) {
            let count = per_piece.min(blocks - first);
            // The same rows' next piece, or the next strip's first.
            let ahead = if first + count < blocks { count * size } else { STRIP * row_bytes - first * size };
            // SAFETY: rows and blocks are inside the matrix; the tiles have room, and are all written before they are
            // read.
            unsafe {
                for half in 0..VECTORS {
                    let rows = std::array::from_fn(|i| {
                        let row = (strip + 8 * half + i).min(columns.end - 1);
                        job.w.bytes.as_ptr().add(row * row_bytes + first * size)
                    });
                    unpack::<F>(rows, count, ahead, tiles, half);
                }
                let tiles = std::slice::from_raw_parts(tiles, count * F::TILES);
                for row in (0..m).step_by(SHARED) {
                    let sums = &mut sums[row * STRIP..];
                    let place = (first == 0, row, first * F::TILES);
                    match m - row {
                        1 => rows::<F, 1>(job, tiles, place, sums),
                        2 => rows::<F, 2>(job, tiles, place, sums),
                        3 => rows::<F, 3>(job, tiles, place, sums),
                        _ => rows::<F, 4>(job, tiles, place, sums),
                    }
                }
            }
        }
        for (row, sums) in sums.chunks_exact(STRIP).enumerate() {
            for (column, &sum) in (strip..columns.end).zip(sums) {
                // SAFETY: the column is this piece's own.
                unsafe { job.put(row, column, sum) };
            }
        }
    }
}

/// Unpacks `count` blocks of eight rows, and fetches what lies `ahead`.
#[inline(always)]
unsafe fn unpack<F: Strips>(mut rows: [*const u8; 8], count: usize, ahead: usize, tiles: *mut F::Tile, half: usize) {
    for block in 0..count {
        // SAFETY: passed on from the caller; prefetches may point anywhere.
        unsafe {
            F::unpack(&rows, tiles.add(block * F::TILES), half);
            for row in &mut rows {
                for line in 0..F::BYTES.div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(ahead + 64 * line).cast());
                }
                *row = row.add(F::BYTES);
            }
        }
    }
}

/// Continues the sums of `M` rows, or starts them.
#[inline(always)]
unsafe fn rows<F: Strips, const M: usize>(
    job: &Job<'_>,
    tiles: &[F::Tile],
    (starts, row, first): (bool, usize, usize),
    sums: &mut [f32],
) {
    assert!(sums.len() >= M * STRIP);
    // SAFETY: the sums' length was checked; the rest is passed on from the caller.
    unsafe {
        let mut acc: Sums<M> = [[_mm256_setzero_ps(); VECTORS]; M];
        if !starts {
            for i in 0..M {
                for v in 0..VECTORS {
                    acc[i][v] = _mm256_loadu_ps(sums.as_ptr().add(STRIP * i + 8 * v));
                }
            }
        }
        F::multiply::<M>(tiles, &job.x, row, first, &mut acc);
        for i in 0..M {
            for v in 0..VECTORS {
                _mm256_storeu_ps(sums.as_mut_ptr().add(STRIP * i + 8 * v), acc[i][v]);
            }
        }
    }
}
