//! Where the bits of a block lie: the one definition that decoding and products share.

use super::half_bits::f16_at;
use super::types::GgmlType;

/// The values of 4-bit codes in IQ4_NL and IQ4_XS.
pub(super) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of 4-bit floats (1 sign, 2 exponent, 1 fraction bit).
pub(super) const E2M1_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A type whose every 32 numbers share a scale: `x = d * q - min`.
pub(super) trait Block32 {
    /// The type.
    const TYPE: GgmlType;
    /// Whether any minimum is not zero.
    const HAS_MIN: bool = false;
    /// What makes all numbers positive and below 32, where there is such a number: products may then multiply unsigned
    /// bytes.
    const OFFSET: Option<i8>;
    /// Writes the numbers of one block, and a scale and a minimum per 32 of them.
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], min: &mut [f32]);
}

/// A type of 256 numbers, each 16 of which share an integer scale and minimum:
/// `x = (d * scale) * (q - OFFSET) - dmin * min`.
pub(super) trait Block256 {
    /// The type.
    const TYPE: GgmlType;
    /// What stands for zero.
    const OFFSET: i16 = 0;
    /// Neighbours that share a scale: 16, or 32 in pairs of equal ones.
    const SUB: usize = 16;
    /// Writes the numbers, and 16 scales and minima; returns `d` and `dmin`.
    fn unpack(block: &[u8], q: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32);
}

/// Sixteen bytes: low nibbles first, then high ones.
#[inline(always)]
fn nibbles(bytes: &[u8], q: &mut [i8], map: impl Fn(u8) -> i8) {
    let (low, high) = q[..32].split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&bytes[..16]) {
        (*low, *high) = (map(byte & 15), map(byte >> 4));
    }
}

#[inline(always)]
fn look_up(table: &[i8; 16], bytes: &[u8], q: &mut [i8]) {
    nibbles(bytes, q, |code| table[usize::from(code)]);
}

/// Eight bits, each in a byte of its own.
const SPREAD: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            table[byte][bit] = (byte >> bit & 1) as u8;
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// Adds 16 times the bits of four bytes to 32 numbers.
#[inline(always)]
fn fifth_bits(bits: &[u8], q: &mut [i8]) {
    for (q, &bits) in q.chunks_exact_mut(8).zip(&bits[..4]) {
        for (q, bit) in q.iter_mut().zip(SPREAD[bits as usize]) {
            *q += (bit << 4) as i8;
        }
    }
}

pub(super) struct Q4_0;
impl Block32 for Q4_0 {
    const TYPE: GgmlType = GgmlType::Q4_0;
    const OFFSET: Option<i8> = Some(8);
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[0] = f16_at(block, 0);
        nibbles(&block[2..], q, |x| x as i8 - 8);
    }
}

pub(super) struct Q4_1;
impl Block32 for Q4_1 {
    const TYPE: GgmlType = GgmlType::Q4_1;
    const OFFSET: Option<i8> = Some(0);
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], min: &mut [f32]) {
        (d[0], min[0]) = (f16_at(block, 0), -f16_at(block, 2));
        nibbles(&block[4..], q, |x| x as i8);
    }
}

pub(super) struct Q5_0;
impl Block32 for Q5_0 {
    const TYPE: GgmlType = GgmlType::Q5_0;
    const OFFSET: Option<i8> = Some(16);
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[0] = f16_at(block, 0);
        nibbles(&block[6..], q, |x| x as i8 - 16);
        fifth_bits(&block[2..], q);
    }
}

pub(super) struct Q5_1;
impl Block32 for Q5_1 {
    const TYPE: GgmlType = GgmlType::Q5_1;
    const OFFSET: Option<i8> = Some(0);
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], min: &mut [f32]) {
        (d[0], min[0]) = (f16_at(block, 0), -f16_at(block, 2));
        nibbles(&block[8..], q, |x| x as i8);
        fifth_bits(&block[4..], q);
    }
}

pub(super) struct Q8_0;
impl Block32 for Q8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;
    const OFFSET: Option<i8> = None;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[0] = f16_at(block, 0);
        for (q, &byte) in q[..32].iter_mut().zip(&block[2..34]) {
            *q = byte as i8;
        }
    }
}

pub(super) struct Iq4Nl;
impl Block32 for Iq4Nl {
    const TYPE: GgmlType = GgmlType::Iq4Nl;
    const OFFSET: Option<i8> = None;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[0] = f16_at(block, 0);
        look_up(&IQ4_VALUES, &block[2..], q);
    }
}

pub(super) struct Iq4Xs;
impl Block32 for Iq4Xs {
    const TYPE: GgmlType = GgmlType::Iq4Xs;
    const OFFSET: Option<i8> = None;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        let (all, high) = (f16_at(block, 0), u16::from_le_bytes([block[2], block[3]]));
        for (b, (q, d)) in q.chunks_exact_mut(32).zip(d).enumerate() {
            let low = block[4 + b / 2] >> (4 * (b % 2)) & 15;
            let scale = i16::from(low) | ((high >> (2 * b) & 3) << 4) as i16;
            *d = all * f32::from(scale - 32);
            look_up(&IQ4_VALUES, &block[8 + 16 * b..], q);
        }
    }
}

pub(super) struct Mxfp4;
impl Block32 for Mxfp4 {
    const TYPE: GgmlType = GgmlType::Mxfp4;
    const OFFSET: Option<i8> = Some(12);
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[0] = half_of_power(block[0]);
        look_up(&E2M1_VALUES, &block[1..], q);
    }
}

/// Half of `2^(exponent - 127)`, since the values it multiplies are doubled.
pub(super) fn half_of_power(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        more => f32::from_bits(u32::from(more - 1) << 23),
    }
}

/// Bytes of a block of TQ1_0, the number that they begin with, and how many numbers are in each.
pub(super) const TQ1_PARTS: [(std::ops::Range<usize>, usize, usize); 3] =
    [(0..32, 0, 5), (32..48, 160, 5), (48..52, 240, 4)];

pub(super) struct Tq1_0;
impl Block32 for Tq1_0 {
    const TYPE: GgmlType = GgmlType::Tq1_0;
    const OFFSET: Option<i8> = Some(1);
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[..8].fill(f16_at(block, 52));
        // Digits of base three, as a fraction of 256.
        for (bytes, start, digits) in TQ1_PARTS {
            let width = bytes.len();
            for (digit, power) in [1_u8, 3, 9, 27, 81][..digits].iter().enumerate() {
                for (i, &byte) in block[bytes.clone()].iter().enumerate() {
                    let rest = byte.wrapping_mul(*power);
                    q[start + digit * width + i] = ((u16::from(rest) * 3) >> 8) as i8 - 1;
                }
            }
        }
    }
}

pub(super) struct Tq2_0;
impl Block32 for Tq2_0 {
    const TYPE: GgmlType = GgmlType::Tq2_0;
    const OFFSET: Option<i8> = Some(1);
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[..8].fill(f16_at(block, 64));
        for (b, q) in q.chunks_exact_mut(32).enumerate() {
            for (q, &byte) in q.iter_mut().zip(&block[32 * (b / 4)..]) {
                *q = (byte >> (2 * (b % 4)) & 3) as i8 - 1;
            }
        }
    }
}

pub(super) struct Q1_0;
impl Block32 for Q1_0 {
    const TYPE: GgmlType = GgmlType::Q1_0;
    const OFFSET: Option<i8> = Some(1);
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[..4].fill(f16_at(block, 0));
        for (q, &bits) in q.chunks_exact_mut(8).zip(&block[2..]) {
            for (q, bit) in q.iter_mut().zip(SPREAD[usize::from(bits)]) {
                *q = 2 * bit as i8 - 1;
            }
        }
    }
}

pub(super) struct Q2_0;
impl Block32 for Q2_0 {
    const TYPE: GgmlType = GgmlType::Q2_0;
    const OFFSET: Option<i8> = Some(1);
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], d: &mut [f32], _: &mut [f32]) {
        d[..2].fill(f16_at(block, 0));
        for (q, &byte) in q.chunks_exact_mut(4).zip(&block[2..]) {
            q.iter_mut().enumerate().for_each(|(i, q)| *q = (byte >> (2 * i) & 3) as i8 - 1);
        }
    }
}

/// Two bits per number: 32 bytes hold four times 32 numbers.
#[inline(always)]
fn two_bits(bytes: &[u8], q: &mut [u8; 256]) {
    for (b, q) in q.chunks_exact_mut(32).enumerate() {
        for (q, &byte) in q.iter_mut().zip(&bytes[32 * (b / 4)..]) {
            *q = byte >> (2 * (b % 4)) & 3;
        }
    }
}

pub(super) struct Q2K;
impl Block256 for Q2K {
    const TYPE: GgmlType = GgmlType::Q2K;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        for ((scale, min), &byte) in scales.iter_mut().zip(mins).zip(&block[..16]) {
            (*scale, *min) = (i16::from(byte & 15), i16::from(byte >> 4));
        }
        two_bits(&block[16..], q);
        (f16_at(block, 80), f16_at(block, 82))
    }
}

pub(super) struct Q3K;
impl Block256 for Q3K {
    const TYPE: GgmlType = GgmlType::Q3K;
    const OFFSET: i16 = 4;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        two_bits(&block[32..], q);
        for (b, q) in q.chunks_exact_mut(32).enumerate() {
            for (q, &bits) in q.iter_mut().zip(&block[..32]) {
                *q |= (bits >> b & 1) << 2;
            }
        }
        for (j, scale) in scales.iter_mut().enumerate() {
            let low = block[96 + j % 8] >> (4 * (j / 8)) & 15;
            let high = block[104 + j % 4] >> (2 * (j / 4)) & 3;
            *scale = i16::from(low | high << 4) - 32;
        }
        mins.fill(0);
        (f16_at(block, 108), 0.0)
    }
}

/// Eight pairs of six bits in twelve bytes, each pair for 32 numbers.
#[inline(always)]
fn scales_and_mins(bytes: &[u8], scales: &mut [i16; 16], mins: &mut [i16; 16]) {
    for j in 0..4 {
        let (scale, min, rest) = (bytes[j], bytes[j + 4], bytes[j + 8]);
        let pairs = [(j, scale & 63, min & 63), (j + 4, rest & 15 | scale >> 6 << 4, rest >> 4 | min >> 6 << 4)];
        for (at, scale, min) in pairs {
            scales[2 * at..2 * at + 2].fill(i16::from(scale));
            // The sums of both halves are multiplied by it.
            mins[2 * at..2 * at + 2].fill(i16::from(min));
        }
    }
}

/// 32 bytes hold 32 low nibbles, then 32 high ones.
#[inline(always)]
fn wide_nibbles(bytes: &[u8], q: &mut [u8; 256]) {
    for (q, bytes) in q.chunks_exact_mut(64).zip(bytes.chunks_exact(32)) {
        let (low, high) = q.split_at_mut(32);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

pub(super) struct Q4K;
impl Block256 for Q4K {
    const TYPE: GgmlType = GgmlType::Q4K;
    const SUB: usize = 32;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        scales_and_mins(&block[4..], scales, mins);
        wide_nibbles(&block[16..144], q);
        (f16_at(block, 0), f16_at(block, 2))
    }
}

pub(super) struct Q5K;
impl Block256 for Q5K {
    const TYPE: GgmlType = GgmlType::Q5K;
    const SUB: usize = 32;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        scales_and_mins(&block[4..], scales, mins);
        wide_nibbles(&block[48..176], q);
        for (b, q) in q.chunks_exact_mut(32).enumerate() {
            for (q, &bits) in q.iter_mut().zip(&block[16..48]) {
                *q |= (bits >> b & 1) << 4;
            }
        }
        (f16_at(block, 0), f16_at(block, 2))
    }
}

pub(super) struct Q6K;
impl Block256 for Q6K {
    const TYPE: GgmlType = GgmlType::Q6K;
    const OFFSET: i16 = 32;
    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        let halves = block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32));
        for (q, (low, high)) in q.chunks_exact_mut(128).zip(halves) {
            for (b, q) in q.chunks_exact_mut(32).enumerate() {
                for ((q, low), high) in q.iter_mut().zip(&low[32 * (b % 2)..]).zip(high) {
                    *q = low >> (4 * (b / 2)) & 15 | (high >> (2 * b) & 3) << 4;
                }
            }
        }
        for (scale, &byte) in scales.iter_mut().zip(&block[192..208]) {
            *scale = i16::from(byte as i8);
        }
        mins.fill(0);
        (f16_at(block, 208), 0.0)
    }
}
