//! Arithmetic on slices: GEMM, attention, norms, activations, cross-entropy, optimizer steps, counter-based random
//! numbers.
#![allow(unsafe_code, reason = "vector intrinsics and raw loads and stores live here and nowhere above")]

pub mod isa;
pub mod math;
pub mod naive;
pub mod parallel;
pub mod rng;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_avx2;
#[cfg(target_arch = "x86_64")]
mod simd_avx512;
#[cfg(test)]
mod simd_tests;

pub use isa::{Isa, isa};
