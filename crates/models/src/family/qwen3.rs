//! Qwen3 (Yang et al. 2025): Llama with norms of every head's query and key, and heads of a width of their own.

use serde_json::{Value, json};

use super::Family;
use super::llama::{WEIGHTS, like_llama};
use super::qwen2::set_windows;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{Spec, Task};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    architectures: &[
        ("Qwen3ForCausalLM", Task::LanguageModel),
        ("Qwen3ForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WEIGHTS,
    defaults,
};

pub(super) fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let has_bias = c.flag("attention_bias", false)?;
    let mut spec = like_llama(FAMILY.name, c)?;
    for layer in &mut spec.stack.layers {
        layer.attention.has_qkv_bias = has_bias;
        layer.attention.has_output_bias = has_bias;
        layer.attention.qk_norm = Some(layer.norm);
    }
    set_windows(&mut spec, c)?;
    Ok(spec)
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_bias": false,
        "use_sliding_window": false,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
    })
}
