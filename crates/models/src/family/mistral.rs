//! Mistral (Jiang et al. 2023): Llama with a sliding window.

use serde_json::{Value, json};

use super::Family;
use super::llama::{WEIGHTS, like_llama};
use crate::config::Config;
use crate::error::Error;
use crate::spec::{Spec, Task};

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    architectures: &[
        ("MistralForCausalLM", Task::LanguageModel),
        ("MistralForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WEIGHTS,
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let window = c.optional_size("sliding_window")?;
    let mut spec = like_llama(FAMILY.name, c)?;
    spec.stack.layers.iter_mut().for_each(|layer| layer.attention.sliding_window = window);
    Ok(spec)
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 1024,
        "initializer_range": 0.02,
        "tie_word_embeddings": false,
    })
}
