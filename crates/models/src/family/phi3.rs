//! Phi-3 (Abdin et al. 2024): Llama with one projection for q, k and v, and one for gate and up.

use serde_json::{Value, json};

use super::Family;
use super::llama::like_llama;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{Spec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    architectures: &[
        ("Phi3ForCausalLM", Task::LanguageModel),
        ("Phi3ForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("model.embed_tokens.weight", "embed_tokens.weight", Keep),
            row("model.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight", Keep),
            row("model.layers.{i}.self_attn.qkv_proj.weight", "layers.{i}.attention.{q|k|v}_proj.weight", Keep),
            row("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.attention.o_proj.weight", Keep),
            row("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
            row("model.layers.{i}.mlp.gate_up_proj.weight", "layers.{i}.feed_forward.{gate|up}_proj.weight", Keep),
            row("model.layers.{i}.mlp.down_proj.weight", "layers.{i}.feed_forward.down_proj.weight", Keep),
            row("model.norm.weight", "norm.weight", Keep),
            row("lm_head.weight", "lm_head.weight", Keep),
            row("score.weight", "classifier.weight", Keep),
        ],
        ignored_suffixes: &[".rotary_emb.inv_freq"],
        copies: &["lm_head.weight"],
        optional_prefix: "",
    },
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
        "vocab_size": 32064,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": null,
        "initializer_range": 0.02,
        "tie_word_embeddings": false,
        "pad_token_id": null,
    })
}
