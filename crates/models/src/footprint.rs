//! What a model takes: parameters, bytes and operations, from its [`Spec`] alone.

use crate::spec::{Position, Residual, Spec};

/// Counts of one model. Bytes are for the precision asked; operations count a multiply-add as two.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Footprint {
    /// All parameters, tied ones once.
    pub parameters: usize,
    /// Parameters that take part in matrix products (a tied head counts here, a token table does not).
    pub matmul_parameters: usize,
    /// Bytes of weights as f32.
    pub weight_bytes_f32: usize,
    /// Bytes of weights as bf16.
    pub weight_bytes_bf16: usize,
    /// Bytes of keys and values per token of context, as f32.
    pub kv_bytes_per_token_f32: usize,
    /// Bytes while training with AdamW in f32: weights, gradients and two moments, without activations.
    pub training_state_bytes: usize,
    /// Operations of a forward pass per token at the full context, attention included.
    pub forward_flop_per_token: usize,
}

/// Counts the parameters, bytes and operations of a model.
pub fn footprint(spec: &Spec) -> Footprint {
    let hidden = spec.hidden_size;
    let norm = |has_bias: bool| hidden * (1 + usize::from(has_bias));
    let mut matmul = spec.vocab_size * hidden;
    let mut other = norm(spec.final_norm.has_bias);
    let mut kv = 0;
    let mut attention_flop = 0;
    for layer in &spec.layers {
        let (a, f) = (&layer.attention, &layer.feed_forward);
        let (inner, kv_width) = (a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim);
        matmul += hidden * (inner + 2 * kv_width) + inner * hidden;
        let experts = layer.experts.map_or(1, |experts| experts.num_experts);
        matmul += experts * hidden * f.intermediate_size * (2 + usize::from(f.gated));
        matmul += layer.experts.map_or(0, |experts| hidden * experts.num_experts);
        let norms = match layer.residual {
            Residual::PreNorm | Residual::Parallel => 2,
            Residual::Sandwich => 4,
            Residual::ParallelSharedNorm => 1,
        };
        other += norms * norm(layer.norm.has_bias) + if a.qk_norm.is_some() { 2 * a.head_dim } else { 0 };
        other += usize::from(a.has_qkv_bias) * (inner + 2 * kv_width) + usize::from(a.has_output_bias) * hidden;
        other += usize::from(f.has_bias) * (f.intermediate_size * (1 + usize::from(f.gated)) + hidden);
        kv += 2 * kv_width;
        // Two products of `head_dim` per visible key, half of the keys being visible on average.
        let reach = a.sliding_window.unwrap_or(spec.max_position_embeddings).min(spec.max_position_embeddings);
        attention_flop += 2 * 2 * inner * reach / if a.is_causal { 2 } else { 1 };
    }
    if let Position::Learned { offset } = spec.position {
        other += (spec.max_position_embeddings + offset) * hidden;
    }
    if !spec.tie_word_embeddings {
        other += spec.vocab_size * hidden;
    }
    let parameters = matmul + other;
    Footprint {
        parameters,
        matmul_parameters: matmul,
        weight_bytes_f32: 4 * parameters,
        weight_bytes_bf16: 2 * parameters,
        kv_bytes_per_token_f32: 4 * kv,
        training_state_bytes: 16 * parameters,
        forward_flop_per_token: 2 * matmul + attention_flop,
    }
}
