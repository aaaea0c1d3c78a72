//! From blocks to f32.

use super::decode_iq;
use super::half_bits::f16_to_f32;
use super::types::GgmlType;
use super::unpack::*;
use crate::isa::isa;
use crate::parallel::{CHUNK, for_chunks};
use crate::simd::{Kernel, Simd, dispatch_on};
use half::bf16;

/// Decodes one block.
type Decode = fn(&[u8], &mut [f32]);

fn decode32<B: Block32>(block: &[u8], out: &mut [f32]) {
    let (mut q, mut d, mut min) = ([0_i8; 256], [0.0_f32; 8], [0.0_f32; 8]);
    B::unpack(block, &mut q[..out.len()], &mut d, &mut min);
    for ((out, q), (d, min)) in out.chunks_exact_mut(32).zip(q.chunks_exact(32)).zip(d.iter().zip(&min)) {
        for (out, &q) in out.iter_mut().zip(q) {
            *out = if B::HAS_MIN { d * f32::from(q) - min } else { d * f32::from(q) };
        }
    }
}

fn decode256<B: Block256>(block: &[u8], out: &mut [f32]) {
    let (mut q, mut scales, mut mins) = ([0_u8; 256], [0_i16; 16], [0_i16; 16]);
    let (d, dmin) = B::unpack(block, &mut q, &mut scales, &mut mins);
    for ((out, q), (&scale, &min)) in out.chunks_exact_mut(16).zip(q.chunks_exact(16)).zip(scales.iter().zip(&mins)) {
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (out, &q) in out.iter_mut().zip(q) {
            let q = f32::from(i16::from(q) - B::OFFSET);
            *out = if B::OFFSET == 0 { scale * q - min } else { scale * q };
        }
    }
}

/// Sixteenths of a block of 64 have scales of their own, unsigned floats of 4 exponent and 3 fraction bits.
fn decode_nvfp4(block: &[u8], out: &mut [f32]) {
    for ((out, &scale), codes) in out.chunks_exact_mut(16).zip(block).zip(block[4..].chunks_exact(8)) {
        let (exponent, fraction) = (scale >> 3 & 15, f32::from(scale & 7));
        // Halved, since the values are doubled.
        let scale = match (scale, exponent) {
            (0 | 0x7f, _) => 0.0,
            (_, 0) => fraction * 2.0_f32.powi(-10),
            _ => (1.0 + fraction / 8.0) * 2.0_f32.powi(i32::from(exponent) - 8),
        };
        let (low, high) = out.split_at_mut(8);
        for ((low, high), &code) in low.iter_mut().zip(high).zip(codes) {
            *low = scale * f32::from(E2M1_VALUES[usize::from(code & 15)]);
            *high = scale * f32::from(E2M1_VALUES[usize::from(code >> 4)]);
        }
    }
}

fn decoder(ty: GgmlType) -> Option<Decode> {
    Some(match ty {
        GgmlType::F32 => |bytes, out| out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        GgmlType::F16 => |bytes, out| out[0] = f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])),
        GgmlType::Bf16 => |bytes, out| out[0] = f32::from_le_bytes([0, 0, bytes[0], bytes[1]]),
        GgmlType::Q4_0 => decode32::<Q4_0>,
        GgmlType::Q4_1 => decode32::<Q4_1>,
        GgmlType::Q5_0 => decode32::<Q5_0>,
        GgmlType::Q5_1 => decode32::<Q5_1>,
        GgmlType::Q8_0 => decode32::<Q8_0>,
        GgmlType::Iq4Nl => decode32::<Iq4Nl>,
        GgmlType::Iq4Xs => decode32::<Iq4Xs>,
        GgmlType::Mxfp4 => decode32::<Mxfp4>,
        GgmlType::Tq1_0 => decode32::<Tq1_0>,
        GgmlType::Tq2_0 => decode32::<Tq2_0>,
        GgmlType::Q1_0 => decode32::<Q1_0>,
        GgmlType::Q2_0 => decode32::<Q2_0>,
        GgmlType::Q2K => decode256::<Q2K>,
        GgmlType::Q3K => decode256::<Q3K>,
        GgmlType::Q4K => decode256::<Q4K>,
        GgmlType::Q5K => decode256::<Q5K>,
        GgmlType::Q6K => decode256::<Q6K>,
        GgmlType::Nvfp4 => decode_nvfp4,
        GgmlType::Iq1S => decode_iq::iq1_s,
        GgmlType::Iq1M => decode_iq::iq1_m,
        GgmlType::Iq2Xxs => decode_iq::iq2_xxs,
        GgmlType::Iq2Xs => decode_iq::iq2_xs,
        GgmlType::Iq2S => decode_iq::iq2_s,
        GgmlType::Iq3Xxs => decode_iq::iq3_xxs,
        GgmlType::Iq3S => decode_iq::iq3_s,
        _ => return None,
    })
}

/// Whether [`dequantise`] knows the type.
pub fn can_dequantise(ty: GgmlType) -> bool {
    decoder(ty).is_some()
}

/// Decodes whole blocks of `ty`, on the caller's thread. Panics where [`can_dequantise`] says no and where `bytes` are
/// not those of `out.len()` numbers.
pub fn dequantise(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    let decode = decoder(ty).unwrap_or_else(|| panic!("dequantise: no decoder for {}", ty.name()));
    assert_eq!(ty.bytes(out.len()), Some(bytes.len()), "dequantise: bytes of {} {} numbers", out.len(), ty.name());
    let halves = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    match ty {
        // Loops that become vectors, not a call for each number.
        GgmlType::F16 => return out.iter_mut().zip(halves).for_each(|(out, half)| *out = f16_to_f32(half)),
        GgmlType::Bf16 => {
            return out.iter_mut().zip(halves).for_each(|(out, half)| *out = f32::from_bits(u32::from(half) << 16));
        }
        _ => {}
    }
    for (block, out) in bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len())) {
        decode(block, out);
    }
}

/// Numbers in half precision, the bytes of each, as the nearest bf16, ties to even. On all threads. Panics where there are
/// not as many.
pub fn halves_to_bf16(out: &mut [bf16], bytes: &[u8]) {
    assert_eq!(2 * out.len(), bytes.len(), "halves_to_bf16: {} numbers", out.len());
    let (isa, halves) = (isa(), bytes.as_chunks::<2>().0);
    for_chunks(out, CHUNK, |at, out| dispatch_on(isa, Round { halves: &halves[at..at + out.len()], out }));
}

/// Halves that are widened before they are rounded.
const WIDE: usize = 64;

struct Round<'a> {
    out: &'a mut [bf16],
    halves: &'a [[u8; 2]],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (out, halves) in self.out.chunks_mut(WIDE).zip(self.halves.chunks(WIDE)) {
            let mut wide = [0.0; WIDE];
            // A loop of its own, which the compiler turns into vectors.
            wide.iter_mut().zip(halves).for_each(|(wide, &half)| *wide = f16_to_f32(u16::from_le_bytes(half)));
            let mut whole = out.chunks_exact_mut(S::LANES);
            let mut wide = wide.chunks_exact(S::LANES);
            for (out, wide) in (&mut whole).zip(&mut wide) {
                s.store_bf16(out, s.load(wide));
            }
            if let Some(wide) = wide.next() {
                s.store_bf16_partial(whole.into_remainder(), s.load(wide));
            }
        }
    }
}

/// The same, on all threads.
pub fn dequantise_rows(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(ty.bytes(out.len()), Some(bytes.len()), "dequantise: bytes of {} {} numbers", out.len(), ty.name());
    let (len, size) = (ty.block_len(), ty.block_bytes());
    for_chunks(out, CHUNK, |at, out| dequantise(ty, &bytes[at / len * size..][..out.len() / len * size], out));
}
