//! Products of sixteen rows of activations at a time on the machine's own tiles (AMX), whose sums are integers, too: to
//! the bit those of the vectors.
//!
//! A tile of weights is the right operand as it was unpacked. Where scales are integers, numbers are multiplied with them
//! once for all rows of activations, and split into two signed bytes; all 256 of a block then add up in two tiles.

use super::avx512::{Avx512, Moved32, floats, quad};
use super::lanes::{Place, Quad};
use super::tile::{Bytes32, Bytes256};
use super::{Groups, STRIP, Strips, all_rows};
use crate::quant::activations::{LARGE, ON_TILES, SMALL};
use crate::tiles::{Shape, Tiles};
use std::arch::x86_64::*;

/// Sums of sixteen rows of activations with a strip.
pub(super) type Sixteen = [[f32; STRIP]; ON_TILES];

/// What tiles need to know of a type.
pub(in crate::quant) trait OnTiles: Strips<Avx512> {
    /// A tile as it is multiplied.
    type Ready: Copy;
    /// How registers are divided.
    const SHAPE: &'static Shape;
    /// Makes it from an unpacked one.
    ///
    /// # Safety
    /// The machine must have the lanes, and room for it must be writable.
    unsafe fn ready(tile: &Self::Tile, to: *mut Self::Ready);
    /// Continues the sums of sixteen rows of activations by some tiles.
    ///
    /// # Safety
    /// The place must be inside of the activations; the machine must have the lanes; registers have [`OnTiles::SHAPE`].
    unsafe fn multiply_sixteen(
        registers: &Tiles,
        tiles: &[Self::Ready],
        place: &Place<'_>,
        sums: &mut Sixteen,
    );
}

/// The tiles of a thread, and room for what they multiply.
pub(super) struct OnRegisters<F: OnTiles> {
    registers: Tiles,
    ready: *mut F::Ready,
}

impl<F: OnTiles> OnRegisters<F> {
    /// There must be room for as many as are unpacked at a time.
    pub(super) fn new(ready: *mut F::Ready) -> Self {
        Self { registers: Tiles::new(F::SHAPE), ready }
    }
}

impl<F: OnTiles> Groups<Avx512, F> for OnRegisters<F> {
    #[inline(always)]
    unsafe fn multiply(&self, tiles: &[F::Tile], mut place: Place<'_>, sums: &mut [[f32; STRIP]], starts: bool) {
        let (groups, rest) = sums.as_chunks_mut::<ON_TILES>();
        if !groups.is_empty() {
            // SAFETY: passed on from the caller; there is room for all of them.
            let ready = unsafe {
                tiles.iter().enumerate().for_each(|(i, tile)| F::ready(tile, self.ready.add(i)));
                std::slice::from_raw_parts(self.ready, tiles.len())
            };
            for sums in groups {
                if starts {
                    *sums = [[0.0; STRIP]; ON_TILES];
                }
                // SAFETY: passed on from the caller.
                unsafe { F::multiply_sixteen(&self.registers, ready, &place, sums) };
                place.row += ON_TILES;
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { all_rows::<Avx512, F>(tiles, place, rest, starts) }
    }
}

/// Blocks whose sums are taken from the registers at a time.
const AT_A_TIME: usize = 8;
/// Sums of sixteen rows with a strip.
type Integers = [[i32; STRIP]; ON_TILES];

/// A memory of sums, aligned for tiles.
#[repr(C, align(64))]
struct Aligned<T>(T);

/// 32 numbers of each row, signed: `d * q`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Signed32 {
    q: [Quad; SMALL / 4],
    d: [f32; STRIP],
}

/// Takes away again what made the numbers positive.
///
/// # Safety
/// As [`OnTiles::ready`].
#[inline(always)]
pub(super) unsafe fn signed(tile: &Moved32, to: *mut Signed32) {
    // SAFETY: passed on from the caller.
    unsafe {
        for (from, to) in tile.q.iter().zip(&mut (*to).q) {
            let signed = _mm512_xor_si512(quad(from), _mm512_set1_epi8(-128));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), signed);
        }
        (*to).d = tile.d;
    }
}

/// Products with [`Bytes32`].
///
/// # Safety
/// As [`OnTiles::multiply_sixteen`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn bytes32(
    registers: &Tiles,
    tiles: &[Bytes32],
    place: &Place<'_>,
    to: &mut Sixteen,
) {
    // SAFETY: a group of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        small(registers, tiles, place, to, |tile, x, i, all, sum| {
            let scale = _mm512_mul_ps(floats(&tile.d), _mm512_set1_ps(x.scale(i)));
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), scale, sum);
            _mm512_fnmadd_ps(floats(&tile.min), _mm512_castsi512_ps(_mm512_set1_epi32(x.sum(0, i))), sum)
        });
    }
}

/// Products with signed numbers.
///
/// # Safety
/// As [`OnTiles::multiply_sixteen`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn signed32(
    registers: &Tiles,
    tiles: &[Signed32],
    place: &Place<'_>,
    to: &mut Sixteen,
) {
    // SAFETY: as above.
    unsafe {
        small(registers, tiles, place, to, |tile, x, i, all, sum| {
            let scale = _mm512_mul_ps(floats(&tile.d), _mm512_set1_ps(x.scale(i)));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), scale, sum)
        });
    }
}

/// Products with tiles of 32 numbers, which begin with them: `add` continues a sum by the integers of a block.
///
/// # Safety
/// As [`OnTiles::multiply_sixteen`].
#[inline(always)]
unsafe fn small<T>(
    registers: &Tiles,
    tiles: &[T],
    place: &Place<'_>,
    to: &mut Sixteen,
    add: impl Fn(&T, super::lanes::Block<ON_TILES>, usize, __m512i, __m512) -> __m512,
) {
    let mut integers = Aligned([[[0; STRIP]; ON_TILES]; AT_A_TIME]);
    // SAFETY: passed on from the caller.
    unsafe {
        place.check::<ON_TILES>(tiles.len(), SMALL / 4, 1);
        let mut sums: [__m512; ON_TILES] = std::array::from_fn(|i| floats(&to[i]));
        for (part, tiles) in tiles.chunks(AT_A_TIME).enumerate() {
            let first = part * AT_A_TIME;
            let left = place.block::<ON_TILES>(first, SMALL / 4, 1).units();
            registers.multiply_blocks(tiles.len(), left, (tiles.as_ptr().cast(), size_of::<T>()), &mut integers.0);
            for (b, (tile, integers)) in tiles.iter().zip(&integers.0).enumerate() {
                let x = place.block::<ON_TILES>(first + b, SMALL / 4, 1);
                for i in 0..ON_TILES {
                    sums[i] = add(tile, x, i, _mm512_loadu_si512(integers[i].as_ptr().cast()), sums[i]);
                }
            }
        }
        for (to, sum) in to.iter_mut().zip(sums) {
            _mm512_storeu_ps(to.as_mut_ptr(), sum);
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

/// Multiplies numbers, less `offset`, with their scales: at most 63 * 128, which are two signed bytes.
///
/// # Safety
/// As [`OnTiles::ready`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn scaled<const SUB: usize>(tile: &Bytes256, to: *mut Scaled256, offset: i16) {
    // SAFETY: instructions are promised; as many bytes are read and written as there are.
    unsafe {
        let (bytes, seven) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(0x7f));
        let offset = _mm512_set1_epi16(offset);
        for (q, from) in tile.q.iter().enumerate() {
            let scale = quad(&tile.scales[q / (SUB / 4)]);
            let scale = _mm512_or_si512(
                _mm512_and_si512(scale, _mm512_set1_epi32(0xffff)),
                _mm512_slli_epi32::<16>(scale),
            );
            let v = quad(from);
            let even = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_and_si512(v, bytes), offset), scale);
            let odd = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_srli_epi16::<8>(v), offset), scale);
            let low = _mm512_or_si512(
                _mm512_and_si512(even, seven),
                _mm512_slli_epi16::<8>(_mm512_and_si512(odd, seven)),
            );
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

/// Products with scaled numbers. `MIN`: minima have a scale of their own; else the offset has taken their part.
///
/// # Safety
/// As [`OnTiles::multiply_sixteen`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn scaled256<const SUB: usize, const MIN: bool>(
    registers: &Tiles,
    tiles: &[Scaled256],
    place: &Place<'_>,
    to: &mut Sixteen,
) {
    let pairs = LARGE / SUB / 2;
    let mut integers = Aligned([[[0; STRIP]; ON_TILES]; 2]);
    // SAFETY: a group of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        place.check::<ON_TILES>(tiles.len(), LARGE / 4, pairs);
        for (b, tile) in tiles.iter().enumerate() {
            let x = place.block::<ON_TILES>(b, LARGE / 4, pairs);
            registers.multiply_halves(LARGE / 64, x.units(), [&tile.high, &tile.low], &mut integers.0);
            let [high, low]: &[Integers; 2] = &integers.0;
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
}
