//! Adapters: small sets of parameters that change what a model does while the model stays as it is.
//!
//! **What it is for.** LoRA and its relatives, IA3, soft prompts and bottleneck adapters: attached to a model through the
//! seams of `loam-nn`, trained, saved in the layout of PEFT (or AdapterHub), combined, and merged into the weights.
//!
//! **What it is not.** It trains nothing by itself and knows no optimizer.
//!
//! **Where to start.** [`Adapter::new`], then [`AdapterSet::attach`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use loam_models::{Forward, Hooks, Input, LanguageModel};
//! use loam_peft::{Adapter, AdapterSet, Config, Lora, Method, Origin};
//! use serde_json::json;
//!
//! let config = json!({"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16});
//! let model = LanguageModel::new(&config, 42)?;
//! let lora = Config::new(Method::Lora(Lora { r: 2, ..Lora::default() }));
//! let adapter = Arc::new(Adapter::new(&model, &lora, Origin::default())?);
//! assert_eq!(adapter.num_parameters(), 2 * 8 + 24 * 2); // A, and B of c_attn's queries, keys and values
//! let set = AdapterSet::attach(&model, vec![adapter]);
//! let logits = |hooks| model.logits(&Input::rows(&[1, 2, 3], 1), Forward { hooks, ..Forward::default() });
//! // B starts at zero: the model with the adapter is the model without.
//! assert_eq!(logits(Hooks::On)?.to_vec(), logits(Hooks::Off)?.to_vec());
//! set.detach();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod allocate;
mod bottleneck;
mod combine;
mod config;
mod error;
mod files;
mod linalg;
mod linear;
mod lstm;
mod merge;
mod prompt;
mod set;
mod tables;
mod target;

pub use adapter::{Adapter, Origin};
pub use allocate::RankAllocator;
pub use combine::{Combination, combine};
pub use config::{
    AdaLora, Bottleneck, Config, Ia3, Lora, LoraInit, Method, PTuning, Prefix, PromptEncoder, PromptInit, PromptTuning,
    Targets, Vera,
};
pub use error::{Error, Result};
pub use files::is_adapter_dir;
pub use merge::{Difference, MergeReport, Merged, difference, merge, merge_with_report, probe};
pub use prompt::Encode;
pub use set::AdapterSet;
