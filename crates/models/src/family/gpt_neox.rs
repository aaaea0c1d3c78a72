//! GPT-NeoX (Black et al. 2022) and Pythia: attention and feed-forward side by side, a part of each head rotated.

use loam_nn::{AttentionConfig, FeedForwardConfig, NormConfig};
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, Residual, Spec, StackSpec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &[
        ("GPTNeoXForCausalLM", Task::LanguageModel),
        ("GPTNeoXForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("gpt_neox.embed_in.weight", "embed_tokens.weight", Keep),
            row("gpt_neox.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight", Keep),
            row("gpt_neox.layers.{i}.input_layernorm.bias", "layers.{i}.attention_norm.bias", Keep),
            row("gpt_neox.layers.{i}.post_attention_layernorm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
            row("gpt_neox.layers.{i}.post_attention_layernorm.bias", "layers.{i}.feed_forward_norm.bias", Keep),
            row(
                "gpt_neox.layers.{i}.attention.query_key_value.weight",
                "layers.{i}.attention.{q|k|v}_proj.weight",
                ByHead,
            ),
            row("gpt_neox.layers.{i}.attention.query_key_value.bias", "layers.{i}.attention.{q|k|v}_proj.bias", ByHead),
            row("gpt_neox.layers.{i}.attention.dense.weight", "layers.{i}.attention.o_proj.weight", Keep),
            row("gpt_neox.layers.{i}.attention.dense.bias", "layers.{i}.attention.o_proj.bias", Keep),
            row("gpt_neox.layers.{i}.mlp.dense_h_to_4h.weight", "layers.{i}.feed_forward.up_proj.weight", Keep),
            row("gpt_neox.layers.{i}.mlp.dense_h_to_4h.bias", "layers.{i}.feed_forward.up_proj.bias", Keep),
            row("gpt_neox.layers.{i}.mlp.dense_4h_to_h.weight", "layers.{i}.feed_forward.down_proj.weight", Keep),
            row("gpt_neox.layers.{i}.mlp.dense_4h_to_h.bias", "layers.{i}.feed_forward.down_proj.bias", Keep),
            row("gpt_neox.final_layer_norm.weight", "norm.weight", Keep),
            row("gpt_neox.final_layer_norm.bias", "norm.bias", Keep),
            row("embed_out.weight", "lm_head.weight", Keep),
            row("score.weight", "classifier.weight", Keep),
        ],
        ignored_suffixes: &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"],
        copies: &["lm_head.weight"],
        optional_prefix: "",
    },
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let hidden_size = c.size("hidden_size")?;
    let heads = c.size("num_attention_heads")?;
    c.divides("num_attention_heads", heads, "hidden_size", hidden_size)?;
    let has_bias = c.flag("attention_bias", true)?;
    let norm = NormConfig::layer(c.number("layer_norm_eps", 1e-5)?);
    let (head_dim, max_position_embeddings) = (hidden_size / heads, c.size("max_position_embeddings")?);
    let attention = AttentionConfig::causal(heads, heads, head_dim).with_biases(has_bias);
    let feed_forward = FeedForwardConfig {
        intermediate_size: c.size("intermediate_size")?,
        activation: c.activation("hidden_act", "gelu")?,
        gated: false,
        has_bias: true,
    };
    let mut layer = LayerSpec::new(
        if c.flag("use_parallel_residual", true)? { Residual::Parallel } else { Residual::PreNorm },
        norm,
        attention,
        feed_forward,
    );
    layer.rope = Some(c.rope(head_dim, max_position_embeddings)?);
    Ok(Spec {
        family: FAMILY.name,
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
        "vocab_size": 50304,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": true,
        "attention_bias": true,
        "initializer_range": 0.02,
        "tie_word_embeddings": false,
    })
}
