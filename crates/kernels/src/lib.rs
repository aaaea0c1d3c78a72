//! Arithmetic on slices: what a Transformer computes, forward and backward, on the CPU.
//!
//! **What it is for.** Each function takes slices, writes slices, and is as fast as the machine allows: matrix products,
//! attention, norms, softmax, activations, rotary positions, cross-entropy, optimizer steps, random numbers. One binary
//! holds every instruction set and chooses at run time ([`mod@isa`]).
//!
//! **What it is not.** There is no tensor here, no shape inference, no gradient tape, no file; those are floors above.
//! Wrong lengths are bugs of the caller and panic with the operation's name.
//!
//! **Promises.** One result for any number of threads: work is cut at fixed places ([`parallel`]) and sums have one
//! order. A row of a product does not depend on its neighbours ([`gemm`]). Random numbers are a function of (seed,
//! purpose, step, index) ([`rng`]). Nothing large is allocated in the steady state.
//!
//! **Where to start.** [`simd`] for how a kernel is written once for all instruction sets, [`elementwise`] for the
//! simplest of them, [`naive`] for what each computes, in plain f64. A new kernel is a struct of its arguments that
//! implements [`simd::Kernel`], a public function that splits the work and dispatches, a definition in [`naive`], and a
//! test that compares the two on odd sizes for every instruction set.
//!
//! ```
//! use loam_kernels::elementwise::{Unary, unary};
//! use loam_kernels::{Mat, MatMut, Start, gemm_f32};
//!
//! // A linear layer with two inputs, three outputs and a ReLU, on one row. The weight is [outputs, inputs].
//! let (x, weight) = ([1.0, 2.0], [1.0, 0.0, 0.0, 1.0, -1.0, -1.0]);
//! let (mut y, mut activated) = ([0.0; 3], [0.0; 3]);
//! gemm_f32(MatMut::rows(&mut y, 1, 3), Mat::rows(&x, 1, 2), Mat::rows(&weight, 3, 2).t(), Start::Zero);
//! unary(Unary::Relu, &mut activated, &y);
//! assert_eq!(activated, [1.0, 2.0, 0.0]);
//! ```
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
pub mod quant;
mod reduce;
pub mod rng;
pub mod roofline;
pub mod rope;
mod scratch;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_avx2;
#[cfg(target_arch = "x86_64")]
mod simd_avx512;
#[cfg(target_arch = "aarch64")]
mod simd_neon;
#[cfg(test)]
mod simd_tests;
pub mod softmax;
mod team;
mod tiles;
mod unit;

pub use gemm::{Mat, MatMut, Operand, Start, gemm_bf16, gemm_f32};
pub use half::bf16;
pub use isa::{Isa, isa};
pub use team::with_team;
