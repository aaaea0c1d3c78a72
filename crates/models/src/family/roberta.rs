//! RoBERTa (Liu et al. 2019): BERT with one kind of token, positions that begin after the padding's, other heads.

use super::Family;
use super::bert::{like_bert, like_bert_defaults, like_bert_head, pooler};
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, Reads, Spec, Task};
use crate::weight_map::{Transform::Keep, WeightMap, row};

pub(super) const FAMILY: Family = Family {
    name: "roberta",
    architectures: &[
        ("RobertaForMaskedLM", Task::LanguageModel),
        ("RobertaModel", Task::Embedding),
        ("RobertaForSequenceClassification", Task::SequenceClassification),
        ("RobertaForTokenClassification", Task::TokenClassification),
        ("RobertaForQuestionAnswering", Task::QuestionAnswering),
    ],
    spec,
    weights: WeightMap {
        rows: &[
            row("roberta.embeddings.word_embeddings.weight", "embed_tokens.weight", Keep),
            row("roberta.embeddings.position_embeddings.weight", "embed_positions.weight", Keep),
            row("roberta.embeddings.token_type_embeddings.weight", "token_types.weight", Keep),
            row("roberta.embeddings.LayerNorm.[weight|bias]", "embedding_norm.[weight|bias]", Keep),
            row(
                "roberta.encoder.layer.{i}.attention.self.[query|key|value].[weight|bias]",
                "layers.{i}.attention.[q|k|v]_proj.[weight|bias]",
                Keep,
            ),
            row(
                "roberta.encoder.layer.{i}.[attention.output.dense|intermediate.dense|output.dense].[weight|bias]",
                "layers.{i}.[attention.o_proj|feed_forward.up_proj|feed_forward.down_proj].[weight|bias]",
                Keep,
            ),
            row(
                "roberta.encoder.layer.{i}.[attention.output|output].LayerNorm.[weight|bias]",
                "layers.{i}.[attention|feed_forward]_norm.[weight|bias]",
                Keep,
            ),
            row("roberta.pooler.dense.[weight|bias]", "pooler.dense.[weight|bias]", Keep),
            row("lm_head.dense.[weight|bias]", "lm_head.dense.[weight|bias]", Keep),
            row("lm_head.layer_norm.[weight|bias]", "lm_head.norm.[weight|bias]", Keep),
            row("lm_head.decoder.weight", "lm_head.weight", Keep),
            row("lm_head.bias", "lm_head.bias", Keep),
            row("classifier.dense.[weight|bias]", "classifier.dense.[weight|bias]", Keep),
            row("classifier.out_proj.[weight|bias]", "classifier.[weight|bias]", Keep),
            row("classifier.[weight|bias]", "token_classifier.[weight|bias]", Keep),
            row("qa_outputs.[weight|bias]", "qa_outputs.[weight|bias]", Keep),
        ],
        ignored_suffixes: &[".position_ids", "lm_head.decoder.bias"],
        copies: &["lm_head.decoder.weight"],
        optional_prefix: "roberta.",
    },
    defaults: || like_bert_defaults(&FAMILY, OFFSET),
};

/// The padding token is number 1, and so is the last position that no token has.
const OFFSET: usize = 2;

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let head = match c.task(FAMILY.architectures)? {
        Task::Embedding => HeadSpec { transform: Some(pooler()), ..HeadSpec::labels(Task::Embedding, Reads::First, 0) },
        task => like_bert_head(c, task, pooler())?,
    };
    like_bert(FAMILY.name, c, OFFSET, head)
}
