//! Block-quantised numbers: the element types of GGUF files, from and to f32, and products with them in place.
//!
//! A row of a tensor is a whole number of blocks; a block is some small integers and the scales that they share. Two
//! shapes of block cover all types that we write, and `unpack` is the one place that knows where the bits lie: 32
//! numbers with a scale and a minimum in f32 (`unpack::Block32`), and 256 numbers whose sixteenths have integer scales
//! and minima (`unpack::Block256`). Decoding and the products both start from there. The remaining types can be read.
//! NF4 is no type of GGUF: its blocks know nothing of rows, and it stands beside the others (`nf4`).

mod activations;
mod backward;
mod decode;
mod decode_iq;
mod encode;
mod encode_k;
mod half_bits;
mod iq_grids;
mod nf4;
mod plain;
mod product;
mod search;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod strips;
#[cfg(test)]
mod tests;
mod types;
mod unpack;
mod widened;

pub use backward::matmul_quantised_backward;
pub use decode::{can_dequantise, dequantise, dequantise_rows, halves_to_bf16};
pub(crate) use half_bits::f16_to_f32;

pub use encode::{can_quantise, quantise, quantise_rows};
pub use nf4::{
    NF4_BLOCK, NF4_NESTED_BLOCK, NF4_VALUES, Nf4, Nf4Scales, matmul_nf4, matmul_nf4_backward, matmul_nf4_bf16,
};
pub use product::{Quantised, can_feed_forward, feed_forward, matmul_bf16, matmul_quantised, reads_halves_as_bf16};
pub use types::GgmlType;
