//! Units of 32 bits along the inner axis of a product: one f32, or two neighbouring bf16, which are added in one go where
//! the CPU has an instruction for it.

use crate::Isa;
use crate::simd::{Kernel, Simd, dispatch_on, dispatch_pairs};

/// How units are multiplied.
pub(crate) trait Unit: 'static {
    /// Elements of k in a unit.
    const SIZE: usize;
    /// Units of `k` elements; what the last one lacks is zero.
    fn count(k: usize) -> usize {
        k.div_ceil(Self::SIZE)
    }
    /// Runs a kernel that multiplies them.
    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output;
    /// `sum` and the products of the elements of two units.
    ///
    /// # Safety
    /// The kernel was started by [`Unit::dispatch`].
    unsafe fn add_product<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V;
}

/// One f32.
pub(crate) struct One;

impl Unit for One {
    const SIZE: usize = 1;

    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        dispatch_on(isa, kernel)
    }
    #[inline(always)]
    unsafe fn add_product<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.fma(a, b, sum)
    }
}

/// Two bf16.
pub(crate) struct Two;

impl Unit for Two {
    const SIZE: usize = 2;

    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        dispatch_pairs(isa, kernel)
    }
    #[inline(always)]
    unsafe fn add_product<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: passed on from the caller.
        unsafe { s.dot_bf16(a, b, sum) }
    }
}
