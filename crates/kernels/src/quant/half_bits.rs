//! Half precision by its bits, without asking at every number which instructions the machine has.

use half::f16;

/// The half-precision number with these bits, exactly.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // The fraction and exponent moved into place are the value times 2^-112, subnormals included.
    let scaled = f32::from_bits(rest << 13) * f32::from_bits((112 + 127) << 23);
    let special = if rest >= 0x7c00 { 0x7f80_0000 | (rest << 13) } else { 0 };
    f32::from_bits(scaled.to_bits() | special | sign)
}

/// The half-precision number in these two bytes.
#[inline(always)]
pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Writes the nearest half-precision number and returns what was written.
pub(super) fn put_f16(bytes: &mut [u8], at: usize, x: f32) -> f32 {
    let half = f16::from_f32(x);
    bytes[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_as_the_library_widens_it() {
        for bits in 0..=u16::MAX {
            let (own, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(own.to_bits() == theirs.to_bits() || own.is_nan() && theirs.is_nan(), "{bits:#06x}");
        }
    }
}
