//! Parts of networks: each a struct of parameters with a `forward`, and nothing that knows a model family.
//!
//! **What it is for.** The mathematics of layers, written once for training and inference.
//!
//! **What it is not.** A model: which parts, in which order, with which sizes is `loam-models`' business.
//!
//! **Where to start.** [`Module`] and [`Linear`].
//!
//! ```
//! use loam_nn::{Linear, Module};
//! use loam_tensor::Tensor;
//!
//! let layer = Linear::zeros(3, 2, true);
//! let mut names = Vec::new();
//! layer.visit("down_proj", &mut |name, _| names.push(name));
//! assert_eq!(names, ["down_proj.weight", "down_proj.bias"]);
//! assert_eq!(layer.apply(&Tensor::full([4, 3], 1.0)).shape()[..], [4, 2]);
//! ```

mod activation;
mod attention;
mod context;
mod experts;
mod feed_forward;
mod hook;
mod init;
mod kv_cache;
mod kv_store;
mod linear;
mod module;
mod norm;
mod position;
mod relative;

pub use activation::{Activation, PRelu};
pub use attention::{Attention, AttentionConfig};
pub use context::{DropoutKey, LayerContext, Memory};
pub use experts::{Experts, ExpertsConfig};
pub use feed_forward::{FeedForward, FeedForwardConfig};
pub use hook::{Hooks, JoinHook, LinearHook, Prefix, Prompt, PromptHook, Slot, TableHook, by_row};
pub use init::{Fan, Init, gain};
pub use kv_cache::{KV_PAGE, KvCache, KvPage, LayerCache};
pub use kv_store::KvType;
pub use linear::{Embedding, Linear};
pub use module::{Module, join};
pub use norm::{Norm, NormConfig};
pub use position::{Rope, RopeConfig, RopeScaling, sinusoids};
pub use relative::RelativePositions;
