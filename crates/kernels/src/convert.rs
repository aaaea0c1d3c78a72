//! f32 to bf16 and back.

use crate::isa::{Isa, isa};
use crate::parallel::{CHUNK, for_chunks};
use crate::simd::{Kernel, Simd, dispatch_on};
use half::bf16;

struct Narrow<'a>(&'a mut [bf16], &'a [f32]);

impl Kernel for Narrow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut out = self.0.chunks_exact_mut(S::LANES);
        let mut x = self.1.chunks_exact(S::LANES);
        for (out, x) in (&mut out).zip(&mut x) {
            s.store_bf16(out, s.load(x));
        }
        s.store_bf16_partial(out.into_remainder(), s.load_partial(x.remainder()));
    }
}

struct Widen<'a>(&'a mut [f32], &'a [bf16]);

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut out = self.0.chunks_exact_mut(S::LANES);
        let mut x = self.1.chunks_exact(S::LANES);
        for (out, x) in (&mut out).zip(&mut x) {
            s.store(out, s.load_bf16(x));
        }
        s.store_partial(out.into_remainder(), s.load_bf16_partial(x.remainder()));
    }
}

/// Rounds to the nearest bf16, ties to even.
pub fn f32_to_bf16(out: &mut [bf16], x: &[f32]) {
    f32_to_bf16_on(isa(), out, x);
}

/// Widens, exactly.
pub fn bf16_to_f32(out: &mut [f32], x: &[bf16]) {
    bf16_to_f32_on(isa(), out, x);
}

fn f32_to_bf16_on(isa: Isa, out: &mut [bf16], x: &[f32]) {
    assert_eq!(out.len(), x.len(), "f32_to_bf16: lengths differ");
    for_chunks(out, CHUNK, |at, out| dispatch_on(isa, Narrow(out, &x[at..at + out.len()])));
}

fn bf16_to_f32_on(isa: Isa, out: &mut [f32], x: &[bf16]) {
    assert_eq!(out.len(), x.len(), "bf16_to_f32: lengths differ");
    for_chunks(out, CHUNK, |at, out| dispatch_on(isa, Widen(out, &x[at..at + out.len()])));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::testable;
    use crate::rng::Rng;

    #[test]
    fn conversion_rounds_to_nearest_even_on_every_size() {
        for isa in testable() {
            for n in [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, CHUNK + 5] {
                let mut x = vec![0.0; n];
                Rng::new(1, "convert", n as u64).fill_normal(&mut x, 0.0, 10.0);
                let mut narrow = vec![bf16::ZERO; n];
                f32_to_bf16_on(isa, &mut narrow, &x);
                assert!(narrow.iter().zip(&x).all(|(a, &b)| *a == bf16::from_f32(b)));
                let mut wide = vec![0.0; n];
                bf16_to_f32_on(isa, &mut wide, &narrow);
                assert!(wide.iter().zip(&narrow).all(|(a, b)| *a == b.to_f32()));
            }
        }
    }
}
