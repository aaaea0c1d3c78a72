//! Decoding of the types whose codes stand for groups of eight or four numbers (IQ1, IQ2, IQ3). They are read, not
//! written.

use super::half_bits::{f16_at, f16_to_f32};
use super::iq_grids::{IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};

/// Sizes of numbers in IQ2 types.
const TWO: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Sizes of numbers in IQ3_XXS.
const THREE: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// What the numbers of IQ1 types are off by.
const DELTA: f32 = 0.125;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Seven signs in a code; the eighth makes their number even.
fn eight_signs(code: u32) -> u8 {
    let code = (code & 0x7f) as u8;
    code | (code.count_ones() as u8 & 1) << 7
}

/// Number i of a group of eight is `scale` times its size, negative where bit i of `signs` is set.
fn put_eight(out: &mut [f32], group: u16, scale: f32, signs: u8) {
    for (i, out) in out[..8].iter_mut().enumerate() {
        let size = scale * TWO[usize::from(group >> (2 * i) & 3)];
        *out = if signs >> i & 1 == 1 { -size } else { size };
    }
}

/// The same for four numbers, whose signs are the lower ones.
fn put_four(out: &mut [f32], group: u16, level: impl Fn(u16) -> f32, scale: f32, signs: u8) {
    for (i, out) in out[..4].iter_mut().enumerate() {
        let size = scale * level(group >> (4 * i) & 15);
        *out = if signs >> i & 1 == 1 { -size } else { size };
    }
}

/// Eight numbers -1, 0 or 1, off by `delta`.
fn put_ternary(out: &mut [f32], group: u16, scale: f32, delta: f32) {
    for (i, out) in out[..8].iter_mut().enumerate() {
        *out = scale * (f32::from(group >> (2 * i) & 3) - 1.0 + delta);
    }
}

pub(super) fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (b, out) in out.chunks_exact_mut(32).enumerate() {
        let (codes, signs) = (&block[2 + 8 * b..], u32_at(block, 6 + 8 * b));
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
        for (g, out) in out.chunks_exact_mut(8).enumerate() {
            put_eight(out, IQ2_XXS[usize::from(codes[g])], scale, eight_signs(signs >> (7 * g)));
        }
    }
}

pub(super) fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let code = u16_at(block, 2 + 2 * g);
        let scale = d * (0.5 + f32::from(block[66 + g / 4] >> (g / 2 % 2 * 4) & 15)) * 0.25;
        put_eight(out, IQ2_XS[usize::from(code & 511)], scale, eight_signs(u32::from(code >> 9)));
    }
}

pub(super) fn iq2_s(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let high = usize::from(block[66 + g / 4] >> (g % 4 * 2) & 3);
        let scale = d * (0.5 + f32::from(block[74 + g / 4] >> (g / 2 % 2 * 4) & 15)) * 0.25;
        put_eight(out, IQ2_S[usize::from(block[2 + g]) | high << 8], scale, block[34 + g]);
    }
}

pub(super) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (b, out) in out.chunks_exact_mut(32).enumerate() {
        let signs = u32_at(block, 66 + 4 * b);
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
        for (g, out) in out.chunks_exact_mut(4).enumerate() {
            let signs = eight_signs(signs >> (7 * (g / 2))) >> (4 * (g % 2));
            let group = IQ3_XXS[usize::from(block[2 + 8 * b + g])];
            put_four(out, group, |level| THREE[usize::from(level & 7)], scale, signs);
        }
    }
}

pub(super) fn iq3_s(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(4).enumerate() {
        let high = usize::from(block[66 + g / 8] >> (g % 8) & 1);
        let scale = d * f32::from(1 + 2 * (block[106 + g / 16] >> (g / 8 % 2 * 4) & 15));
        let signs = block[74 + g / 2] >> (4 * (g % 2));
        let group = IQ3_S[usize::from(block[2 + g]) | high << 8];
        put_four(out, group, |level| f32::from(1 + 2 * level), scale, signs);
    }
}

pub(super) fn iq1_s(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let head = u16_at(block, 34 + 2 * (g / 4));
        let scale = d * f32::from(2 * (head >> 12 & 7) + 1);
        let delta = if head & 0x8000 == 0 { DELTA } else { -DELTA };
        let code = usize::from(block[2 + g]) | usize::from(head >> (3 * (g % 4)) & 7) << 8;
        put_ternary(out, IQ1_S[code], scale, delta);
    }
}

pub(super) fn iq1_m(block: &[u8], out: &mut [f32]) {
    // The upper four bits of four words are the scale of all.
    let scales: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
    let d = f16_to_f32((0..4).fold(0, |bits, i| bits | (scales[i] >> 12) << (4 * i)));
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let head = block[32 + g / 2] >> (4 * (g % 2));
        let scale = d * f32::from(2 * (scales[g / 8] >> (3 * (g / 2 % 4)) & 7) + 1);
        let delta = if head & 8 == 0 { DELTA } else { -DELTA };
        put_ternary(out, IQ1_S[usize::from(block[g]) | usize::from(head & 7) << 8], scale, delta);
    }
}
