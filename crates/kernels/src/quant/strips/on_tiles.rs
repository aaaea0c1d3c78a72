//! Products of sixteen rows of activations at a time on the machine's own tiles (AMX), whose sums are integers, too: to
//! the bit those of the vectors.
//!
//! A tile of weights is the right operand, in signed bytes. Where scales are integers, numbers are multiplied with them
//! once for all rows of activations, and split into two signed bytes; all 256 of a block then add up in two tiles.

use super::avx512::{Avx512, Moved32, floats, quad};
use super::lanes::{Block, Place, Quad, Rows};
use super::straight::Straight;
use super::tile::{Bytes32, Bytes256, Signed32};
use super::x86::run_avx512;
use super::{Columns, LINE, STRIP, Strips, TILE_BYTES, all_rows, pieces, put, unpack_piece};
use crate::quant::activations::{LARGE, ON_TILES, SMALL};
use crate::quant::product::Job;
use crate::quant::unpack::{
    Block32, Block256, Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq1_0, Tq2_0,
};
use crate::tiles::{Aligned, Shape, Tiles};
use std::arch::x86_64::*;
use std::ops::Range;

/// Sums of sixteen rows of activations with a strip.
pub(super) type Sixteen = [[f32; STRIP]; ON_TILES];

/// What tiles need to know of a type.
pub(in crate::quant) trait OnTiles: Strips<Avx512, Tile: Straight<Self>> + Sized {
    /// A tile as it is multiplied.
    type Ready: Copy;
    /// How registers are divided.
    const SHAPE: &'static Shape;
    /// Makes it from an unpacked one.
    ///
    /// # Safety
    /// The machine must have the lanes, and room for it must be writable.
    unsafe fn ready(tile: &Self::Tile, to: *mut Self::Ready);
    /// Continues the sums of one or two groups of activations, of each with one or two strips, by their tiles.
    ///
    /// # Safety
    /// The place must be inside of the activations; the machine must have the lanes; registers have [`OnTiles::SHAPE`].
    unsafe fn multiply_groups(
        registers: &mut TileRegisters,
        strips: [&[Self::Ready]; 2],
        place: Place<'_>,
        sums: [&mut [Sixteen]; 2],
    );
}

/// [`OnTiles`] for some types: what a tile becomes, the registers, and both functions.
macro_rules! on_tiles {
    ($($ty:ident)*, $ready:ty, $shape:expr, $make:expr, $multiply:expr) => {$(
        impl OnTiles for $ty {
            type Ready = $ready;
            const SHAPE: &'static Shape = $shape;
            #[inline(always)]
            unsafe fn ready(tile: &Self::Tile, to: *mut $ready) {
                // SAFETY: passed on from the caller.
                unsafe { $make(tile, to) }
            }
            #[inline(always)]
            unsafe fn multiply_groups(
                on: &mut TileRegisters,
                strips: [&[$ready]; 2],
                place: Place<'_>,
                sums: [&mut [Sixteen]; 2],
            ) {
                // SAFETY: passed on from the caller.
                unsafe { $multiply(on, strips, place, sums) }
            }
        }
    )*};
}

on_tiles!(Q4_1 Q5_1, Bytes32, &Shape::BLOCKS, unchanged, bytes32);
on_tiles!(Q4_0 Q5_0 Mxfp4 Tq1_0 Tq2_0 Q8_0 Iq4Nl Iq4Xs, Signed32, &Shape::BLOCKS, signed::<Self>, signed32);
on_tiles!(Q2K Q3K Q4K Q5K Q6K, Scaled256, &Shape::WHOLE, scaled_of::<Self>, scaled256_of::<Self>);

/// The tiles of a thread, and a memory for their sums.
pub(in crate::quant) struct TileRegisters {
    tiles: Tiles,
    sums: Aligned<[Four; AT_A_TIME]>,
}

/// Sums of sixteen rows with a strip.
type Integers = [[i32; STRIP]; ON_TILES];

/// Sums of two groups of sixteen rows with two strips, or with two halves of one: of the first group with both, then of the
/// second.
type Four = [Integers; 4];

/// Blocks that are multiplied before their sums are scaled. The one does not go on beside the other (docs/performance.md).
const AT_A_TIME: usize = 4;

/// Strips that meet a group of activations while it is in the first-level cache.
const STRIPS: usize = 4;
/// Bytes of ready tiles of a strip: numbers times their scales take nearly twice the room of what is unpacked.
const READY_BYTES: usize = 2 * TILE_BYTES;

/// Words that [`run_on_tiles`] borrows for `m` rows of activations.
pub(super) fn scratch_len_on_tiles(m: usize, _k: usize) -> usize {
    STRIPS * m * STRIP + (STRIPS * READY_BYTES + 2 * TILE_BYTES + 2 * LINE) / 4
}

/// Computes some columns of a product.
///
/// # Safety
/// As [`run_avx512`], and the machine must have tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_on_tiles<F: OnTiles>(job: &Job<'_>, columns: Range<usize>, memory: &mut [i32]) {
    let (m, row_bytes) = (job.x.rows, job.w.row_bytes());
    if m < ON_TILES {
        // SAFETY: passed on from the caller.
        return unsafe { run_avx512::<F>(job, columns, memory) };
    }
    let pieces = pieces::<Avx512, F>(job, TILE_BYTES);
    let aligned = memory.as_ptr().align_offset(LINE).min(LINE / 4);
    let (sums, rest) = memory[aligned..].split_at_mut(STRIPS * m * STRIP);
    let sums = bytemuck::cast_slice_mut::<i32, f32>(sums).as_chunks_mut::<STRIP>().0;
    let (ready, rest) = rest.split_at_mut(STRIPS * READY_BYTES / 4);
    let (tiles, spare) = rest.split_at_mut(TILE_BYTES / 4);
    let (ready, tiles): (*mut F::Ready, *mut F::Tile) = (ready.as_mut_ptr().cast(), tiles.as_mut_ptr().cast());
    let most = READY_BYTES / size_of::<F::Ready>();
    let mut registers = TileRegisters::new(F::SHAPE);
    for first in columns.clone().step_by(STRIPS * STRIP) {
        let width = |strip: usize| STRIP.min(columns.end - first - strip * STRIP);
        let strips = (columns.end - first).div_ceil(STRIP).min(STRIPS);
        let of = |strip: usize| Columns { first: first + strip * STRIP, apart: 1, count: width(strip) };
        for piece in pieces.clone() {
            let (tile, count, ends) =
                (piece.start * F::TILES, piece.len() * F::TILES, piece.end * F::BYTES == row_bytes);
            assert!(count <= most, "{count} tiles where there is room for {most}");
            for (strip, sums) in sums.chunks_exact_mut(m).enumerate().take(strips) {
                let at = job.w.bytes[(first + strip * STRIP) * row_bytes..].as_ptr();
                let rows = (Rows { first: at, stride: row_bytes }, width(strip));
                let (groups, rest) = sums.as_chunks_mut::<ON_TILES>();
                if tile == 0 {
                    groups.fill([[0.0; STRIP]; ON_TILES]);
                }
                let place = Place { x: job.x, row: groups.len() * ON_TILES, tile };
                // SAFETY: passed on from the caller; the rows and the piece are inside of the matrix, and there is room.
                unsafe {
                    let tiles = unpack_piece::<Avx512, F>(rows, piece.clone(), tiles, spare);
                    tiles.iter().enumerate().for_each(|(i, tile)| F::ready(tile, ready.add(strip * most + i)));
                    all_rows::<Avx512, F>(tiles, place, rest, tile == 0, ends.then_some((job, of(strip))));
                }
            }
            for group in (0..m / ON_TILES).step_by(2) {
                let groups = group..(group + 2).min(m / ON_TILES);
                let rows = groups.start * ON_TILES..groups.end * ON_TILES;
                for strip in (0..strips).step_by(2) {
                    // A last strip without a second one is multiplied twice, and counted once.
                    let both = [strip, strips.min(strip + 2) - 1];
                    if ends {
                        both.iter().for_each(|&strip| rows.clone().for_each(|row| job.expect(row, of(strip).first)));
                    }
                    let (first, next) = sums[strip * m..].split_at_mut(m);
                    let next = if both[1] > strip { sixteens(&mut next[..m], &groups) } else { &mut [] };
                    let sums = [sixteens(first, &groups), next];
                    let place = Place { x: job.x, row: rows.start, tile };
                    // SAFETY: passed on from the caller; as many tiles were made ready.
                    unsafe {
                        let ready = both.map(|strip| std::slice::from_raw_parts(ready.add(strip * most), count));
                        F::multiply_groups(&mut registers, ready, place, sums);
                    }
                }
                // Row by row: what lies side by side is written together.
                for row in rows.filter(|_| ends) {
                    for strip in 0..strips {
                        // SAFETY: passed on from the caller.
                        unsafe { put(job, row, of(strip), &sums[strip * m + row..][..1]) };
                    }
                }
            }
        }
    }
}

/// Some groups of the sums of a strip.
fn sixteens<'a>(sums: &'a mut [[f32; STRIP]], groups: &Range<usize>) -> &'a mut [Sixteen] {
    &mut sums.as_chunks_mut::<ON_TILES>().0[groups.clone()]
}

impl TileRegisters {
    fn new(shape: &Shape) -> Self {
        Self { tiles: Tiles::new(shape), sums: Aligned([[[[0; STRIP]; ON_TILES]; 4]; AT_A_TIME]) }
    }
}

/// A tile that is multiplied as it is.
///
/// # Safety
/// As [`OnTiles::ready`].
#[inline(always)]
unsafe fn unchanged(tile: &Bytes32, to: *mut Bytes32) {
    // SAFETY: passed on from the caller.
    unsafe { to.write(*tile) }
}

/// Takes away again what made the numbers positive: 128, unless the type says less.
///
/// # Safety
/// As [`OnTiles::ready`].
#[inline(always)]
unsafe fn signed<F: Block32>(tile: &Moved32, to: *mut Signed32) {
    // SAFETY: passed on from the caller.
    unsafe {
        let by = _mm512_set1_epi8(F::OFFSET.unwrap_or(-128));
        for (from, to) in tile.q.iter().zip(&mut (*to).q) {
            let signed = _mm512_sub_epi8(quad(from), by);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), signed);
        }
        (*to).d = tile.d;
    }
}

/// Products with [`Bytes32`].
///
/// # Safety
/// As [`OnTiles::multiply_groups`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn bytes32(on: &mut TileRegisters, strips: [&[Bytes32]; 2], place: Place<'_>, sums: [&mut [Sixteen]; 2]) {
    // SAFETY: a group of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        small(on, strips, place, sums, |tile, x, i, all, sum| {
            let scale = _mm512_mul_ps(floats(&tile.d), _mm512_set1_ps(x.scale(i)));
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), scale, sum);
            _mm512_fnmadd_ps(floats(&tile.min), _mm512_castsi512_ps(_mm512_set1_epi32(x.sum(0, i))), sum)
        });
    }
}

/// Products with signed numbers.
///
/// # Safety
/// As [`OnTiles::multiply_groups`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn signed32(on: &mut TileRegisters, strips: [&[Signed32]; 2], place: Place<'_>, sums: [&mut [Sixteen]; 2]) {
    // SAFETY: as above.
    unsafe {
        small(on, strips, place, sums, |tile, x, i, all, sum| {
            let scale = _mm512_mul_ps(floats(&tile.d), _mm512_set1_ps(x.scale(i)));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), scale, sum)
        });
    }
}

/// Products with tiles of 32 numbers, which begin with them: `add` continues a sum by the integers of a block.
///
/// # Safety
/// As [`OnTiles::multiply_groups`].
#[inline(always)]
unsafe fn small<T>(
    on: &mut TileRegisters,
    strips: [&[T]; 2],
    place: Place<'_>,
    mut sums: [&mut [Sixteen]; 2],
    add: impl Fn(&T, Block<ON_TILES>, usize, __m512i, __m512) -> __m512,
) {
    let (blocks, TileRegisters { tiles: on, sums: Aligned(integers) }) = (strips[0].len(), on);
    // SAFETY: passed on from the caller.
    unsafe {
        let places = place.pair(sums[0].len());
        places.iter().for_each(|place| place.check::<ON_TILES>(blocks, SMALL / 4, 1));
        for first in (0..blocks).step_by(AT_A_TIME) {
            let count = AT_A_TIME.min(blocks - first);
            let xs = places.each_ref().map(|place| place.block::<ON_TILES>(first, SMALL / 4, 1));
            let tiles = strips.map(|tiles| &tiles[first..first + count]);
            let right = tiles.map(|tiles| tiles.as_ptr().cast());
            on.multiply_blocks(count, xs.map(Block::units), (right, size_of::<T>()), integers);
            for (s, (tiles, sums)) in tiles.iter().zip(&mut sums).enumerate() {
                for (g, (x, to)) in xs.iter().zip(sums.iter_mut()).enumerate() {
                    // No closure: one that is not inlined would give them back through memory.
                    let mut sums = [_mm512_setzero_ps(); ON_TILES];
                    for i in 0..ON_TILES {
                        sums[i] = floats(&to[i]);
                    }
                    for (b, (tile, integers)) in tiles.iter().zip(integers.iter()).enumerate() {
                        let x = x.further(b, SMALL / 4, 1);
                        x.further(AT_A_TIME, SMALL / 4, 1).fetch_scales();
                        for i in 0..ON_TILES {
                            let all = _mm512_loadu_si512(integers[2 * g + s][i].as_ptr().cast());
                            sums[i] = add(tile, x, i, all, sums[i]);
                        }
                    }
                    for (to, sum) in to.iter_mut().zip(sums) {
                        _mm512_storeu_ps(to.as_mut_ptr(), sum);
                    }
                }
            }
        }
    }
}

/// 256 numbers of each row times their integer scales, `128 * high + low`, and minima as in [`Bytes256`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Scaled256 {
    high: [Quad; LARGE / 4],
    low: [Quad; LARGE / 4],
    mins: [Quad; 8],
    d: [f32; STRIP],
    dmin: [f32; STRIP],
}

/// Multiplies numbers, less `offset`, with their scales: at most 32 * 128, which are two signed bytes.
///
/// # Safety
/// As [`OnTiles::ready`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn scaled<const SUB: usize>(tile: &Bytes256, to: *mut Scaled256, offset: i16) {
    // SAFETY: instructions are promised; as many bytes are read and written as there are.
    unsafe {
        let (bytes, seven) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(0x7f));
        let offset = _mm512_set1_epi16(offset);
        for (q, from) in tile.q.iter().enumerate() {
            let scale = quad(&tile.scales[q / (SUB / 4)]);
            let scale =
                _mm512_or_si512(_mm512_and_si512(scale, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32::<16>(scale));
            let v = quad(from);
            let even = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_and_si512(v, bytes), offset), scale);
            let odd = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_srli_epi16::<8>(v), offset), scale);
            let low =
                _mm512_or_si512(_mm512_and_si512(even, seven), _mm512_slli_epi16::<8>(_mm512_and_si512(odd, seven)));
            let high = _mm512_or_si512(
                _mm512_and_si512(_mm512_srai_epi16::<7>(even), bytes),
                _mm512_slli_epi16::<8>(_mm512_srai_epi16::<7>(odd)),
            );
            _mm512_storeu_si512((&raw mut (*to).high[q]).cast(), high);
            _mm512_storeu_si512((&raw mut (*to).low[q]).cast(), low);
        }
        (*to).mins = tile.mins;
        (*to).d = tile.d;
        (*to).dmin = tile.dmin;
    }
}

/// [`scaled`] as a type says.
///
/// # Safety
/// As [`OnTiles::ready`].
#[inline(always)]
unsafe fn scaled_of<F: Block256>(tile: &Bytes256, to: *mut Scaled256) {
    // SAFETY: passed on from the caller.
    unsafe {
        match F::SUB {
            16 => scaled::<16>(tile, to, F::OFFSET),
            _ => scaled::<32>(tile, to, F::OFFSET),
        }
    }
}

/// [`scaled256`] as a type says.
///
/// # Safety
/// As [`OnTiles::multiply_groups`].
#[inline(always)]
unsafe fn scaled256_of<F: Block256>(
    on: &mut TileRegisters,
    strips: [&[Scaled256]; 2],
    place: Place<'_>,
    sums: [&mut [Sixteen]; 2],
) {
    for (tiles, to) in strips.into_iter().zip(sums) {
        // SAFETY: passed on from the caller.
        unsafe {
            match (F::SUB, F::OFFSET) {
                _ if to.is_empty() => {}
                (16, 0) => scaled256::<16, true>(on, tiles, &place, to),
                (16, _) => scaled256::<16, false>(on, tiles, &place, to),
                (_, 0) => scaled256::<32, true>(on, tiles, &place, to),
                _ => scaled256::<32, false>(on, tiles, &place, to),
            }
        }
    }
}

/// Products with scaled numbers. `MIN`: minima have a scale of their own; else the offset has taken their part.
///
/// # Safety
/// As [`OnTiles::multiply_groups`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn scaled256<const SUB: usize, const MIN: bool>(
    on: &mut TileRegisters,
    tiles: &[Scaled256],
    place: &Place<'_>,
    groups: &mut [Sixteen],
) {
    let (pairs, TileRegisters { tiles: on, sums: Aligned(integers) }) = (LARGE / SUB / 2, on);
    // SAFETY: groups of activations have as many blocks as is checked; instructions are promised.
    unsafe {
        let both = place.pair(groups.len());
        both.iter().for_each(|place| place.check::<ON_TILES>(tiles.len(), LARGE / 4, pairs));
        let blocks = |b| both.each_ref().map(|place| place.block::<ON_TILES>(b, LARGE / 4, pairs));
        let multiply = |b: usize, sums: &mut Four| {
            on.multiply_halves(LARGE / 64, blocks(b).map(Block::units), [&tiles[b].high, &tiles[b].low], sums);
        };
        multiply(0, &mut integers[0]);
        for (b, tile) in tiles.iter().enumerate() {
            if b + 1 < tiles.len() {
                multiply(b + 1, &mut integers[(b + 1) % 2]);
            }
            for ((to, x), sums) in groups.iter_mut().zip(blocks(b)).zip(integers[b % 2].as_chunks::<2>().0) {
                add_scaled::<MIN>(tile, pairs, x, sums, to);
            }
        }
    }
}

/// Continues the sums of a group by those of a block.
///
/// # Safety
/// As [`scaled256`].
#[inline(always)]
unsafe fn add_scaled<const MIN: bool>(
    tile: &Scaled256,
    pairs: usize,
    x: Block<ON_TILES>,
    [high, low]: &[Integers; 2],
    to: &mut Sixteen,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let (d, dmin) = (floats(&tile.d), floats(&tile.dmin));
        for i in 0..ON_TILES {
            let high = _mm512_slli_epi32::<7>(_mm512_loadu_si512(high[i].as_ptr().cast()));
            let all = _mm512_add_epi32(high, _mm512_loadu_si512(low[i].as_ptr().cast()));
            let (xd, mut sum) = (_mm512_set1_ps(x.scale(i)), floats(&to[i]));
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), _mm512_mul_ps(d, xd), sum);
            if MIN {
                let mut below = _mm512_setzero_si512();
                for j in 0..pairs {
                    below = _mm512_dpwssd_epi32(below, quad(&tile.mins[j]), _mm512_set1_epi32(x.sum(j, i)));
                }
                sum = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(below), _mm512_mul_ps(dmin, xd), sum);
            }
            _mm512_storeu_ps(to[i].as_mut_ptr(), sum);
        }
    }
}
