//! Tensors for Transformers: data, the operations a language model needs, and their gradients.
//!
//! **What it is for.** Every forward and backward pass of Loam. Operations are few and fused (linear, attention, norm,
//! cross-entropy with its head, ...), each with a hand-written gradient.
//!
//! **What it is not.** A general array library: no arbitrary broadcasting, no integer tensors, no device names above
//! this crate.
//!
//! **Where to start.** [`Tensor`] and [`Parameter`].
//!
//! ```
//! use loam_tensor::{Parameter, Raw, Tensor};
//!
//! let weight = Parameter::new(Raw::from_f32(&[1.0, -2.0], [1, 2]));
//! let x = Tensor::from_slice(&[3.0, 4.0], [1, 2]);
//! let y = x.linear(&Tensor::parameter(&weight), None); // [1, 1]: 3 - 8
//! assert_eq!(y.item(), -5.0);
//! y.backward();
//! assert_eq!(weight.grad().unwrap().f32(), &[3.0, 4.0]);
//! ```
//!
//! Shape misuse is a bug and panics with the operation and the shapes; what files and users can cause is checked above.

mod autograd;
mod backend;
mod cpu;
mod dims;
pub mod gradcheck;
mod ops;
mod parameter;
mod pool;
mod precision;
pub mod profile;
mod raw;
mod tensor;

pub use autograd::{is_recording, no_grad};
pub use backend::{AttentionMask, Backend, Device, Dropout, NormKind, RopeTables, Start};
pub use dims::{Dims, MAX_RANK};
pub use loam_kernels::cross_entropy::Terms as CrossEntropyTerms;
pub use loam_kernels::elementwise::Unary;
pub use loam_kernels::optim::AdamW;
pub use loam_kernels::quant::{GgmlType, Nf4, Nf4Scales};
pub use loam_kernels::rope::RopeStyle;
pub use ops::attention::AttentionSpec;
pub use ops::head::head_chunk_rows;
pub use ops::log_probs::LogProbSettings;
pub use ops::loss::HeadSettings;
pub use parameter::Parameter;
pub use pool::{PoolStats, pool_stats};
pub use precision::{Precision, precision, set_default_precision, with_precision};
pub use raw::{DType, Raw, SharedBytes, halves_as_bf16};
pub use tensor::{Tensor, is_worth_remaking};
