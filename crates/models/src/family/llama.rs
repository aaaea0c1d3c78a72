//! Llama (Touvron et al. 2023): rotary positions, RMS norm, grouped-query attention, gated feed-forward.

use loam_nn::{AttentionConfig, FeedForwardConfig, NormConfig};
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, Residual, Spec, StackSpec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    architectures: &[
        ("LlamaForCausalLM", Task::LanguageModel),
        ("LlamaForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WEIGHTS,
    defaults,
};

/// Names that the families which descend from Llama share; rows of parameters that one of them lacks are skipped.
pub(super) const WEIGHTS: WeightMap = WeightMap {
    rows: &[
        row("model.embed_tokens.weight", "embed_tokens.weight", Keep),
        row("model.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight", Keep),
        row("model.layers.{i}.self_attn.q_proj.weight", "layers.{i}.attention.q_proj.weight", Keep),
        row("model.layers.{i}.self_attn.q_proj.bias", "layers.{i}.attention.q_proj.bias", Keep),
        row("model.layers.{i}.self_attn.k_proj.weight", "layers.{i}.attention.k_proj.weight", Keep),
        row("model.layers.{i}.self_attn.k_proj.bias", "layers.{i}.attention.k_proj.bias", Keep),
        row("model.layers.{i}.self_attn.v_proj.weight", "layers.{i}.attention.v_proj.weight", Keep),
        row("model.layers.{i}.self_attn.v_proj.bias", "layers.{i}.attention.v_proj.bias", Keep),
        row("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.attention.o_proj.weight", Keep),
        row("model.layers.{i}.self_attn.o_proj.bias", "layers.{i}.attention.o_proj.bias", Keep),
        row("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attention.q_norm.weight", Keep),
        row("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attention.k_norm.weight", Keep),
        row("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
        row("model.layers.{i}.mlp.gate_proj.weight", "layers.{i}.feed_forward.gate_proj.weight", Keep),
        row("model.layers.{i}.mlp.gate_proj.bias", "layers.{i}.feed_forward.gate_proj.bias", Keep),
        row("model.layers.{i}.mlp.up_proj.weight", "layers.{i}.feed_forward.up_proj.weight", Keep),
        row("model.layers.{i}.mlp.up_proj.bias", "layers.{i}.feed_forward.up_proj.bias", Keep),
        row("model.layers.{i}.mlp.down_proj.weight", "layers.{i}.feed_forward.down_proj.weight", Keep),
        row("model.layers.{i}.mlp.down_proj.bias", "layers.{i}.feed_forward.down_proj.bias", Keep),
        row("model.layers.{i}.mlp.gate.weight", "layers.{i}.feed_forward.gate.weight", Keep),
        row(
            "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
            "layers.{i}.feed_forward.experts.{e}.gate_proj.weight",
            Keep,
        ),
        row(
            "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
            "layers.{i}.feed_forward.experts.{e}.up_proj.weight",
            Keep,
        ),
        row(
            "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
            "layers.{i}.feed_forward.experts.{e}.down_proj.weight",
            Keep,
        ),
        row("model.norm.weight", "norm.weight", Keep),
        row("lm_head.weight", "lm_head.weight", Keep),
        row("score.weight", "classifier.weight", Keep),
    ],
    // Frequencies that old checkpoints carry along; they follow from the configuration.
    ignored_suffixes: &[".rotary_emb.inv_freq"],
    copies: &["lm_head.weight"],
    optional_prefix: "",
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let has_attention_bias = c.flag("attention_bias", false)?;
    let mut spec = like_llama(FAMILY.name, c)?;
    for layer in &mut spec.stack.layers {
        layer.attention.has_qkv_bias = has_attention_bias;
        layer.attention.has_output_bias = has_attention_bias;
    }
    Ok(spec)
}

/// What the families that descend from Llama share: names of the configuration's keys, and a block without biases.
pub(super) fn like_llama(family: &'static str, c: Config<'_>) -> Result<Spec, Error> {
    let hidden_size = c.size("hidden_size")?;
    let heads = c.size("num_attention_heads")?;
    let kv_heads = c.optional_size("num_key_value_heads")?.unwrap_or(heads);
    c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)?;
    let head_dim = match c.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None => {
            c.divides("num_attention_heads", heads, "hidden_size", hidden_size)?;
            hidden_size / heads
        }
    };
    let norm = NormConfig::rms(c.number("rms_norm_eps", 1e-6)?);
    let max_position_embeddings = c.size("max_position_embeddings")?;
    let attention = AttentionConfig::causal(heads, kv_heads, head_dim);
    let feed_forward = FeedForwardConfig {
        intermediate_size: c.size("intermediate_size")?,
        activation: c.activation("hidden_act", "silu")?,
        gated: true,
        has_bias: c.flag("mlp_bias", false)?,
    };
    let mut layer = LayerSpec::new(Residual::PreNorm, norm, attention, feed_forward);
    layer.rope = Some(c.rope_of_kind(false, head_dim, max_position_embeddings)?);
    Ok(Spec {
        family,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings,
        type_vocab_size: 0,
        embedding_scale: None,
        stack: StackSpec::pre_norm(Position::InAttention, vec![layer; c.size("num_hidden_layers")?]),
        encoder: None,
        head: HeadSpec::tokens(),
        final_logit_softcapping: None,
        tie_word_embeddings: c.flag("tie_word_embeddings", false)?,
        initializer_range: c.number("initializer_range", 0.02)? as f32,
        is_scaled_by_inputs: false,
    })
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
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": false,
        "mlp_bias": false,
        "initializer_range": 0.02,
        "tie_word_embeddings": false,
    })
}
