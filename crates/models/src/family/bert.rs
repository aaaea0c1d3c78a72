//! BERT (Devlin et al. 2019): an encoder whose norms come last, with learned positions and two kinds of token.

use loam_nn::{Activation, AttentionConfig, FeedForwardConfig, NormConfig};
use loam_tensor::Unary;
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, Reads, Residual, Spec, StackSpec, Task, TransformSpec};
use crate::weight_map::{Transform::Keep, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "bert",
    architectures: &[
        ("BertForMaskedLM", Task::LanguageModel),
        ("BertModel", Task::Embedding),
        ("BertForSequenceClassification", Task::SequenceClassification),
        ("BertForTokenClassification", Task::TokenClassification),
        ("BertForQuestionAnswering", Task::QuestionAnswering),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("bert.embeddings.word_embeddings.weight", "embed_tokens.weight", Keep),
            row("bert.embeddings.position_embeddings.weight", "embed_positions.weight", Keep),
            row("bert.embeddings.token_type_embeddings.weight", "token_types.weight", Keep),
            row("bert.embeddings.LayerNorm.[weight|bias]", "embedding_norm.[weight|bias]", Keep),
            row(
                "bert.encoder.layer.{i}.attention.self.[query|key|value].[weight|bias]",
                "layers.{i}.attention.[q|k|v]_proj.[weight|bias]",
                Keep,
            ),
            row(
                "bert.encoder.layer.{i}.[attention.output.dense|intermediate.dense|output.dense].[weight|bias]",
                "layers.{i}.[attention.o_proj|feed_forward.up_proj|feed_forward.down_proj].[weight|bias]",
                Keep,
            ),
            row(
                "bert.encoder.layer.{i}.[attention.output|output].LayerNorm.[weight|bias]",
                "layers.{i}.[attention|feed_forward]_norm.[weight|bias]",
                Keep,
            ),
            row("bert.pooler.dense.[weight|bias]", "pooler.dense.[weight|bias]", Keep),
            row("bert.pooler.dense.[weight|bias]", "classifier.dense.[weight|bias]", Keep),
            row("cls.predictions.transform.dense.[weight|bias]", "lm_head.dense.[weight|bias]", Keep),
            row("cls.predictions.transform.LayerNorm.[weight|bias]", "lm_head.norm.[weight|bias]", Keep),
            row("cls.predictions.decoder.weight", "lm_head.weight", Keep),
            row("cls.predictions.bias", "lm_head.bias", Keep),
            row("classifier.[weight|bias]", "classifier.[weight|bias]", Keep),
            row("classifier.[weight|bias]", "token_classifier.[weight|bias]", Keep),
            row("qa_outputs.[weight|bias]", "qa_outputs.[weight|bias]", Keep),
        ],
        ignored_suffixes: &[".position_ids", "cls.predictions.decoder.bias"],
        copies: &["cls.predictions.decoder.weight"],
        optional_prefix: "bert.",
    },
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let head = match c.task(FAMILY.architectures)? {
        Task::Embedding => HeadSpec { transform: Some(pooler()), ..HeadSpec::labels(Task::Embedding, Reads::First, 0) },
        task => like_bert_head(c, task, pooler())?,
    };
    // An argument of transformers' class, here a key: files of GGUF mostly have no such layer.
    let is_whole = head.task == Task::LanguageModel || c.flag("add_pooling_layer", true)?;
    like_bert(FAMILY.name, c, 0, HeadSpec { transform: head.transform.filter(|_| is_whole), ..head })
}

/// A dense layer and tanh.
pub(super) fn pooler() -> TransformSpec {
    TransformSpec { has_bias: true, activation: Activation(Unary::Tanh), norm: None }
}

/// The heads that BERT and its kin share; `first` is what a sequence's classifier does to its first hidden state.
pub(super) fn like_bert_head(c: Config<'_>, task: Task, first: TransformSpec) -> Result<HeadSpec, Error> {
    let (reads, transform, num_labels) = match task {
        Task::LanguageModel => {
            // Always GELU in RoBERTa and DistilBERT, which say nothing else.
            let activation = c.activation("hidden_act", c.text("activation", "gelu")?)?;
            let norm = Some(NormConfig::layer(c.number("layer_norm_eps", 1e-12)?));
            (Reads::Every, Some(TransformSpec { has_bias: true, activation, norm }), 0)
        }
        Task::Embedding => (Reads::First, None, 0),
        Task::SequenceClassification => (Reads::First, Some(first), c.num_labels()?),
        Task::TokenClassification => (Reads::Every, None, c.num_labels()?),
        Task::QuestionAnswering => (Reads::Every, None, 2),
    };
    let has_bias = task != Task::Embedding;
    Ok(HeadSpec { transform, has_bias, ..HeadSpec::labels(task, reads, num_labels) })
}

/// BERT's stack, its table of positions beginning `offset` rows late.
pub(super) fn like_bert(family: &'static str, c: Config<'_>, offset: usize, head: HeadSpec) -> Result<Spec, Error> {
    let hidden_size = c.size("hidden_size")?;
    let heads = c.size("num_attention_heads")?;
    c.divides("num_attention_heads", heads, "hidden_size", hidden_size)?;
    if c.flag("is_decoder", false)? {
        return Err(Error::config("is_decoder", "is true, which is not supported"));
    }
    let norm = NormConfig::layer(c.number("layer_norm_eps", 1e-12)?);
    let attention = AttentionConfig::causal(heads, heads, hidden_size / heads).with_biases(true).both_ways();
    let feed_forward = FeedForwardConfig {
        intermediate_size: c.size("intermediate_size")?,
        activation: c.activation("hidden_act", "gelu")?,
        gated: false,
        has_bias: true,
    };
    let layer = LayerSpec::new(Residual::PostNorm, norm, attention, feed_forward);
    Ok(Spec {
        family,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings: c.size("max_position_embeddings")?.saturating_sub(offset).max(1),
        type_vocab_size: c.optional_size("type_vocab_size")?.unwrap_or(2),
        embedding_scale: None,
        stack: StackSpec::post_norm(Position::Learned { offset }, vec![layer; c.size("num_hidden_layers")?]),
        encoder: None,
        head,
        final_logit_softcapping: None,
        tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
        initializer_range: c.number("initializer_range", 0.02)? as f32,
        is_scaled_by_inputs: false,
    })
}

fn defaults() -> Value {
    like_bert_defaults(&FAMILY, 0)
}

pub(super) fn like_bert_defaults(family: &Family, offset: usize) -> Value {
    json!({
        "architectures": [family.architectures[0].0],
        "model_type": family.name,
        "vocab_size": 30522,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 512 + offset,
        "type_vocab_size": if offset == 0 { 2 } else { 1 },
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
    })
}
