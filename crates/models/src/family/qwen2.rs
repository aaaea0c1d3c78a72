//! Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on q, k and v; a sliding window in the upper layers, if any.

use serde_json::{Value, json};

use super::Family;
use super::llama::{WEIGHTS, like_llama};
use crate::config::Config;
use crate::error::Error;
use crate::spec::{Spec, Task};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    architectures: &[
        ("Qwen2ForCausalLM", Task::LanguageModel),
        ("Qwen2ForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WEIGHTS,
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let mut spec = like_llama(FAMILY.name, c)?;
    spec.stack.layers.iter_mut().for_each(|layer| layer.attention.has_qkv_bias = true);
    set_windows(&mut spec, c)?;
    Ok(spec)
}

/// Qwen's windows: none unless `use_sliding_window`, then in the layers from `max_window_layers` on.
pub(super) fn set_windows(spec: &mut Spec, c: Config<'_>) -> Result<(), Error> {
    let window = c.optional_size("sliding_window")?.filter(|_| c.flag("use_sliding_window", false).unwrap_or(false));
    c.flag("use_sliding_window", false)?;
    let first = c.number("max_window_layers", 28.0)? as usize;
    let sliding = c.sliding_layers(spec.stack.layers.len(), |layer| layer >= first)?;
    for (layer, is_sliding) in spec.stack.layers.iter_mut().zip(sliding) {
        layer.attention.sliding_window = window.filter(|_| is_sliding);
    }
    Ok(())
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "use_sliding_window": false,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
    })
}
