//! DistilBERT (Sanh et al. 2019): BERT with half of the blocks, without kinds of token and without a pooler.

use loam_nn::{Activation, AttentionConfig, FeedForwardConfig, NormConfig};
use loam_tensor::Unary;
use serde_json::{Value, json};

use super::Family;
use super::bert::like_bert_head;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{LayerSpec, Position, Residual, Spec, StackSpec, Task, TransformSpec};
use crate::weight_map::{Transform::Keep, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "distilbert",
    architectures: &[
        ("DistilBertForMaskedLM", Task::LanguageModel),
        ("DistilBertModel", Task::Embedding),
        ("DistilBertForSequenceClassification", Task::SequenceClassification),
        ("DistilBertForTokenClassification", Task::TokenClassification),
        ("DistilBertForQuestionAnswering", Task::QuestionAnswering),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("distilbert.embeddings.word_embeddings.weight", "embed_tokens.weight", Keep),
            row("distilbert.embeddings.position_embeddings.weight", "embed_positions.weight", Keep),
            row("distilbert.embeddings.LayerNorm.[weight|bias]", "embedding_norm.[weight|bias]", Keep),
            row(
                "distilbert.transformer.layer.{i}.attention.[q|k|v|out]_lin.[weight|bias]",
                "layers.{i}.attention.[q|k|v|o]_proj.[weight|bias]",
                Keep,
            ),
            row(
                "distilbert.transformer.layer.{i}.sa_layer_norm.[weight|bias]",
                "layers.{i}.attention_norm.[weight|bias]",
                Keep,
            ),
            row(
                "distilbert.transformer.layer.{i}.ffn.lin1.[weight|bias]",
                "layers.{i}.feed_forward.up_proj.[weight|bias]",
                Keep,
            ),
            row(
                "distilbert.transformer.layer.{i}.ffn.lin2.[weight|bias]",
                "layers.{i}.feed_forward.down_proj.[weight|bias]",
                Keep,
            ),
            row(
                "distilbert.transformer.layer.{i}.output_layer_norm.[weight|bias]",
                "layers.{i}.feed_forward_norm.[weight|bias]",
                Keep,
            ),
            row("vocab_transform.[weight|bias]", "lm_head.dense.[weight|bias]", Keep),
            row("vocab_layer_norm.[weight|bias]", "lm_head.norm.[weight|bias]", Keep),
            row("vocab_projector.weight", "lm_head.weight", Keep),
            row("vocab_projector.bias", "lm_head.bias", Keep),
            row("pre_classifier.[weight|bias]", "classifier.dense.[weight|bias]", Keep),
            row("classifier.[weight|bias]", "classifier.[weight|bias]", Keep),
            row("classifier.[weight|bias]", "token_classifier.[weight|bias]", Keep),
            row("qa_outputs.[weight|bias]", "qa_outputs.[weight|bias]", Keep),
        ],
        ignored_suffixes: &[],
        copies: &["vocab_projector.weight"],
        optional_prefix: "distilbert.",
    },
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let hidden_size = c.size("dim")?;
    let heads = c.size("n_heads")?;
    c.divides("n_heads", heads, "dim", hidden_size)?;
    let norm = NormConfig::layer(1e-12);
    let attention = AttentionConfig::causal(heads, heads, hidden_size / heads).with_biases(true).both_ways();
    let feed_forward = FeedForwardConfig {
        intermediate_size: c.size("hidden_dim")?,
        activation: c.activation("activation", "gelu")?,
        gated: false,
        has_bias: true,
    };
    let layer = LayerSpec::new(Residual::PostNorm, norm, attention, feed_forward);
    // The classifier has ReLU where BERT's has tanh.
    let first = TransformSpec { has_bias: true, activation: Activation(Unary::Relu), norm: None };
    Ok(Spec {
        family: FAMILY.name,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings: c.size("max_position_embeddings")?,
        type_vocab_size: 0,
        embedding_scale: None,
        stack: StackSpec::post_norm(Position::Learned { offset: 0 }, vec![layer; c.size("n_layers")?]),
        encoder: None,
        head: like_bert_head(c, c.task(FAMILY.architectures)?, first)?,
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
        "vocab_size": 30522,
        "dim": 256,
        "hidden_dim": 1024,
        "n_layers": 3,
        "n_heads": 4,
        "activation": "gelu",
        "max_position_embeddings": 512,
        "sinusoidal_pos_embds": false,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
    })
}
