//! What a model takes: parameters, bytes and operations, from its [`Spec`] alone.

use crate::spec::{Position, Residual, Spec, StackSpec, Task};

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

/// Parameters of a part: those of matrix products, and the rest.
#[derive(Clone, Copy, Default)]
struct Counts {
    matmul: usize,
    other: usize,
    /// Keys and values per position.
    kv: usize,
    /// Operations of attention per token.
    attention_flop: usize,
}

/// Counts the parameters, bytes and operations of a model. Per token of source and text alike, where it reads both.
pub fn footprint(spec: &Spec) -> Footprint {
    let hidden = spec.hidden_size;
    let mut all = Counts::default();
    for stack in spec.encoder.iter().chain([&spec.stack]) {
        count_stack(&mut all, spec, stack);
    }
    let table = spec.vocab_size * hidden;
    if spec.head.task == Task::LanguageModel {
        all.matmul += table;
        all.other += if spec.tie_word_embeddings { 0 } else { table };
    } else {
        all.other += table;
        all.matmul += spec.head.num_labels * hidden;
    }
    let outputs = if spec.head.task == Task::LanguageModel { spec.vocab_size } else { spec.head.num_labels };
    all.other += usize::from(spec.head.has_bias) * outputs;
    if let Some(transform) = spec.head.transform {
        all.matmul += hidden * hidden;
        all.other += usize::from(transform.has_bias) * hidden;
        all.other += transform.norm.map_or(0, |norm| hidden * (1 + usize::from(norm.has_bias)));
    }
    let parameters = all.matmul + all.other;
    Footprint {
        parameters,
        matmul_parameters: all.matmul,
        weight_bytes_f32: 4 * parameters,
        weight_bytes_bf16: 2 * parameters,
        kv_bytes_per_token_f32: 4 * all.kv,
        training_state_bytes: 16 * parameters,
        forward_flop_per_token: 2 * all.matmul + all.attention_flop,
    }
}

fn count_stack(all: &mut Counts, spec: &Spec, stack: &StackSpec) {
    let hidden = spec.hidden_size;
    let norm = |has_bias: bool| hidden * (1 + usize::from(has_bias));
    all.other += stack.final_norm.iter().chain(&stack.embedding_norm).map(|n| norm(n.has_bias)).sum::<usize>();
    all.other += spec.type_vocab_size * hidden;
    if let Position::Learned { offset } = stack.position {
        all.other += (spec.max_position_embeddings + offset) * hidden;
    }
    if let Some(bias) = stack.relative_bias {
        all.other += bias.num_buckets * stack.layers[0].attention.num_attention_heads;
    }
    for layer in &stack.layers {
        let f = &layer.feed_forward;
        let experts = layer.experts.map_or(1, |experts| experts.num_experts);
        all.matmul += experts * hidden * f.intermediate_size * (2 + usize::from(f.gated));
        all.matmul += layer.experts.map_or(0, |experts| hidden * experts.num_experts);
        all.other += usize::from(f.has_bias) * (f.intermediate_size * (1 + usize::from(f.gated)) + hidden);
        let norms = match layer.residual {
            Residual::PreNorm | Residual::PostNorm | Residual::Parallel => 2,
            Residual::Sandwich => 4,
            Residual::ParallelSharedNorm => 1,
        };
        let absent = usize::from(!layer.has_attention_norm);
        all.other += (norms + usize::from(layer.cross_attention.is_some()) - absent) * norm(layer.norm.has_bias);
        for a in [Some(layer.attention), layer.cross_attention].iter().flatten() {
            let (inner, kv_width) = (a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim);
            all.matmul += hidden * (inner + 2 * kv_width) + inner * hidden;
            all.other += if a.qk_norm.is_some() { 2 * a.head_dim } else { 0 };
            all.other += usize::from(a.has_qkv_bias) * (inner + 2 * kv_width) + usize::from(a.has_output_bias) * hidden;
            all.kv += 2 * kv_width;
            // Two products of `head_dim` per visible key, half of the keys being visible on average.
            let reach = a.sliding_window.unwrap_or(spec.max_position_embeddings).min(spec.max_position_embeddings);
            all.attention_flop += 2 * 2 * inner * reach / if a.is_causal { 2 } else { 1 };
        }
    }
}
