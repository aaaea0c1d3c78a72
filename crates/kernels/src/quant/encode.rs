//! From f32 to blocks.

use super::encode_k as k;
use super::half_bits::put_f16;
use super::search::{Trials, largest, nearest, symmetric, with_minimum};
use super::types::GgmlType;
use super::unpack::{E2M1_VALUES, IQ4_VALUES, TQ1_PARTS, half_of_power};
use crate::parallel::for_chunks;
use half::{bf16, f16};

/// What a block of numbers is encoded with.
#[derive(Clone, Copy)]
pub(super) struct Weighing<'a> {
    /// How much an error in each number of the block matters, if that is known.
    importance: Option<&'a [f32]>,
    /// Mean of the squares of the whole row.
    mean_square: f32,
}

impl Weighing<'_> {
    /// Weights of some numbers of a block: their importance times a size that `variance` keeps from vanishing.
    pub(super) fn of(&self, x: &[f32], start: usize, variance: f32, out: &mut [f32]) -> bool {
        let Some(importance) = self.importance else { return false };
        for ((out, importance), x) in out.iter_mut().zip(&importance[start..]).zip(x) {
            *out = importance * (variance + x * x).sqrt();
        }
        true
    }

    /// The importances themselves.
    pub(super) fn importance(&self, start: usize, len: usize) -> Option<&[f32]> {
        self.importance.map(|importance| &importance[start..start + len])
    }
}

/// Encodes one block.
type Encode = fn(&[f32], Weighing<'_>, &mut [u8]);

fn encoder(ty: GgmlType) -> Option<Encode> {
    Some(match ty {
        GgmlType::F32 => |x, _, out| out.copy_from_slice(&x[0].to_le_bytes()),
        GgmlType::F16 => |x, _, out| out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Bf16 => |x, _, out| out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Iq4Nl => iq4_nl,
        GgmlType::Iq4Xs => iq4_xs,
        GgmlType::Mxfp4 => mxfp4,
        GgmlType::Tq1_0 => tq1_0,
        GgmlType::Tq2_0 => tq2_0,
        GgmlType::Q2K => k::q2_k,
        GgmlType::Q3K => k::q3_k,
        GgmlType::Q4K => k::q4_k,
        GgmlType::Q5K => k::q5_k,
        GgmlType::Q6K => k::q6_k,
        _ => return None,
    })
}

/// Whether [`quantise`] knows the type.
pub fn can_quantise(ty: GgmlType) -> bool {
    encoder(ty).is_some()
}

/// Encodes a row `x` in whole blocks of `ty`. `importance` says for each column how much its error matters (the mean
/// square of what it is multiplied with); types that search for their scales then search for other ones. Panics where
/// [`can_quantise`] says no and where lengths do not fit.
pub fn quantise(ty: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let encode = encoder(ty).unwrap_or_else(|| panic!("quantise: no encoder for {}", ty.name()));
    assert_eq!(ty.bytes(x.len()), Some(out.len()), "quantise: bytes of {} {} numbers", x.len(), ty.name());
    assert!(importance.is_none_or(|all| all.len() == x.len()), "quantise: an importance for every column");
    let len = ty.block_len();
    let mean_square = x.iter().fold(0.0_f32, |sum, x| sum + x * x) / x.len().max(1) as f32;
    for (b, (x, out)) in x.chunks_exact(len).zip(out.chunks_exact_mut(ty.block_bytes())).enumerate() {
        let importance = importance.map(|all| &all[b * len..][..len]);
        encode(x, Weighing { importance, mean_square }, out);
    }
}

/// Encodes rows of `width` on all threads, with one importance per column.
pub fn quantise_rows(ty: GgmlType, x: &[f32], width: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    let bytes =
        ty.bytes(width).unwrap_or_else(|| panic!("quantise: rows of {width} are no whole {} blocks", ty.name()));
    for_chunks(out, bytes, |at, out| quantise(ty, &x[at / bytes * width..][..width], importance, out));
}

/// Trials with known importances.
pub(super) const WEIGHTED: Trials = Trials { first: -0.9, step: 0.05, steps: 36, is_linear: false };

/// Two rows of sixteen numbers below 16, in the nibbles of sixteen bytes.
fn put_nibbles(out: &mut [u8], l: &[u8; 32]) {
    for (i, out) in out[..16].iter_mut().enumerate() {
        *out = l[i] & 15 | l[i + 16] << 4;
    }
}

/// The fifth bits of 32 numbers.
fn put_fifth_bits(out: &mut [u8], l: &[u8; 32]) {
    for (out, l) in out.iter_mut().zip(l.chunks_exact(8)) {
        *out = l.iter().enumerate().map(|(bit, l)| (l >> 4 & 1) << bit).sum();
    }
}

/// `1 / d`, or nothing for nothing.
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// The scale `d` and levels `0..2 * levels` of `x = d * (l - levels)`.
fn around_zero(levels: u8, x: &[f32], weighing: Weighing<'_>) -> (f32, [u8; 32]) {
    let (mut l, mut weights) = ([0; 32], [0.0; 32]);
    if weighing.of(x, 0, weighing.mean_square, &mut weights) {
        return (symmetric(i32::from(levels), x, Some(&weights), &mut l), l);
    }
    let d = largest(x) / -f32::from(levels);
    let inverse = inverse(d);
    for (l, x) in l.iter_mut().zip(x) {
        *l = ((x * inverse + (f32::from(levels) + 0.5)) as i8 as u8).min(2 * levels - 1);
    }
    (d, l)
}

/// The scale, the lowest value and levels up to `levels` of `x = d * l + lowest`.
fn from_lowest(levels: u8, x: &[f32], weighing: Weighing<'_>) -> (f32, f32, [u8; 32]) {
    let (mut l, mut weights) = ([0; 32], [0.0; 32]);
    if weighing.of(x, 0, weighing.mean_square, &mut weights) {
        let (d, min) = with_minimum(i32::from(levels), x, &weights, &mut l, WEIGHTED);
        return (d, -min, l);
    }
    let min = x.iter().fold(f32::MAX, |min, &x| if x < min { x } else { min });
    let max = x.iter().fold(f32::MIN, |max, &x| if x > max { x } else { max });
    let d = (max - min) / f32::from(levels);
    let inverse = inverse(d);
    for (l, x) in l.iter_mut().zip(x) {
        *l = (((x - min) * inverse + 0.5) as u8).min(levels);
    }
    (d, min, l)
}

fn q4_0(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let (d, l) = around_zero(8, x, weighing);
    put_f16(out, 0, d);
    put_nibbles(&mut out[2..], &l);
}

fn q4_1(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let (d, min, l) = from_lowest(15, x, weighing);
    put_f16(out, 0, d);
    put_f16(out, 2, min);
    put_nibbles(&mut out[4..], &l);
}

fn q5_0(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let (d, l) = around_zero(16, x, weighing);
    put_f16(out, 0, d);
    put_fifth_bits(&mut out[2..6], &l);
    put_nibbles(&mut out[6..], &l);
}

fn q5_1(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let (d, min, l) = from_lowest(31, x, weighing);
    put_f16(out, 0, d);
    put_f16(out, 2, min);
    put_fifth_bits(&mut out[4..8], &l);
    put_nibbles(&mut out[8..], &l);
}

fn q8_0(x: &[f32], _: Weighing<'_>, out: &mut [u8]) {
    let d = largest(x).abs() / 127.0;
    let inverse = inverse(d);
    put_f16(out, 0, d);
    for (out, x) in out[2..].iter_mut().zip(x) {
        *out = (x * inverse).round() as i8 as u8;
    }
}

fn mxfp4(x: &[f32], _: Weighing<'_>, out: &mut [u8]) {
    let most = largest(x).abs();
    // Where the logarithm's floor is the exponent itself.
    let exponent = if most > 0.0 { (most.log2().floor() as i32 - 2 + 127).clamp(0, 255) as u8 } else { 0 };
    out[0] = exponent;
    let d = half_of_power(exponent);
    let mut l = [0; 32];
    for (l, x) in l.iter_mut().zip(x) {
        let error = |code: usize| (f32::from(E2M1_VALUES[code]) * d - x).abs();
        *l = (1..16).fold(0, |best, code| if error(code) < error(best) { code } else { best }) as u8;
    }
    put_nibbles(&mut out[1..], &l);
}

/// Numbers -1, 0 and 1 as digits of base three, the first the highest, rounded up to a fraction of 256.
fn tq1_0(x: &[f32], _: Weighing<'_>, out: &mut [u8]) {
    let d = largest(x).abs();
    let inverse = inverse(d);
    put_f16(out, 52, d);
    for (bytes, start, digits) in TQ1_PARTS {
        let width = bytes.len();
        for (i, out) in out[bytes].iter_mut().enumerate() {
            let code = |digit: usize| ((x[start + digit * width + i] * inverse).round() as i8 + 1) as u16;
            let number: u16 = (0..digits).map(|digit| code(digit) * 3_u16.pow(4 - digit as u32)).sum();
            *out = (number * 256).div_ceil(243) as u8;
        }
    }
}

fn tq2_0(x: &[f32], _: Weighing<'_>, out: &mut [u8]) {
    let d = largest(x).abs();
    let inverse = inverse(d);
    put_f16(out, 64, d);
    for (half, out) in x.chunks_exact(128).zip(out[..64].chunks_exact_mut(32)) {
        for (i, out) in out.iter_mut().enumerate() {
            let code = |b: usize| ((half[32 * b + i] * inverse).round() as i8 + 1) as u8 & 3;
            *out = (0..4).map(|b| code(b) << (2 * b)).sum();
        }
    }
}

/// The code of the value nearest to `x`.
fn nearest_code(x: f32) -> u8 {
    let above = IQ4_VALUES.partition_point(|&value| f32::from(value) <= x);
    match above {
        0 => 0,
        16 => 15,
        _ => {
            let (below, over) = (f32::from(IQ4_VALUES[above - 1]), f32::from(IQ4_VALUES[above]));
            (if x - below < over - x { above - 1 } else { above }) as u8
        }
    }
}

/// The best scale of 32 numbers in terms of [`IQ4_VALUES`].
fn uneven_scale(x: &[f32], weights: &[f32]) -> f32 {
    const TRIES: i32 = 7;
    let most = largest(x);
    if most.abs() < 1e-15 {
        return 0.0;
    }
    let fit = |inverse: f32| {
        x.iter().zip(weights).fold((0.0_f32, 0.0_f32), |(sum_qx, sum_q2), (&x, &w)| {
            let q = f32::from(IQ4_VALUES[usize::from(nearest_code(inverse * x))]);
            (sum_qx + w * q * x, sum_q2 + w * q * q)
        })
    };
    let lowest = f32::from(IQ4_VALUES[0]);
    let (sum_qx, sum_q2) = fit(1.0 / (-most / lowest));
    let mut d = sum_qx / sum_q2;
    let mut best = d * sum_qx;
    for step in -TRIES..=TRIES {
        let (sum_qx, sum_q2) = fit((step as f32 + lowest) / most);
        if sum_q2 > 0.0 && sum_qx * sum_qx > best * sum_q2 {
            d = sum_qx / sum_q2;
            best = d * sum_qx;
        }
    }
    d
}

/// Scales of all 32 numbers of a block whose values are uneven.
fn uneven_scales(x: &[f32], weighing: Weighing<'_>, scales: &mut [f32]) {
    let variance = 2.0 * x.iter().fold(0.0_f32, |sum, x| sum + x * x) / x.len() as f32;
    for (b, (x, scale)) in x.chunks_exact(32).zip(scales).enumerate() {
        let mut weights = [0.0; 32];
        if !weighing.of(x, 32 * b, variance, &mut weights) {
            weights.iter_mut().zip(x).for_each(|(weight, x)| *weight = x * x);
        }
        *scale = uneven_scale(x, &weights);
    }
}

fn codes(x: &[f32], scale: f32) -> [u8; 32] {
    let inverse = inverse(scale);
    std::array::from_fn(|i| nearest_code(inverse * x[i]))
}

fn iq4_nl(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let mut scale = [0.0];
    uneven_scales(x, weighing, &mut scale);
    put_f16(out, 0, scale[0]);
    put_nibbles(&mut out[2..], &codes(x, scale[0]));
}

fn iq4_xs(x: &[f32], weighing: Weighing<'_>, out: &mut [u8]) {
    let mut scales = [0.0; 8];
    uneven_scales(x, weighing, &mut scales);
    let d = -largest(&scales) / 32.0;
    out[..8].fill(0);
    put_f16(out, 0, d);
    let mut high = 0_u16;
    for (b, x) in x.chunks_exact(32).enumerate() {
        let level = nearest(inverse(d) * scales[b]).clamp(-32, 31);
        put_nibbles(&mut out[8 + 16 * b..], &codes(x, d * level as f32));
        let level = (level + 32) as u8;
        out[4 + b / 2] |= (level & 15) << (4 * (b % 2));
        high |= u16::from(level >> 4) << (2 * b);
    }
    out[2..4].copy_from_slice(&high.to_le_bytes());
}
