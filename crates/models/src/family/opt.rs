//! OPT (Zhang et al. 2022): GPT-2's block with ReLU, and a table of positions that begins two rows late.

use loam_nn::{AttentionConfig, FeedForwardConfig, NormConfig};
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, Residual, Spec, StackSpec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "opt",
    architectures: &[
        ("OPTForCausalLM", Task::LanguageModel),
        ("OPTForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("model.decoder.embed_tokens.weight", "embed_tokens.weight", Keep),
            row("model.decoder.embed_positions.weight", "embed_positions.weight", Keep),
            row("model.decoder.layers.{i}.self_attn_layer_norm.weight", "layers.{i}.attention_norm.weight", Keep),
            row("model.decoder.layers.{i}.self_attn_layer_norm.bias", "layers.{i}.attention_norm.bias", Keep),
            row("model.decoder.layers.{i}.self_attn.q_proj.weight", "layers.{i}.attention.q_proj.weight", Keep),
            row("model.decoder.layers.{i}.self_attn.q_proj.bias", "layers.{i}.attention.q_proj.bias", Keep),
            row("model.decoder.layers.{i}.self_attn.k_proj.weight", "layers.{i}.attention.k_proj.weight", Keep),
            row("model.decoder.layers.{i}.self_attn.k_proj.bias", "layers.{i}.attention.k_proj.bias", Keep),
            row("model.decoder.layers.{i}.self_attn.v_proj.weight", "layers.{i}.attention.v_proj.weight", Keep),
            row("model.decoder.layers.{i}.self_attn.v_proj.bias", "layers.{i}.attention.v_proj.bias", Keep),
            row("model.decoder.layers.{i}.self_attn.out_proj.weight", "layers.{i}.attention.o_proj.weight", Keep),
            row("model.decoder.layers.{i}.self_attn.out_proj.bias", "layers.{i}.attention.o_proj.bias", Keep),
            row("model.decoder.layers.{i}.final_layer_norm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
            row("model.decoder.layers.{i}.final_layer_norm.bias", "layers.{i}.feed_forward_norm.bias", Keep),
            row("model.decoder.layers.{i}.fc1.weight", "layers.{i}.feed_forward.up_proj.weight", Keep),
            row("model.decoder.layers.{i}.fc1.bias", "layers.{i}.feed_forward.up_proj.bias", Keep),
            row("model.decoder.layers.{i}.fc2.weight", "layers.{i}.feed_forward.down_proj.weight", Keep),
            row("model.decoder.layers.{i}.fc2.bias", "layers.{i}.feed_forward.down_proj.bias", Keep),
            row("model.decoder.final_layer_norm.weight", "norm.weight", Keep),
            row("model.decoder.final_layer_norm.bias", "norm.bias", Keep),
            row("lm_head.weight", "lm_head.weight", Keep),
            row("score.weight", "classifier.weight", Keep),
        ],
        ignored_suffixes: &[],
        copies: &["lm_head.weight"],
        optional_prefix: "model.",
    },
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let hidden_size = c.size("hidden_size")?;
    let heads = c.size("num_attention_heads")?;
    c.divides("num_attention_heads", heads, "hidden_size", hidden_size)?;
    for (key, expected) in [("do_layer_norm_before", true), ("layer_norm_elementwise_affine", true)] {
        if c.flag(key, expected)? != expected {
            return Err(Error::config(key, "is false, which is not supported (only opt-350m is so)"));
        }
    }
    if c.optional_size("word_embed_proj_dim")?.is_some_and(|width| width != hidden_size) {
        return Err(Error::config("word_embed_proj_dim", "differs from hidden_size, which is not supported"));
    }
    let has_bias = c.flag("enable_bias", true)?;
    let norm = NormConfig::layer(1e-5);
    let attention = AttentionConfig::causal(heads, heads, hidden_size / heads).with_biases(has_bias);
    let feed_forward = FeedForwardConfig {
        intermediate_size: c.size("ffn_dim")?,
        activation: c.activation("activation_function", "relu")?,
        gated: false,
        has_bias,
    };
    let layer = LayerSpec::new(Residual::PreNorm, norm, attention, feed_forward);
    Ok(Spec {
        family: FAMILY.name,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings: c.size("max_position_embeddings")?,
        type_vocab_size: 0,
        embedding_scale: None,
        stack: StackSpec::pre_norm(Position::Learned { offset: 2 }, vec![layer; c.size("num_hidden_layers")?]),
        encoder: None,
        head: HeadSpec::tokens(),
        final_logit_softcapping: None,
        tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
        initializer_range: c.number("init_std", 0.02)? as f32,
        is_scaled_by_inputs: false,
    })
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 50272,
        "hidden_size": 768,
        "word_embed_proj_dim": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "activation_function": "relu",
        "max_position_embeddings": 2048,
        "do_layer_norm_before": true,
        "enable_bias": true,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "init_std": 0.02,
        "tie_word_embeddings": true,
    })
}
