//! Products of quantised rows: integers within a block, floating-point numbers between blocks, in one order.
//!
//! A row of weights is unpacked to bytes and scales, a row of activations is rounded to bytes. Eight sums run side by
//! side: sum `l` takes the four numbers `4 l..4 l + 4` of each 32, as the vector instructions do. Integer sums are exact
//! in any order; what is rounded is rounded here as there, so that every instruction set gives the same bits.

use crate::isa::Isa;

/// Numbers that share a scale of activations for [`Row32`].
pub(super) const SMALL: usize = 32;
/// Numbers that share a scale of activations for [`Row256`].
pub(super) const LARGE: usize = 256;
/// Sums that run side by side.
pub(super) const SUMS: usize = 8;

/// A row of weights: number i is `d[i / 32] * q[i] - min[i / 32]`.
///
/// Lists of one value per 32 numbers are filled up with zeros to a multiple of eight, here and in [`X32`].
#[derive(Clone, Copy)]
pub(super) struct Row32<'a> {
    pub(super) q: &'a [i8],
    pub(super) d: &'a [f32],
    pub(super) min: Option<&'a [f32]>,
}

/// A row of activations: number i is `d[i / 32] * q[i]`, and `sum` adds up 32 of them.
#[derive(Clone, Copy)]
pub(super) struct X32<'a> {
    pub(super) q: &'a [i8],
    pub(super) d: &'a [f32],
    pub(super) sum: &'a [f32],
}

/// A row of weights: number i is `d[i / 256] * scale * q[i] - dmin[i / 256] * min` with a scale and a minimum per 16.
///
/// Of 16 scales those with even places come first, as [`scale_place`] says.
#[derive(Clone, Copy)]
pub(super) struct Row256<'a> {
    pub(super) q: &'a [u8],
    pub(super) d: &'a [f32],
    pub(super) dmin: &'a [f32],
    pub(super) scales: &'a [i16],
    pub(super) mins: &'a [i16],
}

/// A row of activations: number i is `d[i / 256] * q[i]`, and `sums` adds up the integers by sixteens.
#[derive(Clone, Copy)]
pub(super) struct X256<'a> {
    pub(super) q: &'a [i8],
    pub(super) d: &'a [f32],
    pub(super) sums: &'a [i16],
}

/// Where the scale of the j-th sixteen lies.
#[inline(always)]
pub(super) fn scale_place(j: usize) -> usize {
    j % 2 * 8 + j / 2
}

/// An instruction set's integer arithmetic.
pub(super) trait Ints: Copy {
    /// `table[index]` of each; indices are below 16.
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: &[u8; 16]) -> [i8; 16] {
        index.map(|index| table[usize::from(index & 15)])
    }
    /// Products of one row of weights with some rows of activations, all of one length, a multiple of 32.
    fn dot32<const M: usize>(self, w: &Row32<'_>, x: &[X32<'_>; M]) -> [f32; M];
    /// The same for a multiple of 256.
    fn dot256<const M: usize>(self, w: &Row256<'_>, x: &[X256<'_>; M]) -> [f32; M];
}

/// Work that runs with an instruction set's integers.
pub(super) trait IntKernel {
    /// The work; implementations are `#[inline(always)]`.
    fn run<I: Ints>(self, ints: I);
}

/// Runs work on an instruction set, which the machine must have.
pub(super) fn dispatch_ints(isa: Isa, kernel: impl IntKernel) {
    assert!(isa.is_supported(), "this machine has no {}", isa.name());
    match isa {
        Isa::Scalar | Isa::Neon => kernel.run(Plain),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: support was checked above.
        Isa::Avx2 => unsafe { super::dot_avx2::enter(kernel) },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if super::dot_avx2::has_vnni() => {
            // SAFETY: support was checked above and here.
            unsafe { super::dot_avx2::enter_vnni(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a machine that has AVX-512 has AVX2.
        Isa::Avx512 => unsafe { super::dot_avx2::enter(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 => unreachable!("support was checked above"),
    }
}

/// Plain Rust: what the vector versions compute, and the fallback.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Ints for Plain {
    #[inline(always)]
    fn dot32<const M: usize>(self, w: &Row32<'_>, x: &[X32<'_>; M]) -> [f32; M] {
        x.map(|x| {
            let mut sums = [[0.0_f32; SUMS]; 2];
            let blocks = w.q.chunks_exact(SMALL).zip(x.q.chunks_exact(SMALL));
            for (b, (wq, xq)) in blocks.enumerate() {
                let scale = w.d[b] * x.d[b];
                for (l, sum) in sums[b % 2].iter_mut().enumerate() {
                    let four = 4 * l..4 * l + 4;
                    let dot: i32 =
                        wq[four.clone()].iter().zip(&xq[four]).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
                    *sum = (dot as f32).mul_add(scale, *sum);
                }
            }
            let mut sum: [f32; SUMS] = std::array::from_fn(|l| sums[0][l] + sums[1][l]);
            for (min, xsum) in w.min.iter().flat_map(|min| min.chunks_exact(SUMS).zip(x.sum.chunks_exact(SUMS))) {
                for (sum, (min, xsum)) in sum.iter_mut().zip(min.iter().zip(xsum)) {
                    *sum = (-min).mul_add(*xsum, *sum);
                }
            }
            total(sum)
        })
    }

    #[inline(always)]
    fn dot256<const M: usize>(self, w: &Row256<'_>, x: &[X256<'_>; M]) -> [f32; M] {
        x.map(|x| {
            let mut sum = [0.0_f32; SUMS];
            for b in 0..w.d.len() {
                let (wq, xq) = (&w.q[LARGE * b..][..LARGE], &x.q[LARGE * b..][..LARGE]);
                let (scales, mins) = (&w.scales[16 * b..][..16], &w.mins[16 * b..][..16]);
                let xsums = &x.sums[16 * b..][..16];
                let (d, dmin) = (w.d[b] * x.d[b], w.dmin[b] * x.d[b]);
                for (l, sum) in sum.iter_mut().enumerate() {
                    let dot: i32 = (0..SUMS)
                        .map(|c| {
                            let four = 32 * c + 4 * l..32 * c + 4 * l + 4;
                            let dot: i32 = wq[four.clone()]
                                .iter()
                                .zip(&xq[four])
                                .map(|(&w, &x)| i32::from(w) * i32::from(x))
                                .sum();
                            dot * i32::from(scales[scale_place(2 * c + l / 4)])
                        })
                        .sum();
                    let below: i32 = (2 * l..2 * l + 2).map(|j| i32::from(mins[j]) * i32::from(xsums[j])).sum();
                    *sum = (dot as f32).mul_add(d, *sum);
                    *sum = (-(below as f32)).mul_add(dmin, *sum);
                }
            }
            total(sum)
        })
    }
}

/// The sums, added up in the vector versions' order.
#[inline(always)]
pub(super) fn total(v: [f32; SUMS]) -> f32 {
    ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
}
