//! From f32 to blocks of 256 whose sixteenths have integer scales.

use super::encode::{WEIGHTED, Weighing};
use super::half_bits::put_f16;
use super::search::{Trials, largest, nearest, positive, symmetric, symmetric_few, with_minimum};

/// Scales and minima of the parts of a block, each part `P` numbers: as levels up to `levels`, and what these multiply.
struct Parts<const N: usize> {
    d: f32,
    dmin: f32,
    scales: [u8; N],
    mins: [u8; N],
}

/// What a type with scales and minima does without importances.
struct Plain {
    trials: Trials,
    /// Whether a number's weight is its size alone, or added to the part's root mean square.
    by_size: bool,
}

/// Finds the scales and minima of `N` parts of 256 numbers with up to `most` levels, and the levels of these in turn.
fn parts<const N: usize>(
    x: &[f32],
    weighing: Weighing<'_>,
    most: i32,
    (levels, factor): (i32, f32),
    plain: &Plain,
) -> Parts<N> {
    let width = 256 / N;
    let variance = factor * x.iter().fold(0.0_f32, |sum, x| sum + x * x) / 256.0;
    let (mut scales, mut mins, mut totals) = ([0.0_f32; N], [0.0_f32; N], [0.0_f32; N]);
    let (mut weights, mut l) = ([0.0_f32; 32], [0; 32]);
    let mut is_weighted = false;
    for (j, x) in x.chunks_exact(width).enumerate() {
        let (weights, l) = (&mut weights[..width], &mut l[..width]);
        is_weighted = weighing.of(x, j * width, variance, weights);
        if !is_weighted {
            let square = x.iter().fold(0.0_f32, |sum, x| sum + x * x) / width as f32;
            let base = if plain.by_size { 0.0 } else { square.sqrt() };
            weights.iter_mut().zip(x).for_each(|(weight, x)| *weight = base + x.abs());
        }
        totals[j] = weights.iter().fold(0.0, |sum, weight| sum + weight);
        let trials = if is_weighted { WEIGHTED } else { plain.trials };
        (scales[j], mins[j]) = with_minimum(most, x, weights, l, trials);
    }
    let (mut scale_levels, mut min_levels) = ([0; N], [0; N]);
    let fit = |x: &[f32; N], l: &mut [u8; N]| {
        if is_weighted {
            return positive(levels, x, &totals, l);
        }
        let max = x.iter().fold(0.0_f32, |max, &x| if x > max { x } else { max });
        let inverse = if max > 0.0 { levels as f32 / max } else { 0.0 };
        l.iter_mut().zip(x).for_each(|(l, x)| *l = nearest(inverse * x).min(levels) as u8);
        max / levels as f32
    };
    let (d, dmin) = (fit(&scales, &mut scale_levels), fit(&mins, &mut min_levels));
    Parts { d, dmin, scales: scale_levels, mins: min_levels }
}

/// Levels of all numbers, given what was written of the scales; a part without a scale gets zeros.
fn levels_of<const N: usize>(x: &[f32], parts: &Parts<N>, most: i32) -> [u8; 256] {
    let (width, mut l) = (256 / N, [0; 256]);
    for (j, (x, l)) in x.chunks_exact(width).zip(l.chunks_exact_mut(width)).enumerate() {
        let (d, dmin) = (parts.d * f32::from(parts.scales[j]), parts.dmin * f32::from(parts.mins[j]));
        if d != 0.0 {
            l.iter_mut().zip(x).for_each(|(l, x)| *l = nearest((x + dmin) / d).clamp(0, most) as u8);
        }
    }
    l
}

/// The same around zero, with signed scales per sixteenth.
fn signed_levels(x: &[f32], d: f32, scales: &[i8; 16], levels: i32) -> [u8; 256] {
    let mut l = [levels as u8; 256];
    for ((x, l), &scale) in x.chunks_exact(16).zip(l.chunks_exact_mut(16)).zip(scales) {
        let d = d * f32::from(scale);
        if d != 0.0 {
            l.iter_mut().zip(x).for_each(|(l, x)| *l = (nearest(x / d).clamp(-levels, levels - 1) + levels) as u8);
        }
    }
    l
}

/// The low two bits of 256 numbers, in 64 bytes.
fn put_two_bits(out: &mut [u8], l: &[u8; 256]) {
    for (l, out) in l.chunks_exact(128).zip(out.chunks_exact_mut(32)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = (0..4).map(|b| (l[32 * b + i] & 3) << (2 * b)).sum();
        }
    }
}

/// Bit `bit` of 256 numbers, in 32 bytes.
fn put_bit(out: &mut [u8], l: &[u8; 256], bit: u8) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = (0..8).map(|b| (l[32 * b + i] >> bit & 1) << b).sum();
    }
}

pub(super) fn q2_k(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let plain = Plain { trials: Trials { first: -0.5, step: 0.1, steps: 15, is_linear: true }, by_size: true };
    let mut parts = parts::<16>(x, weighing, 3, (15, 1.0), &plain);
    parts.d = put_f16(out, 80, parts.d);
    parts.dmin = put_f16(out, 82, parts.dmin);
    for (out, (scale, min)) in out[..16].iter_mut().zip(parts.scales.iter().zip(parts.mins)) {
        *out = scale | min << 4;
    }
    put_two_bits(&mut out[16..80], &levels_of(x, &parts, 3));
}

pub(super) fn q3_k(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let variance = 2.0 * x.iter().fold(0.0_f32, |sum, x| sum + x * x) / 256.0;
    let (mut scales, mut totals, mut is_weighted) = ([0.0_f32; 16], [0.0_f32; 16], false);
    for (j, x) in x.chunks_exact(16).enumerate() {
        let mut weights = [0.0; 16];
        is_weighted = weighing.of(x, 16 * j, variance, &mut weights);
        scales[j] = if is_weighted {
            totals[j] = weights.iter().fold(0.0, |sum, weight| sum + weight);
            symmetric(4, x, Some(&weights), &mut [0; 16])
        } else {
            symmetric_few(4, x, &mut [0; 16])
        };
    }
    let mut levels = [0_u8; 16];
    let d = if is_weighted {
        symmetric(32, &scales, Some(&totals), &mut levels)
    } else {
        let most = largest(&scales);
        let inverse = if most != 0.0 { -32.0 / most } else { 0.0 };
        levels = scales.map(|scale| (nearest(inverse * scale).clamp(-32, 31) + 32) as u8);
        if most != 0.0 { 1.0 / inverse } else { 0.0 }
    };
    let d = put_f16(out, 108, d);
    out[96..108].fill(0);
    for (j, level) in levels.iter().enumerate() {
        out[96 + j % 8] |= (level & 15) << (4 * (j / 8));
        out[104 + j % 4] |= (level >> 4) << (2 * (j / 4));
    }
    let l = signed_levels(x, d, &levels.map(|level| level as i8 - 32), 4);
    put_bit(&mut out[..32], &l, 2);
    put_two_bits(&mut out[32..96], &l);
}

/// Eight pairs of six bits in twelve bytes.
fn put_pairs(out: &mut [u8], scales: &[u8; 8], mins: &[u8; 8]) {
    for j in 0..4 {
        out[j] = scales[j] & 63 | scales[j + 4] >> 4 << 6;
        out[j + 4] = mins[j] & 63 | mins[j + 4] >> 4 << 6;
        out[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4;
    }
}

/// The low nibbles of 64 numbers in 32 bytes, four times.
fn put_wide_nibbles(out: &mut [u8], l: &[u8; 256]) {
    for (l, out) in l.chunks_exact(64).zip(out.chunks_exact_mut(32)) {
        out.iter_mut().enumerate().for_each(|(i, out)| *out = l[i] & 15 | (l[i + 32] & 15) << 4);
    }
}

/// What Q4_K and Q5_K have in common: returns the levels.
fn eighths(x: &[f32], weighing: Weighing<'_>, most: i32, trials: Trials, out: &mut [u8]) -> [u8; 256] {
    let mut parts = parts::<8>(x, weighing, most, (63, 2.0), &Plain { trials, by_size: false });
    parts.d = put_f16(out, 0, parts.d);
    parts.dmin = put_f16(out, 2, parts.dmin);
    put_pairs(&mut out[4..16], &parts.scales, &parts.mins);
    levels_of(x, &parts, most)
}

pub(super) fn q4_k(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let trials = Trials { first: -1.0, step: 0.1, steps: 20, is_linear: false };
    let l = eighths(x, weighing, 15, trials, out);
    put_wide_nibbles(&mut out[16..144], &l);
}

pub(super) fn q5_k(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let trials = Trials { first: -0.5, step: 0.1, steps: 15, is_linear: false };
    let l = eighths(x, weighing, 31, trials, out);
    put_bit(&mut out[16..48], &l, 4);
    put_wide_nibbles(&mut out[48..176], &l);
}

pub(super) fn q6_k(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let mut scales = [0.0_f32; 16];
    for (j, x) in x.chunks_exact(16).enumerate() {
        scales[j] = symmetric(32, x, weighing.importance(16 * j, 16), &mut [0; 16]);
    }
    let most = largest(&scales);
    if most.abs() < 1e-15 {
        return out.fill(0);
    }
    let inverse = -128.0 / most;
    let d = put_f16(out, 208, 1.0 / inverse);
    let levels = scales.map(|scale| nearest(inverse * scale).min(127) as i8);
    for (out, level) in out[192..208].iter_mut().zip(levels) {
        *out = level as u8;
    }
    let l = signed_levels(x, d, &levels, 32);
    let (low, high) = out[..192].split_at_mut(128);
    for (l, (low, high)) in l.chunks_exact(128).zip(low.chunks_exact_mut(64).zip(high.chunks_exact_mut(32))) {
        for i in 0..32 {
            low[i] = l[i] & 15 | (l[i + 64] & 15) << 4;
            low[i + 32] = l[i + 32] & 15 | (l[i + 96] & 15) << 4;
            high[i] = (0..4).map(|b| (l[32 * b + i] >> 4) << (2 * b)).sum();
        }
    }
}
