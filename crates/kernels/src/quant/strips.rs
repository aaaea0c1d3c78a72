//! The products on vectors.
//!
//! Sixteen rows of weights are a strip. A piece of a strip at a time is unpacked to tiles that stay in the first-level
//! cache: bytes (16-bit integers on AVX2 where a type needs all eight bits), four (two) neighbours of k to a lane of 32
//! bits. A tile meets the rows of activations a few at a time, each number of which is spread over a vector, so that a lane
//! is an output and no sum is ever taken across lanes. A single row goes the same way: turning the weights round costs as
//! much as adding up across lanes would; where registers hold what a block comes apart into, it meets few rows there ([`Few`]).
//!
//! What differs between instruction sets is in [`Lanes`]; how the bits of a type come apart is written once for all
//! (`small`, `large`). Integers have no rounding, so all of them give the same bits.

#![allow(clippy::needless_range_loop, reason = "vectors stay in registers where they are indexed by constants")]

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod large;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod on_tiles;
mod small;
#[cfg(target_arch = "x86_64")]
mod straight;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::activations::{Activations, group};
use super::product::{Job, STRIP};
use crate::parallel::{lines, neighbours};
use crate::simd::fetch_near;
#[cfg(target_arch = "aarch64")]
pub(super) use arm::{OnVectors, on_vectors, signed_layout};
use lanes::{Lanes, Place, Rows};
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{OnVectors, on_vectors, signed_layout};

/// Bytes of tiles that are unpacked at a time: half of the first-level cache.
const TILE_BYTES: usize = 18 * 1024;
/// The same for few rows of activations, for which there is also what they come from and what is fetched ahead.
const FEW_BYTES: usize = 8 * 1024;
/// How far ahead of a block a row of weights is fetched, in bytes.
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
    /// Whether blocks come apart with less work by [`Strips::unpack_two`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "where it saves nothing"))]
    const IN_TWOS: bool = false;
    /// Unpacks two blocks of one tile each.
    ///
    /// # Safety
    /// As [`Strips::unpack`], for both.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "where it saves nothing"))]
    #[inline(always)]
    unsafe fn unpack_two(rows: Rows, tiles: *mut Self::Tile, half: usize) {
        // SAFETY: passed on from the caller.
        unsafe {
            Self::unpack(rows, tiles, half);
            Self::unpack(rows.further(Self::BYTES), tiles.add(1), half);
        }
    }
    /// Continues the sums of the `M` rows of activations of a group by some tiles.
    ///
    /// # Safety
    /// The place must be inside of the activations; the machine must have the lanes.
    unsafe fn multiply<const M: usize>(tiles: &[Self::Tile], place: &Place<'_>, sums: &mut [[f32; STRIP]; M]);
}

/// Computes the sums of few rows of activations with so many blocks of sixteen rows as they come from memory.
type Few = unsafe fn(Rows, &Activations<'_>, usize, &mut [[f32; STRIP]]);

/// Words that [`run`] borrows for `m` rows of activations.
fn scratch_len(m: usize, _k: usize) -> usize {
    // Room for tiles, for the rows that a last strip is completed with, and to begin both at a cache line.
    m * STRIP + (2 * TILE_BYTES + 2 * LINE) / 4
}

/// Computes some columns of a product; those of up to so many rows another way, where there is one.
///
/// # Safety
/// The machine must have the lanes; no other thread may write these columns.
#[inline(always)]
unsafe fn run<V: Lanes, F: Strips<V>>(
    job: &Job<'_>,
    columns: Range<usize>,
    memory: &mut [i32],
    few: Option<(usize, Few)>,
) {
    let (m, row_bytes) = (job.x.rows, job.w.row_bytes());
    let pieces = pieces::<V, F>(job, if m <= FEW { FEW_BYTES } else { TILE_BYTES });
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
            let columns = Columns { first, apart: lines.apart, count: lines.count };
            if let Some((_, few)) = few.filter(|&(most, _)| m <= most && lines.count == STRIP) {
                // SAFETY: passed on from the caller; the rows are inside of the matrix.
                unsafe {
                    few(rows, job.x, row_bytes / F::BYTES, sums);
                    put(job, 0, columns, sums);
                }
                continue;
            }
            for piece in pieces.clone() {
                let (starts, ends) = (piece.start == 0, piece.end * F::BYTES == row_bytes);
                let place = Place { x: job.x, row: 0, tile: piece.start * F::TILES };
                // SAFETY: passed on from the caller; the rows and the piece are inside of the matrix.
                unsafe {
                    let tiles = unpack_piece::<V, F>((rows, lines.count), piece, tiles, spare);
                    all_rows::<V, F>(tiles, place, sums, starts, ends.then_some((job, columns)));
                }
            }
        }
        next += lines.strips * lines.count;
    }
}

/// The blocks of a row, in pieces whose tiles fit into `room` bytes.
#[inline(always)]
fn pieces<V: Lanes, F: Strips<V>>(job: &Job<'_>, room: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let (size, tiles) = (F::BYTES, F::TILES * size_of::<F::Tile>());
    assert_eq!(size, job.w.ty.block_bytes(), "bytes of a block of {}", job.w.ty.name());
    let blocks = job.w.row_bytes() / size;
    let length = blocks.div_ceil(blocks.div_ceil((room / tiles).max(1)));
    assert!(length * tiles <= TILE_BYTES && length * size * STRIP <= TILE_BYTES);
    (0..blocks).step_by(length).map(move |first| first..blocks.min(first + length))
}

/// The tiles of a piece of some rows, sixteen or less.
///
/// # Safety
/// The rows must have these blocks, `tiles` room for their tiles; the machine must have the lanes.
#[inline(always)]
unsafe fn unpack_piece<'a, V: Lanes, F: Strips<V>>(
    (rows, count): (Rows, usize),
    blocks: Range<usize>,
    tiles: *mut F::Tile,
    spare: &mut [i32],
) -> &'a [F::Tile] {
    // SAFETY: passed on from the caller; tiles are all written before they are read.
    unsafe {
        let mut rows = rows.further(blocks.start * F::BYTES);
        if count < STRIP {
            rows = completed(rows, count, blocks.len() * F::BYTES, spare);
        }
        for half in 0..STRIP / V::ROWS {
            unpack::<V, F>(rows.from(half * V::ROWS), blocks.len(), tiles, half);
        }
        std::slice::from_raw_parts(tiles, blocks.len() * F::TILES)
    }
}

/// Which columns a strip is: the first one, from one to the next, and how many.
#[derive(Clone, Copy)]
struct Columns {
    first: usize,
    apart: usize,
    count: usize,
}

/// Writes the sums of some rows, from `row` on, with a strip.
#[inline(always)]
unsafe fn put(job: &Job<'_>, row: usize, Columns { first, apart, count }: Columns, sums: &[[f32; STRIP]]) {
    for (row, sums) in (row..).zip(sums) {
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
    let mut ahead = Ahead::new(rows, F::BYTES);
    for block in 0..count {
        // SAFETY: passed on from the caller.
        unsafe { F::unpack(rows.further(block * F::BYTES), tiles.add(block * F::TILES), half) };
        ahead.fetch(V::ROWS, (block + 1) * F::BYTES);
    }
}

/// Fetches rows of weights before they are read.
pub(super) struct Ahead {
    rows: Rows,
    /// Bytes of a block.
    block: usize,
    /// How often some lines were asked for.
    asked: usize,
}

impl Ahead {
    #[inline(always)]
    fn new(rows: Rows, block: usize) -> Self {
        Self { rows, block, asked: 0 }
    }

    /// Asks for what lies ahead of the first `read` bytes of each of `rows` rows: far enough that it has come when the next
    /// block is read.
    #[inline(always)]
    fn fetch(&mut self, rows: usize, read: usize) {
        // A core waits for two dozen lines at most: if it asks for all that a large block of each row has, it waits instead
        // of multiplying. Small blocks leave time between their lines, which are best asked for one beside the other.
        let together = if self.block > LINE { 4.min(rows) } else { rows };
        let parts = rows / together;
        while self.asked * LINE < read * parts {
            let (line, first) = (self.asked / parts * LINE, self.asked % parts * together);
            for row in first..first + together {
                fetch_near(self.rows.at(row).wrapping_add(AHEAD + self.block + line));
            }
            self.asked += 1;
        }
    }
}

/// Continues the sums of all rows of activations, or starts them. Where they end, they are written group by group: memory
/// takes those of one while the next is multiplied.
#[inline(always)]
unsafe fn all_rows<V: Lanes, F: Strips<V>>(
    tiles: &[F::Tile],
    mut place: Place<'_>,
    sums: &mut [[f32; STRIP]],
    starts: bool,
    ends: Option<(&Job<'_>, Columns)>,
) {
    if starts {
        sums.fill([0.0; STRIP]);
    }
    let mut rest = sums;
    while !rest.is_empty() {
        let count = group(rest.len(), V::GROUP);
        let (rows, more) = rest.split_at_mut(count);
        if let Some((job, columns)) = ends {
            (place.row..place.row + count).for_each(|row| job.expect(row, columns.first));
        }
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
            if let Some((job, columns)) = ends {
                put(job, place.row, columns, rows);
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
