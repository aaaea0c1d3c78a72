//! Files models live in: safetensors, GGUF, PyTorch checkpoints, Hugging Face directories, atomic writes, memory maps.
//!
//! Nothing here knows a tensor or a model: readers hand out dtype-tagged bytes, writers take them.
//! Two rules of the workspace live in this crate because every other crate depends on it for them:
//! final files appear whole or not at all ([`atomic`]), and there is one place that memory-maps ([`map`]).

pub mod atomic;
mod error;
pub mod gguf;
pub mod hf_dir;
pub mod map;
pub mod safetensors;
mod torch;

pub use error::{Error, Result, nearest};
pub use gguf::{Gguf, GgufArray, GgufOut, GgufTensor, GgufValue};
pub use hf_dir::{HfDir, HfWriter, Weights};
pub use map::{Mapped, SharedBytes};
pub use safetensors::{Dtype, SafeTensors, TensorOut, TensorView};
pub use torch::TorchFile;
