//! Eight rows of bytes, turned so that a vector holds the same place of each.

use std::arch::x86_64::*;

/// Sixteen bytes of eight rows: vector q holds bytes `4 q..4 q + 4` of each.
///
/// # Safety
/// The bytes must be readable; AVX2 is needed.
#[inline(always)]
pub(super) unsafe fn sixteen(rows: &[*const u8; 8], at: usize) -> [__m256i; 4] {
    // SAFETY: passed on from the caller.
    unsafe {
        let (r0, r1) = (two_rows(rows[0].add(at), rows[4].add(at)), two_rows(rows[1].add(at), rows[5].add(at)));
        let (r2, r3) = (two_rows(rows[2].add(at), rows[6].add(at)), two_rows(rows[3].add(at), rows[7].add(at)));
        let (a, b) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
        let (c, d) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
        [
            _mm256_unpacklo_epi64(a, c),
            _mm256_unpackhi_epi64(a, c),
            _mm256_unpacklo_epi64(b, d),
            _mm256_unpackhi_epi64(b, d),
        ]
    }
}

/// Sixteen bytes of each of two rows.
#[inline(always)]
unsafe fn two_rows(low: *const u8, high: *const u8) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe {
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(_mm_loadu_si128(low.cast())), _mm_loadu_si128(high.cast()))
    }
}

/// 32 bytes of eight rows.
///
/// # Safety
/// As [`sixteen`].
#[inline(always)]
pub(super) unsafe fn thirty_two(rows: &[*const u8; 8], at: usize) -> [__m256i; 8] {
    // SAFETY: passed on from the caller.
    unsafe {
        let ([a, b, c, d], [e, f, g, h]) = (sixteen(rows, at), sixteen(rows, at + 16));
        [a, b, c, d, e, f, g, h]
    }
}

/// Four bytes of eight rows.
///
/// # Safety
/// As [`sixteen`].
#[inline(always)]
pub(super) unsafe fn four(rows: &[*const u8; 8], at: usize) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe {
        let word = |i: usize| rows[i].add(at).cast::<i32>().read_unaligned();
        _mm256_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7))
    }
}

/// A half-precision number of eight rows.
///
/// # Safety
/// As [`sixteen`], with F16C.
#[inline(always)]
pub(super) unsafe fn half(rows: &[*const u8; 8], at: usize) -> __m256 {
    // SAFETY: passed on from the caller.
    unsafe {
        let half = |i: usize| rows[i].add(at).cast::<i16>().read_unaligned();
        let halves = _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
        _mm256_cvtph_ps(halves)
    }
}

/// Both half-precision numbers of each lane, the lower ones first.
///
/// # Safety
/// AVX2 and F16C are needed.
#[inline(always)]
pub(super) unsafe fn two_halves(pairs: __m256i) -> [__m256; 2] {
    // SAFETY: passed on from the caller.
    unsafe {
        let (low, high) = (_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32::<16>(pairs));
        // Quarters: the lower halves of rows 0 to 3, their upper ones, then those of rows 4 to 7.
        let both = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packus_epi32(low, high));
        [_mm256_cvtph_ps(_mm256_castsi256_si128(both)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(both))]
    }
}

/// The lower four bits of each byte.
///
/// # Safety
/// AVX2 is needed.
#[inline(always)]
pub(super) unsafe fn low(v: __m256i) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { _mm256_and_si256(v, _mm256_set1_epi8(15)) }
}

/// The upper four bits of each byte.
///
/// # Safety
/// AVX2 is needed.
#[inline(always)]
pub(super) unsafe fn high(v: __m256i) -> __m256i {
    // SAFETY: passed on from the caller.
    unsafe { low(_mm256_srli_epi16::<4>(v)) }
}

/// The same sixteen bytes in both halves.
///
/// # Safety
/// AVX2 is needed.
#[inline(always)]
pub(super) unsafe fn twice(bytes: &'static [u8; 16]) -> __m256i {
    // SAFETY: sixteen bytes are read.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
}

/// Shuffles that spread byte i of each lane's four over the lane.
pub(super) static SPREAD: [[u8; 16]; 4] =
    [in_lanes([0, 0, 0, 0]), in_lanes([1, 1, 1, 1]), in_lanes([2, 2, 2, 2]), in_lanes([3, 3, 3, 3])];
/// Shuffles that put byte i of each lane into the upper halves of its two 16-bit numbers; the rest is zero.
pub(super) static SAME: [[u8; 16]; 4] =
    [in_lanes([Z, 0, Z, 0]), in_lanes([Z, 1, Z, 1]), in_lanes([Z, 2, Z, 2]), in_lanes([Z, 3, Z, 3])];
/// The same for bytes 2 i and 2 i + 1.
pub(super) static PAIR: [[u8; 16]; 2] = [in_lanes([Z, 0, Z, 1]), in_lanes([Z, 2, Z, 3])];
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
