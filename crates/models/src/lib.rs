//! Model families as data, and the stacks that run them.
//!
//! **What it is for.** Opening, making, running and saving language models. A family is a table: `config.json` to
//! [`Spec`], and weight names in both directions. Training is the same forward pass as inference.
//!
//! **What it is not.** It knows no optimizer, no adapter, no cache policy and no device.
//!
//! **Where to start.** [`LanguageModel`] and [`Input`].
//!
//! ```
//! use loam_models::{Forward, Input, LanguageModel};
//! use serde_json::json;
//!
//! let config = json!({"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16});
//! let model = LanguageModel::new(&config, 42)?;
//! let logits = model.logits(&Input::rows(&[1, 2, 3], 1), Forward::default())?;
//! assert_eq!(logits.shape()[..], [1, 3, 11]);
//! # Ok::<(), loam_models::Error>(())
//! ```

mod bitsandbytes;
mod block;
mod config;
mod error;
mod family;
mod footprint;
mod gguf;
mod head;
mod hooks;
mod inference;
mod memory;
mod model;
mod network;
mod noise;
mod passes;
mod prompt;
mod quantise;
mod spec;
mod stack;
mod stored;
mod weight_map;

pub use error::Error;
pub use family::{FAMILIES, Family, by_name as family_by_name};
pub use footprint::{Footprint, footprint};
pub use gguf::{GgufSettings, generation_config as gguf_generation_config, sampling_keys as gguf_sampling_keys};
pub use head::pool;
pub use hooks::{JoinSite, LinearPart, LinearSite, TableSite};
pub use inference::{RunMemory, RunShape, WeightMemory, activation_numbers, kv_numbers, run_memory};
pub use loam_nn::{DropoutKey, Fan, Hooks, Init, KV_PAGE, KvCache, KvPage, KvType, Linear, Memory};
pub use memory::{StepMemory, StepShape, step_memory};
pub use model::{LanguageModel, NewHead, set_labels};
pub use noise::EmbeddingNoise;
pub use quantise::{Importance, Mix, Plan, kept_type};
pub use spec::{HeadSpec, LayerSpec, Position, Reads, RelativeBias, Residual, Spec, StackSpec, Task, TransformSpec};
pub use stack::{Forward, Input};
