//! Gemma 2 (Gemma Team 2024) and the text part of Gemma 3 (2025): norms before and after each half, scaled embeddings,
//! windows in some layers; soft caps in the one, norms of queries and keys and two rotations in the other.

use loam_nn::NormConfig;
use serde_json::{Value, json};

use super::Family;
use super::llama::like_llama;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{Residual, Spec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const GEMMA2: Family = Family {
    name: "gemma2",
    architectures: &[
        ("Gemma2ForCausalLM", Task::LanguageModel),
        ("Gemma2ForSequenceClassification", Task::SequenceClassification),
    ],
    spec: spec2,
    weights: WEIGHTS,
    defaults: || defaults(&GEMMA2),
};

pub(super) const GEMMA3: Family = Family {
    name: "gemma3_text",
    architectures: &[
        ("Gemma3ForCausalLM", Task::LanguageModel),
        ("Gemma3ForSequenceClassification", Task::SequenceClassification),
    ],
    spec: spec3,
    weights: WEIGHTS,
    defaults: || defaults(&GEMMA3),
};

const WEIGHTS: WeightMap = WeightMap {
    rows: &[
        row("model.embed_tokens.weight", "embed_tokens.weight", Keep),
        row("model.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight", Keep),
        row("model.layers.{i}.self_attn.q_proj.weight", "layers.{i}.attention.q_proj.weight", Keep),
        row("model.layers.{i}.self_attn.k_proj.weight", "layers.{i}.attention.k_proj.weight", Keep),
        row("model.layers.{i}.self_attn.v_proj.weight", "layers.{i}.attention.v_proj.weight", Keep),
        row("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.attention.o_proj.weight", Keep),
        row("model.layers.{i}.self_attn.q_proj.bias", "layers.{i}.attention.q_proj.bias", Keep),
        row("model.layers.{i}.self_attn.k_proj.bias", "layers.{i}.attention.k_proj.bias", Keep),
        row("model.layers.{i}.self_attn.v_proj.bias", "layers.{i}.attention.v_proj.bias", Keep),
        row("model.layers.{i}.self_attn.o_proj.bias", "layers.{i}.attention.o_proj.bias", Keep),
        row("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attention.q_norm.weight", Keep),
        row("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attention.k_norm.weight", Keep),
        row("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.attention_post_norm.weight", Keep),
        row("model.layers.{i}.pre_feedforward_layernorm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
        row("model.layers.{i}.mlp.gate_proj.weight", "layers.{i}.feed_forward.gate_proj.weight", Keep),
        row("model.layers.{i}.mlp.up_proj.weight", "layers.{i}.feed_forward.up_proj.weight", Keep),
        row("model.layers.{i}.mlp.down_proj.weight", "layers.{i}.feed_forward.down_proj.weight", Keep),
        row("model.layers.{i}.post_feedforward_layernorm.weight", "layers.{i}.feed_forward_post_norm.weight", Keep),
        row("model.norm.weight", "norm.weight", Keep),
        row("lm_head.weight", "lm_head.weight", Keep),
        row("score.weight", "classifier.weight", Keep),
    ],
    ignored_suffixes: &[".rotary_emb.inv_freq"],
    copies: &["lm_head.weight"],
    optional_prefix: "",
};

fn spec2(c: Config<'_>) -> Result<Spec, Error> {
    // Every other layer has a window, the first being one of them.
    let mut spec = common(GEMMA2.name, c, |layer| layer % 2 == 0)?;
    let cap = |key: &str, default: f64| c.nullable_number(key, default).map(|cap| cap.map(|cap| cap as f32));
    let attention_cap = cap("attn_logit_softcapping", 50.0)?;
    spec.stack.layers.iter_mut().for_each(|layer| layer.attention.logit_softcapping = attention_cap);
    spec.final_logit_softcapping = cap("final_logit_softcapping", 30.0)?;
    Ok(spec)
}

fn spec3(c: Config<'_>) -> Result<Spec, Error> {
    let period = c.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let mut spec = common(GEMMA3.name, c, |layer| (layer + 1) % period != 0)?;
    spec.stack.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = Some(layer.norm));
    Ok(spec)
}

fn common(family: &'static str, c: Config<'_>, is_sliding: impl Fn(usize) -> bool) -> Result<Spec, Error> {
    let mut spec = like_llama(family, c)?;
    let norm = NormConfig { one_plus_weight: true, ..spec.stack.layers[0].norm };
    let window = c.optional_size("sliding_window")?;
    let has_bias = c.flag("attention_bias", false)?;
    let activation = c.activation("hidden_activation", c.text("hidden_act", "gelu_pytorch_tanh")?)?;
    let sliding = c.sliding_layers(spec.stack.layers.len(), is_sliding)?;
    for (layer, is_sliding) in spec.stack.layers.iter_mut().zip(sliding) {
        (layer.residual, layer.norm) = (Residual::Sandwich, norm);
        let attention = &mut layer.attention;
        (attention.has_qkv_bias, attention.has_output_bias) = (has_bias, has_bias);
        attention.scale = Some(c.number("query_pre_attn_scalar", 256.0)?.powf(-0.5) as f32);
        attention.sliding_window = window.filter(|_| is_sliding);
        layer.feed_forward.activation = activation;
        layer.rope = Some(c.rope_of_kind(is_sliding, attention.head_dim, spec.max_position_embeddings)?);
    }
    spec.stack.final_norm = Some(norm);
    spec.embedding_scale = Some((spec.hidden_size as f32).sqrt());
    spec.tie_word_embeddings = c.flag("tie_word_embeddings", true)?;
    Ok(spec)
}

fn defaults(family: &Family) -> Value {
    json!({
        "architectures": [family.architectures[0].0],
        "model_type": family.name,
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 1024,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
    })
}
