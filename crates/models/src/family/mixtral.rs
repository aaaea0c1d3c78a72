//! Mixtral (Jiang et al. 2024): Mistral with a mixture of experts for a feed-forward.

use loam_nn::ExpertsConfig;
use serde_json::{Value, json};

use super::Family;
use super::llama::like_llama;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{Spec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    architectures: &[
        ("MixtralForCausalLM", Task::LanguageModel),
        ("MixtralForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("model.embed_tokens.weight", "embed_tokens.weight", Keep),
            row("model.layers.{i}.input_layernorm.weight", "layers.{i}.attention_norm.weight", Keep),
            row("model.layers.{i}.self_attn.q_proj.weight", "layers.{i}.attention.q_proj.weight", Keep),
            row("model.layers.{i}.self_attn.k_proj.weight", "layers.{i}.attention.k_proj.weight", Keep),
            row("model.layers.{i}.self_attn.v_proj.weight", "layers.{i}.attention.v_proj.weight", Keep),
            row("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.attention.o_proj.weight", Keep),
            row("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
            row("model.layers.{i}.block_sparse_moe.gate.weight", "layers.{i}.feed_forward.gate.weight", Keep),
            row(
                "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight",
                "layers.{i}.feed_forward.experts.{e}.gate_proj.weight",
                Keep,
            ),
            row(
                "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight",
                "layers.{i}.feed_forward.experts.{e}.up_proj.weight",
                Keep,
            ),
            row(
                "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight",
                "layers.{i}.feed_forward.experts.{e}.down_proj.weight",
                Keep,
            ),
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
    let (window, experts) = (c.optional_size("sliding_window")?, experts(c, c.size("num_local_experts")?, true)?);
    let mut spec = like_llama(FAMILY.name, c)?;
    for layer in &mut spec.stack.layers {
        layer.attention.sliding_window = window;
        layer.experts = Some(experts);
    }
    Ok(spec)
}

/// The router's settings. The load-balancing loss counts where transformers would compute it.
pub(super) fn experts(c: Config<'_>, num_experts: usize, norm_topk_prob: bool) -> Result<ExpertsConfig, Error> {
    let num_experts_per_tok = c.size("num_experts_per_tok")?;
    if num_experts_per_tok > num_experts {
        let what = format!("is {num_experts_per_tok}, more than the {num_experts} experts there are");
        return Err(Error::config("num_experts_per_tok", what));
    }
    let coefficient = c.number("router_aux_loss_coef", 0.001)? as f32;
    let router_aux_loss_coef = if c.flag("output_router_logits", false)? { coefficient } else { 0.0 };
    Ok(ExpertsConfig { num_experts, num_experts_per_tok, norm_topk_prob, router_aux_loss_coef })
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 896,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": true,
        "router_aux_loss_coef": 0.02,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": null,
        "initializer_range": 0.02,
        "tie_word_embeddings": false,
    })
}
