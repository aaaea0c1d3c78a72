//! ModernBERT (Warner et al. 2024): an encoder with the decoders' parts, norms first, rotations, gated feed-forwards, and
//! windows in most layers.

use loam_nn::{AttentionConfig, FeedForwardConfig, NormConfig};
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, Reads, Residual, Spec, StackSpec, Task, TransformSpec};
use crate::weight_map::{Transform::Keep, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "modernbert",
    architectures: &[
        ("ModernBertForMaskedLM", Task::LanguageModel),
        ("ModernBertModel", Task::Embedding),
        ("ModernBertForSequenceClassification", Task::SequenceClassification),
        ("ModernBertForTokenClassification", Task::TokenClassification),
        ("ModernBertForQuestionAnswering", Task::QuestionAnswering),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("model.embeddings.tok_embeddings.weight", "embed_tokens.weight", Keep),
            row("model.embeddings.norm.[weight|bias]", "embedding_norm.[weight|bias]", Keep),
            row("model.layers.{i}.attn_norm.[weight|bias]", "layers.{i}.attention_norm.[weight|bias]", Keep),
            row("model.layers.{i}.attn.Wqkv.weight", "layers.{i}.attention.{q|k|v}_proj.weight", Keep),
            row("model.layers.{i}.attn.Wqkv.bias", "layers.{i}.attention.{q|k|v}_proj.bias", Keep),
            row("model.layers.{i}.attn.Wo.[weight|bias]", "layers.{i}.attention.o_proj.[weight|bias]", Keep),
            row("model.layers.{i}.mlp_norm.[weight|bias]", "layers.{i}.feed_forward_norm.[weight|bias]", Keep),
            row("model.layers.{i}.mlp.Wi.weight", "layers.{i}.feed_forward.{gate|up}_proj.weight", Keep),
            row("model.layers.{i}.mlp.Wi.bias", "layers.{i}.feed_forward.{gate|up}_proj.bias", Keep),
            row("model.layers.{i}.mlp.Wo.[weight|bias]", "layers.{i}.feed_forward.down_proj.[weight|bias]", Keep),
            row("model.final_norm.[weight|bias]", "norm.[weight|bias]", Keep),
            row("head.[dense|norm].[weight|bias]", "lm_head.[dense|norm].[weight|bias]", Keep),
            row("decoder.[weight|bias]", "lm_head.[weight|bias]", Keep),
            row("head.[dense|norm].[weight|bias]", "classifier.[dense|norm].[weight|bias]", Keep),
            row("classifier.[weight|bias]", "classifier.[weight|bias]", Keep),
            row("head.[dense|norm].[weight|bias]", "token_classifier.[dense|norm].[weight|bias]", Keep),
            row("classifier.[weight|bias]", "token_classifier.[weight|bias]", Keep),
            row("head.[dense|norm].[weight|bias]", "qa_outputs.[dense|norm].[weight|bias]", Keep),
            row("classifier.[weight|bias]", "qa_outputs.[weight|bias]", Keep),
        ],
        ignored_suffixes: &[],
        copies: &["decoder.weight"],
        optional_prefix: "model.",
    },
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let hidden_size = c.size("hidden_size")?;
    let heads = c.size("num_attention_heads")?;
    c.divides("num_attention_heads", heads, "hidden_size", hidden_size)?;
    let norm = NormConfig { has_bias: c.flag("norm_bias", false)?, ..NormConfig::layer(c.number("norm_eps", 1e-5)?) };
    let (head_dim, max_position_embeddings) = (hidden_size / heads, c.size("max_position_embeddings")?);
    let attention =
        AttentionConfig::causal(heads, heads, head_dim).with_biases(c.flag("attention_bias", false)?).both_ways();
    let feed_forward = FeedForwardConfig {
        intermediate_size: c.size("intermediate_size")?,
        activation: c.activation("hidden_activation", "gelu")?,
        gated: true,
        has_bias: c.flag("mlp_bias", false)?,
    };
    let mut layers =
        vec![LayerSpec::new(Residual::PreNorm, norm, attention, feed_forward); c.size("num_hidden_layers")?];
    // The embeddings' norm serves the first.
    layers[0].has_attention_norm = false;
    let period = c.optional_size("global_attn_every_n_layers")?.unwrap_or(3);
    // Half of `local_attention` on either side, and the position itself.
    let window = c.size("local_attention")? / 2 + 1;
    let sliding = c.sliding_layers(layers.len(), |layer| layer % period != 0)?;
    for (layer, is_sliding) in layers.iter_mut().zip(sliding) {
        layer.attention.sliding_window = is_sliding.then_some(window);
        layer.rope = Some(c.rope_of_kind(is_sliding, head_dim, max_position_embeddings)?);
    }
    Ok(Spec {
        family: FAMILY.name,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings,
        type_vocab_size: 0,
        embedding_scale: None,
        stack: StackSpec { embedding_norm: Some(norm), ..StackSpec::pre_norm(Position::InAttention, layers) },
        encoder: None,
        head: head(c, norm)?,
        final_logit_softcapping: None,
        tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
        initializer_range: c.number("initializer_range", 0.02)? as f32,
        is_scaled_by_inputs: false,
    })
}

/// Every head begins with the same transform.
fn head(c: Config<'_>, norm: NormConfig) -> Result<HeadSpec, Error> {
    let task = c.task(FAMILY.architectures)?;
    let pooling = match c.text("classifier_pooling", "cls")? {
        "mean" => Reads::Mean,
        _ => Reads::First,
    };
    let (reads, num_labels, has_bias) = match task {
        Task::LanguageModel => (Reads::Every, 0, c.flag("decoder_bias", true)?),
        Task::Embedding => return Ok(HeadSpec::labels(task, pooling, 0)),
        Task::SequenceClassification => (pooling, c.num_labels()?, true),
        Task::TokenClassification => (Reads::Every, c.num_labels()?, true),
        Task::QuestionAnswering => (Reads::Every, 2, true),
    };
    let transform = TransformSpec {
        has_bias: c.flag("classifier_bias", false)?,
        activation: c.activation("classifier_activation", "gelu")?,
        norm: Some(norm),
    };
    Ok(HeadSpec { transform: Some(transform), has_bias, ..HeadSpec::labels(task, reads, num_labels) })
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "vocab_size": 50368,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_activation": "gelu",
        "max_position_embeddings": 1024,
        "norm_eps": 1e-5,
        "norm_bias": false,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "decoder_bias": true,
        "classifier_pooling": "cls",
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
    })
}
