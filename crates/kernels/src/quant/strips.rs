//! The products on vectors.
//!
//! Sixteen rows of weights are a strip. A piece of a strip at a time is unpacked to tiles that stay in the first-level
//! cache: unsigned bytes (16-bit integers where a type needs all eight bits and there is no dot instruction), four (two)
//! neighbours of k to a lane of 32 bits. A tile meets the rows of activations a few at a time, each number of which is
//! spread over a vector, so that a lane is an output and no sum is ever taken across lanes. A single row goes the same
//! way: turning the weights round costs as much as adding up across lanes would.
//!
//! What differs between instruction sets is in [`Lanes`]; how the bits of a type come apart is written once for all
//! (`small`, `large`). Integers have no rounding, so all of them give the same bits.

#![allow(clippy::needless_range_loop, reason = "vectors stay in registers where they are indexed by constants")]

mod avx2;
mod avx512;
mod lanes;
mod large;
mod on_tiles;
mod small;
mod tile;

use super::activations::group;
use super::product::{Job, STRIP};
use crate::parallel::{lines, neighbours};
pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;
pub(super) use lanes::Lanes;
use lanes::{Place, Rows};
pub(super) use on_tiles::OnTiles;
use on_tiles::OnRegisters;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ops::Range;

/// Bytes of tiles that are unpacked at a time: half of the first-level cache.
const TILE_BYTES: usize = 18 * 1024;
/// The same for few rows of activations, for which there is also what they come from and what is fetched ahead.
const FEW_BYTES: usize = 8 * 1024;
/// How far ahead a row of weights is fetched, in bytes.
const AHEAD: usize = 256;
/// What counts as few rows.
const FEW: usize = 4;
/// Bytes in a cache line.
const LINE: usize = 64;

/// What the loop over strips needs to know of a type.
pub(super) trait Strips<V: Lanes> {
    /// Bytes of a block.
    const BYTES: usize;
    /// Some numbers of sixteen rows, unpacked.
    type Tile: Copy;
    /// Tiles per block.
    const TILES: usize;
    /// Unpacks one block of as many rows as there are lanes, into their part of each tile.
    ///
    /// # Safety
    /// A block must be readable at each row, and [`Strips::TILES`] tiles writable; the machine must have the lanes.
    unsafe fn unpack(rows: Rows, tiles: *mut Self::Tile, half: usize);
    /// Continues the sums of the `M` rows of activations of a group by some tiles.
    ///
    /// # Safety
    /// The place must be inside of the activations; the machine must have the lanes.
    unsafe fn multiply<const M: usize>(tiles: &[Self::Tile], place: &Place<'_>, sums: &mut [[f32; STRIP]; M]);
}

/// Words that [`run`] borrows for `m` rows of activations.
pub(super) fn scratch_len(m: usize) -> usize {
    // Room for tiles, for the rows that a last strip is completed with, and to begin both at a cache line.
    m * STRIP + (2 * TILE_BYTES + 2 * LINE) / 4
}

/// The same for [`run_on_tiles`]: numbers times their scales take nearly twice the room.
pub(super) fn scratch_len_on_tiles(m: usize) -> usize {
    scratch_len(m) + (2 * TILE_BYTES + LINE) / 4
}

/// Computes some columns of a product.
///
/// # Safety
/// The machine must have AVX2, FMA and F16C; no other thread may write these columns.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<F: Strips<Avx2>>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    // SAFETY: passed on from the caller.
    unsafe { run::<Avx2, F, _>(job, columns, memory, &OnVectors) }
}

/// Computes some columns of a product.
///
/// # Safety
/// The machine must have AVX-512 F, BW, DQ, VL and VNNI; no other thread may write these columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<F: Strips<Avx512>>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    // SAFETY: passed on from the caller.
    unsafe { run::<Avx512, F, _>(job, columns, memory, &OnVectors) }
}

/// Computes some columns of a product, of sixteen rows at a time on tiles.
///
/// # Safety
/// As [`run_avx512`], and the machine must have tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_on_tiles<F: OnTiles>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    let (memory, ready) = memory.split_at_mut(scratch_len(job.x.rows));
    let aligned = ready.as_ptr().align_offset(LINE).min(LINE / 4);
    assert!(size_of::<F::Ready>() <= 2 * size_of::<F::Tile>() && ready.len() - aligned >= 2 * TILE_BYTES / 4);
    let registers = OnRegisters::<F>::new(ready[aligned..].as_mut_ptr().cast());
    // SAFETY: passed on from the caller.
    unsafe { run::<Avx512, F, _>(job, columns, memory, &registers) }
}

/// How unpacked tiles meet all rows of activations.
trait Groups<V: Lanes, F: Strips<V>> {
    /// Continues the sums of all of them, or starts them.
    ///
    /// # Safety
    /// As [`Strips::multiply`].
    unsafe fn multiply(&self, tiles: &[F::Tile], place: Place<'_>, sums: &mut [[f32; STRIP]], starts: bool);
}

/// A few rows at a time on vectors.
struct OnVectors;

impl<V: Lanes, F: Strips<V>> Groups<V, F> for OnVectors {
    #[inline(always)]
    unsafe fn multiply(&self, tiles: &[F::Tile], place: Place<'_>, sums: &mut [[f32; STRIP]], starts: bool) {
        // SAFETY: passed on from the caller.
        unsafe { all_rows::<V, F>(tiles, place, sums, starts) }
    }
}

#[inline(always)]
unsafe fn run<V: Lanes, F: Strips<V>, G: Groups<V, F>>(
    job: &Job<'_>,
    columns: Range<usize>,
    memory: &mut [i32],
    groups: &G,
) {
    let (m, row_bytes, size) = (job.x.rows, job.w.row_bytes(), F::BYTES);
    assert_eq!(size, job.w.ty.block_bytes(), "bytes of a block of {}", job.w.ty.name());
    let blocks = row_bytes / size;
    let room = if m <= FEW { FEW_BYTES } else { TILE_BYTES };
    let most = room / (F::TILES * size_of::<F::Tile>());
    let per_piece = blocks.div_ceil(blocks.div_ceil(most.max(1)));
    assert!(per_piece * F::TILES * size_of::<F::Tile>() <= TILE_BYTES && per_piece * size * STRIP <= TILE_BYTES);
    let (sums, rest) = memory.split_at_mut(m * STRIP);
    let sums = bytemuck::cast_slice_mut::<i32, f32>(sums).as_chunks_mut::<STRIP>().0;
    let aligned = rest.as_ptr().align_offset(LINE).min(LINE / 4);
    let (tiles, spare) = rest[aligned..].split_at_mut(TILE_BYTES / 4);
    let tiles: *mut F::Tile = tiles.as_mut_ptr().cast();
    let mut next = columns.start;
    while next < columns.end {
        // Many rows of activations hide the time that memory takes, and their results lie side by side for neighbours.
        let lines =
            if m <= FEW { lines(columns.end - next, STRIP, row_bytes) } else { neighbours(columns.end - next, STRIP) };
        for strip in 0..lines.strips {
            let first = next + strip;
            let rows = Rows { first: job.w.bytes[first * row_bytes..].as_ptr(), stride: lines.apart * row_bytes };
            // SAFETY: passed on from the caller.
            unsafe {
                one_strip::<V, F, G>(job, (rows, lines.count), (blocks, per_piece), tiles, spare, sums, groups);
                put(job, first, lines.apart, lines.count, sums);
            }
        }
        next += lines.strips * lines.count;
    }
}

/// The products of some rows, sixteen or less, with all activations.
#[inline(always)]
unsafe fn one_strip<V: Lanes, F: Strips<V>, G: Groups<V, F>>(
    job: &Job<'_>,
    (rows, count): (Rows, usize),
    (blocks, per_piece): (usize, usize),
    tiles: *mut F::Tile,
    spare: &mut [i32],
    sums: &mut [[f32; STRIP]],
    groups: &G,
) {
    for first in (0..blocks).step_by(per_piece) {
        let length = per_piece.min(blocks - first);
        let place = Place { x: &job.x, row: 0, tile: first * F::TILES };
        // SAFETY: rows and blocks are inside the matrix; the tiles have room, and are all written before they are read.
        unsafe {
            let mut rows = rows.further(first * F::BYTES);
            if count < STRIP {
                rows = completed(rows, count, length * F::BYTES, spare);
            }
            for half in 0..STRIP / V::ROWS {
                unpack::<V, F>(rows.from(half * V::ROWS), length, tiles, half);
            }
            groups.multiply(std::slice::from_raw_parts(tiles, length * F::TILES), place, sums, first == 0);
        }
    }
}

/// Writes the sums of a strip, whose columns are `apart`.
#[inline(always)]
unsafe fn put(job: &Job<'_>, first: usize, apart: usize, count: usize, sums: &[[f32; STRIP]]) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the columns are this piece's own.
        unsafe {
            if apart == 1 && count == STRIP {
                job.put_all(row, first, sums);
            } else {
                sums[..count].iter().enumerate().for_each(|(i, &sum)| job.put(row, first + i * apart, sum));
            }
        }
    }
}

/// The first `count` rows, `len` bytes of each, copied, with the last one again for those that lack.
#[cold]
unsafe fn completed(rows: Rows, count: usize, len: usize, spare: &mut [i32]) -> Rows {
    let spare: &mut [u8] = bytemuck::cast_slice_mut(spare);
    for (i, copy) in spare[..STRIP * len].chunks_exact_mut(len).enumerate() {
        // SAFETY: the caller vouches for these rows.
        copy.copy_from_slice(unsafe { std::slice::from_raw_parts(rows.at(i.min(count - 1)), len) });
    }
    Rows { first: spare.as_ptr(), stride: len }
}

/// Unpacks `count` blocks of some rows, and fetches what comes later in them.
#[inline(always)]
unsafe fn unpack<V: Lanes, F: Strips<V>>(rows: Rows, count: usize, tiles: *mut F::Tile, half: usize) {
    let mut fetched = 0;
    for block in 0..count {
        // SAFETY: passed on from the caller; prefetches may point anywhere.
        unsafe {
            F::unpack(rows.further(block * F::BYTES), tiles.add(block * F::TILES), half);
            while fetched < (block + 1) * F::BYTES {
                for row in 0..V::ROWS {
                    _mm_prefetch::<_MM_HINT_T0>(rows.at(row).wrapping_add(AHEAD + fetched).cast());
                }
                fetched += LINE;
            }
        }
    }
}

/// Continues the sums of all rows of activations, or starts them.
#[inline(always)]
unsafe fn all_rows<V: Lanes, F: Strips<V>>(
    tiles: &[F::Tile],
    mut place: Place<'_>,
    sums: &mut [[f32; STRIP]],
    starts: bool,
) {
    if starts {
        sums.fill([0.0; STRIP]);
    }
    let mut rest = sums;
    while !rest.is_empty() {
        let count = group(rest.len(), V::GROUP);
        let (rows, more) = rest.split_at_mut(count);
        // SAFETY: passed on from the caller.
        unsafe {
            match count {
                1 => F::multiply::<1>(tiles, &place, as_array(rows)),
                2 => F::multiply::<2>(tiles, &place, as_array(rows)),
                3 => F::multiply::<3>(tiles, &place, as_array(rows)),
                4 => F::multiply::<4>(tiles, &place, as_array(rows)),
                8 if V::GROUP >= 8 => F::multiply::<8>(tiles, &place, as_array(rows)),
                12 if V::GROUP >= 12 => F::multiply::<12>(tiles, &place, as_array(rows)),
                count => unreachable!("a group of {count} rows"),
            }
        }
        place.row += count;
        rest = more;
    }
}

/// The sums of a group of `M` rows.
#[inline(always)]
fn as_array<const M: usize>(rows: &mut [[f32; STRIP]]) -> &mut [[f32; STRIP]; M] {
    rows.try_into().expect("a group of this many rows")
}
