//! Qwen3 MoE (Yang et al. 2025): Qwen3 with a mixture of experts in most layers.

use serde_json::{Value, json};

use super::mixtral::experts;
use super::{Family, qwen3};
use crate::config::Config;
use crate::error::Error;
use crate::spec::{Spec, Task};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_moe",
    architectures: &[
        ("Qwen3MoeForCausalLM", Task::LanguageModel),
        ("Qwen3MoeForSequenceClassification", Task::SequenceClassification),
    ],
    spec,
    weights: super::llama::WEIGHTS,
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    // transformers 5 writes the one name, transformers 4 the other.
    let num_experts = match c.optional_size("num_local_experts")? {
        Some(num_experts) => num_experts,
        None => c.size("num_experts")?,
    };
    let experts = experts(c, num_experts, c.flag("norm_topk_prob", false)?)?;
    let every = c.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let dense = c.indices("mlp_only_layers")?;
    let width = c.size("moe_intermediate_size")?;
    let mut spec = qwen3::spec(c)?;
    spec.family = FAMILY.name;
    for (index, layer) in spec.stack.layers.iter_mut().enumerate() {
        if !dense.contains(&index) && (index + 1).is_multiple_of(every) {
            layer.experts = Some(experts);
            layer.feed_forward.intermediate_size = width;
        }
    }
    Ok(spec)
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "moe_intermediate_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "norm_topk_prob": true,
        "output_router_logits": true,
        "router_aux_loss_coef": 0.001,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
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
