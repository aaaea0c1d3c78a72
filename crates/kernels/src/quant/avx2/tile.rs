//! Unpacked weights of sixteen rows, and their products with some rows of activations.

use crate::quant::activations::{Activations, LARGE, SMALL};
use std::arch::x86_64::*;

/// Vectors of eight rows in a strip.
pub(in crate::quant) const VECTORS: usize = 2;
/// Sums of `M` rows of activations with a strip.
pub(in crate::quant) type Sums<const M: usize> = [[__m256; VECTORS]; M];

/// 32 numbers of each row: `d * q - min`, with q below 32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Bytes32 {
    pub(super) q: [[__m256i; VECTORS]; SMALL / 4],
    pub(super) d: [__m256; VECTORS],
    pub(super) min: [__m256; VECTORS],
}

/// 32 numbers of each row: `d * q`, two neighbours to a lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Words32 {
    pub(super) q: [[__m256i; VECTORS]; SMALL / 2],
    pub(super) d: [__m256; VECTORS],
}

/// 256 numbers of each row, q below 64, with a scale per 16 or 32, twice in a lane, and minima, two neighbours to a lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Bytes256 {
    pub(super) q: [[__m256i; VECTORS]; LARGE / 4],
    pub(super) scales: [[__m256i; VECTORS]; 16],
    pub(super) mins: [[__m256i; VECTORS]; 8],
    pub(super) d: [__m256; VECTORS],
    pub(super) dmin: [__m256; VECTORS],
}

/// Adds sums of two neighbouring products, of four in a lane, to sums in 16 bits.
///
/// # Safety
/// AVX2 is needed.
#[inline(always)]
pub(super) unsafe fn add_fours(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)) }
}

/// The number, which the compiler must not know where `M` rows fill the registers: it would unroll a loop of that many
/// steps, and reorder it such that sums and weights go through memory, at half the speed.
#[inline(always)]
fn opaque<const M: usize>(count: usize) -> usize {
    if M > 2 { std::hint::black_box(count).min(count) } else { count }
}

/// Four bytes everywhere.
#[inline(always)]
unsafe fn spread(x: *const i8) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// Products with [`Bytes32`]; `FOURS` sums of four products fit into 16 bits.
///
/// # Safety
/// As [`super::Strips::multiply`].
#[inline(always)]
pub(super) unsafe fn bytes32<const M: usize, const FOURS: usize>(
    tiles: &[Bytes32],
    x: &Activations<'_>,
    row: usize,
    first: usize,
    sums: &mut Sums<M>,
) {
    let x: [_; M] = std::array::from_fn(|i| (x.bytes(row + i), x.scales(row + i), x.sums(row + i)));
    assert!(x.iter().all(|x| x.1.len() >= first + tiles.len()));
    // SAFETY: a row of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        let x: [_; M] = x.map(|x| (x.0.as_ptr().add(first * SMALL), x.1.as_ptr().add(first), x.2.as_ptr().add(first)));
        let parts = opaque::<M>(SMALL / 4 / FOURS);
        let fours = if FOURS > 4 { opaque::<M>(FOURS) } else { FOURS };
        for (b, tile) in tiles.iter().enumerate() {
            let mut all = [[_mm256_setzero_si256(); VECTORS]; M];
            for part in 0..parts {
                let mut part_sums = [[_mm256_setzero_si256(); VECTORS]; M];
                for q in part * FOURS..part * FOURS + fours {
                    let w = tile.q.get_unchecked(q);
                    for i in 0..M {
                        let x = spread(x[i].0.add(b * SMALL + 4 * q));
                        for v in 0..VECTORS {
                            part_sums[i][v] = add_fours(part_sums[i][v], w[v], x);
                        }
                    }
                }
                for i in 0..M {
                    for v in 0..VECTORS {
                        let wide = _mm256_madd_epi16(part_sums[i][v], _mm256_set1_epi16(1));
                        all[i][v] = _mm256_add_epi32(all[i][v], wide);
                    }
                }
            }
            for i in 0..M {
                let (d, sum) = (_mm256_broadcast_ss(&*x[i].1.add(b)), _mm256_broadcast_ss(&*x[i].2.add(b)));
                for v in 0..VECTORS {
                    sums[i][v] =
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[i][v]), _mm256_mul_ps(tile.d[v], d), sums[i][v]);
                    sums[i][v] = _mm256_fnmadd_ps(tile.min[v], sum, sums[i][v]);
                }
            }
        }
    }
}

/// Products with [`Words32`].
///
/// # Safety
/// As [`super::Strips::multiply`].
#[inline(always)]
pub(super) unsafe fn words32<const M: usize>(
    tiles: &[Words32],
    x: &Activations<'_>,
    row: usize,
    first: usize,
    sums: &mut Sums<M>,
) {
    let x: [_; M] = std::array::from_fn(|i| (x.words(row + i), x.scales(row + i)));
    assert!(x.iter().all(|x| x.1.len() >= first + tiles.len()));
    // SAFETY: a row of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        let x: [_; M] = x.map(|x| (x.0.as_ptr().add(first * SMALL), x.1.as_ptr().add(first)));
        let twos = opaque::<M>(SMALL / 2);
        for (b, tile) in tiles.iter().enumerate() {
            let mut all = [[_mm256_setzero_si256(); VECTORS]; M];
            for q in 0..twos {
                let w = tile.q.get_unchecked(q);
                for i in 0..M {
                    let x = spread(x[i].0.add(b * SMALL + 2 * q).cast());
                    for v in 0..VECTORS {
                        all[i][v] = _mm256_add_epi32(all[i][v], _mm256_madd_epi16(w[v], x));
                    }
                }
            }
            for i in 0..M {
                let d = _mm256_broadcast_ss(&*x[i].1.add(b));
                for v in 0..VECTORS {
                    sums[i][v] =
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[i][v]), _mm256_mul_ps(tile.d[v], d), sums[i][v]);
                }
            }
        }
    }
}

/// Products with [`Bytes256`]: a scale per `SUB` numbers; `FOURS` sums of four products fit into 16 bits; minima have a
/// scale of their own, or that of the numbers.
///
/// # Safety
/// As [`super::Strips::multiply`].
#[inline(always)]
pub(super) unsafe fn bytes256<const M: usize, const SUB: usize, const FOURS: usize, const MIN: bool>(
    tiles: &[Bytes256],
    x: &Activations<'_>,
    row: usize,
    first: usize,
    sums: &mut Sums<M>,
) {
    let x: [_; M] = std::array::from_fn(|i| (x.bytes(row + i), x.scales(row + i), x.integer_sums(row + i)));
    assert!(x.iter().all(|x| x.1.len() >= first + tiles.len()));
    let subs = LARGE / SUB;
    // SAFETY: a row of activations has as many blocks as was checked; instructions are promised.
    unsafe {
        let x: [_; M] =
            x.map(|x| (x.0.as_ptr().add(first * LARGE), x.1.as_ptr().add(first), x.2.as_ptr().add(first * subs)));
        let fours = if FOURS > 4 { opaque::<M>(FOURS) } else { FOURS };
        for (b, tile) in tiles.iter().enumerate() {
            let mut all = [[_mm256_setzero_si256(); VECTORS]; M];
            for sub in 0..subs {
                let scale = tile.scales[sub];
                for part in 0..SUB / 4 / FOURS {
                    let first = sub * SUB / 4 + part * FOURS;
                    let mut part_sums = [[_mm256_setzero_si256(); VECTORS]; M];
                    for q in first..first + fours {
                        let w = tile.q.get_unchecked(q);
                        for i in 0..M {
                            let x = spread(x[i].0.add(b * LARGE + 4 * q));
                            for v in 0..VECTORS {
                                part_sums[i][v] = add_fours(part_sums[i][v], w[v], x);
                            }
                        }
                    }
                    for i in 0..M {
                        for v in 0..VECTORS {
                            let wide = _mm256_madd_epi16(part_sums[i][v], scale[v]);
                            all[i][v] = _mm256_add_epi32(all[i][v], wide);
                        }
                    }
                }
            }
            for i in 0..M {
                let mut below = [_mm256_setzero_si256(); VECTORS];
                for j in 0..subs / 2 {
                    let x = spread(x[i].2.add(b * subs + 2 * j).cast());
                    for v in 0..VECTORS {
                        below[v] = _mm256_add_epi32(below[v], _mm256_madd_epi16(tile.mins[j][v], x));
                    }
                }
                let d = _mm256_broadcast_ss(&*x[i].1.add(b));
                for v in 0..VECTORS {
                    let (wide, scale) = (all[i][v], _mm256_mul_ps(tile.d[v], d));
                    if MIN {
                        sums[i][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide), scale, sums[i][v]);
                        let dmin = _mm256_mul_ps(tile.dmin[v], d);
                        sums[i][v] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(below[v]), dmin, sums[i][v]);
                    } else {
                        let wide = _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, below[v]));
                        sums[i][v] = _mm256_fmadd_ps(wide, scale, sums[i][v]);
                    }
                }
            }
        }
    }
}
