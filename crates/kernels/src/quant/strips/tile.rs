//! Unpacked weights of sixteen rows, whatever the vectors.

use super::lanes::{Lanes, Quad};
use crate::quant::activations::{LARGE, SMALL};
use crate::quant::product::STRIP;

/// 32 numbers of each row: `d * q - min`, with q below 32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Bytes32 {
    pub(super) q: [Quad; SMALL / 4],
    pub(super) d: [f32; STRIP],
    pub(super) min: [f32; STRIP],
}

/// 32 numbers of each row, signed: `d * q`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Signed32 {
    pub(super) q: [Quad; SMALL / 4],
    pub(super) d: [f32; STRIP],
}

/// 256 numbers of each row, q below 64, with a scale per 16 or 32, and minima, two neighbours of 16 bits to a lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::quant) struct Bytes256 {
    pub(super) q: [Quad; LARGE / 4],
    /// As [`Lanes::put_scale`] writes them.
    pub(super) scales: [Quad; 16],
    pub(super) mins: [Quad; 8],
    pub(super) d: [f32; STRIP],
    pub(super) dmin: [f32; STRIP],
}

/// The lower four bits of each byte.
///
/// # Safety
/// The machine must have the lanes; so for all functions here.
#[inline(always)]
pub(super) unsafe fn low<V: Lanes>(v: V::I) -> V::I {
    // SAFETY: passed on from the caller.
    unsafe { V::and(v, V::bytes(15)) }
}

/// The upper four bits of each byte.
///
/// # Safety
/// As [`low`].
#[inline(always)]
pub(super) unsafe fn high<V: Lanes>(v: V::I) -> V::I {
    // SAFETY: passed on from the caller.
    unsafe { low::<V>(V::right(v, 4)) }
}

/// Each byte shifted by as many bits, to the right or, where negative, to the left; of it the bits of `mask`.
///
/// # Safety
/// As [`low`].
#[inline(always)]
pub(super) unsafe fn bits<V: Lanes>(v: V::I, by: isize, mask: u8) -> V::I {
    let count = by.unsigned_abs();
    // SAFETY: passed on from the caller. What crosses over from a neighbour is masked away.
    unsafe { V::and(if by < 0 { V::left(v, count) } else { V::right(v, count) }, V::bytes(mask)) }
}

/// Shuffles that spread byte i of each lane's four over the lane.
pub(super) static SPREAD: [[u8; 16]; 4] =
    [in_lanes([0, 0, 0, 0]), in_lanes([1, 1, 1, 1]), in_lanes([2, 2, 2, 2]), in_lanes([3, 3, 3, 3])];
/// Shuffles that put byte i of each lane into the upper halves of its two 16-bit numbers; the rest is zero.
#[cfg(target_arch = "x86_64")]
pub(super) static SAME: [[u8; 16]; 4] =
    [in_lanes([Z, 0, Z, 0]), in_lanes([Z, 1, Z, 1]), in_lanes([Z, 2, Z, 2]), in_lanes([Z, 3, Z, 3])];
/// The same for bytes 2 i and 2 i + 1.
pub(super) static PAIR: [[u8; 16]; 2] = [in_lanes([Z, 0, Z, 1]), in_lanes([Z, 2, Z, 3])];
/// Shuffles that put byte i of each lane at its top; the rest is zero.
pub(super) static TOP: [[u8; 16]; 4] =
    [in_lanes([Z, Z, Z, 0]), in_lanes([Z, Z, Z, 1]), in_lanes([Z, Z, Z, 2]), in_lanes([Z, Z, Z, 3])];
/// Stands for zero in a shuffle.
const Z: u8 = 0x80;

/// The shuffle that does the same in every lane.
const fn in_lanes(lane: [u8; 4]) -> [u8; 16] {
    let mut shuffle = [0; 16];
    let mut i = 0;
    while i < 16 {
        shuffle[i] = if lane[i % 4] == Z { Z } else { lane[i % 4] + (i / 4 * 4) as u8 };
        i += 1;
    }
    shuffle
}
