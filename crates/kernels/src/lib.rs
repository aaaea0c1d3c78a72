//! Arithmetic on slices: GEMM, attention, norms, activations, cross-entropy, optimizer steps, counter-based random
//! numbers.
#![allow(unsafe_code, reason = "vector intrinsics and raw loads and stores live here and nowhere above")]

mod activation;
pub mod attention;
pub mod convert;
pub mod cross_entropy;
pub mod elementwise;
#[cfg(test)]
mod elementwise_tests;
pub mod embedding;
pub mod gemm;
#[cfg(test)]
mod gemm_tests;
mod gemv;
pub mod isa;
pub mod math;
pub mod naive;
pub mod norm;
pub mod optim;
pub mod parallel;
mod reduce;
pub mod rng;
pub mod rope;
mod scratch;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_avx2;
#[cfg(target_arch = "x86_64")]
mod simd_avx512;
#[cfg(test)]
mod simd_tests;
pub mod softmax;

pub use gemm::{Mat, MatMut, gemm_bf16, gemm_f32};
pub use isa::{Isa, isa};
