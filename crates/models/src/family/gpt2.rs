//! GPT-2 (Radford et al. 2019): learned positions, layer norm before each part, one projection for q, k and v.

use loam_nn::{AttentionConfig, FeedForwardConfig, NormConfig};
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, Residual, Spec, StackSpec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "gpt2",
    architectures: &[
        ("GPT2LMHeadModel", Task::LanguageModel),
        ("GPT2ForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("transformer.wte.weight", "embed_tokens.weight", Keep),
            row("transformer.wpe.weight", "embed_positions.weight", Keep),
            row("transformer.h.{i}.ln_1.weight", "layers.{i}.attention_norm.weight", Keep),
            row("transformer.h.{i}.ln_1.bias", "layers.{i}.attention_norm.bias", Keep),
            row("transformer.h.{i}.attn.c_attn.weight", "layers.{i}.attention.{q|k|v}_proj.weight", Transpose),
            row("transformer.h.{i}.attn.c_attn.bias", "layers.{i}.attention.{q|k|v}_proj.bias", Keep),
            row("transformer.h.{i}.attn.c_proj.weight", "layers.{i}.attention.o_proj.weight", Transpose),
            row("transformer.h.{i}.attn.c_proj.bias", "layers.{i}.attention.o_proj.bias", Keep),
            row("transformer.h.{i}.ln_2.weight", "layers.{i}.feed_forward_norm.weight", Keep),
            row("transformer.h.{i}.ln_2.bias", "layers.{i}.feed_forward_norm.bias", Keep),
            row("transformer.h.{i}.mlp.c_fc.weight", "layers.{i}.feed_forward.up_proj.weight", Transpose),
            row("transformer.h.{i}.mlp.c_fc.bias", "layers.{i}.feed_forward.up_proj.bias", Keep),
            row("transformer.h.{i}.mlp.c_proj.weight", "layers.{i}.feed_forward.down_proj.weight", Transpose),
            row("transformer.h.{i}.mlp.c_proj.bias", "layers.{i}.feed_forward.down_proj.bias", Keep),
            row("transformer.ln_f.weight", "norm.weight", Keep),
            row("transformer.ln_f.bias", "norm.bias", Keep),
            row("lm_head.weight", "lm_head.weight", Keep),
            row("score.weight", "classifier.weight", Keep),
        ],
        // Causal masks that old checkpoints carry along.
        ignored_suffixes: &[".attn.bias", ".attn.masked_bias"],
        copies: &["lm_head.weight"],
        optional_prefix: "transformer.",
    },
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let hidden_size = c.size("n_embd")?;
    let heads = c.size("n_head")?;
    c.divides("n_head", heads, "n_embd", hidden_size)?;
    if c.flag("scale_attn_by_inverse_layer_idx", false)? {
        return Err(Error::config("scale_attn_by_inverse_layer_idx", "is true, which is not supported"));
    }
    let norm = NormConfig::layer(c.number("layer_norm_epsilon", 1e-5)?);
    let attention = AttentionConfig {
        scale: (!c.flag("scale_attn_weights", true)?).then_some(1.0),
        ..AttentionConfig::causal(heads, heads, hidden_size / heads).with_biases(true)
    };
    let feed_forward = FeedForwardConfig {
        intermediate_size: c.optional_size("n_inner")?.unwrap_or(4 * hidden_size),
        activation: c.activation("activation_function", "gelu_new")?,
        gated: false,
        has_bias: true,
    };
    let layer = LayerSpec::new(Residual::PreNorm, norm, attention, feed_forward);
    Ok(Spec {
        family: FAMILY.name,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings: c.size("n_positions")?,
        type_vocab_size: 0,
        embedding_scale: None,
        stack: StackSpec::pre_norm(Position::Learned { offset: 0 }, vec![layer; c.size("n_layer")?]),
        encoder: None,
        head: HeadSpec::tokens(),
        final_logit_softcapping: None,
        tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
        initializer_range: c.number("initializer_range", 0.02)? as f32,
        is_scaled_by_inputs: false,
    })
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": null,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
    })
}
