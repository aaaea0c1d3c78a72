//! The `[data]` of a recipe.

use std::collections::BTreeMap;

use loam_data::dialogue::Format;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Text and how it is cut into training sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Files to train on, as glob patterns: .txt, .md, .json, .jsonl (also .gz, .zst), .csv, .parquet.
    pub train: Vec<String>,
    /// Files to evaluate on, as glob patterns. Default: a part of `train` is held out.
    pub validation: Vec<String>,
    /// Share of the documents that is held out, chosen by a hash of their text. Default: 0.01, unless `validation` or
    /// `validation_tail` is set or each file is one text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// Share of the text that is held out, taken from its end. Default: 0.05 where each file is one text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_tail: Option<f64>,
    /// Column or field that holds the text in .jsonl, .csv and .parquet files. Default: the one called `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// Where a plain text file (.txt, .md) holds several documents, what separates them.
    pub text_split: TextSplit,
    /// What the rows of tables look like, in the stages of conversations and of alignment. Default: it is found out from
    /// each file's first row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<DataFormat>,
    /// A `dataset_info.json` in LLaMA-Factory's style; `train` and `validation` then name data sets of it instead of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset_info: Option<String>,
    /// How text becomes sequences. Default: `packed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<DataMode>,
    /// Tokens per sequence. Default: the model's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<usize>,
    /// Documents that are left out because an earlier one is like them.
    pub dedup: Dedup,
    /// Names of the fields in .jsonl, .csv and .parquet files, where they differ from the stage's own: `source` and
    /// `target` (seq2seq); `text`, `text_pair` and `label` (classify); `tokens` and `tags` (token_classify); `context`,
    /// `question` and `answers` (qa); `anchor`, `positive` and `negative` (contrastive); what is asked and answered, by
    /// `format`: `messages`, `conversations`, `instruction`, `input`, `output`, `history`, `system`, `tools`, `prompt` and
    /// `completion` (sft, distill, and the stages of alignment), with `chosen`, `rejected` and `margin` (reward, dpo, orpo,
    /// simpo, cpo), `label` or pairs (kto), `answer` (grpo, rloo, reinforce, ppo). A `text_pair` or a `negative` is read only
    /// where it is named here. Default: their own names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// What labels are; `classify` only.
    pub labels: Labels,
    /// How plain text is damaged for a model to repair; `seq2seq` only, where `none` reads pairs of source and target.
    pub noise: Noise,
    /// Share of the tokens that is masked; `masked_lm` only. Default: 0.15.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_share: Option<f64>,
    /// Whether all tokens of a word are masked together; `masked_lm` only.
    pub whole_words: bool,
    /// Tokens of a row's targets; `seq2seq` only, where `seq_len` counts the sources. Default: as many as fill rows on both
    /// sides alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_len: Option<usize>,
    /// Tokens that neighbouring windows of a long passage share; `qa` only. Default: 128, at most a quarter of `seq_len`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_stride: Option<usize>,
}

/// Share of the tokens that `masked_lm` masks by default.
pub(crate) const MASK_SHARE: f64 = 0.15;
/// Tokens that windows of `qa` share by default.
pub(crate) const DOC_STRIDE: usize = 128;

impl DataSection {
    /// The field of files that is called `name` here.
    pub(crate) fn field(&self, name: &str) -> String {
        self.fields.get(name).cloned().unwrap_or_else(|| name.to_owned())
    }
}

/// What a row of a table of conversations looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    /// `messages`: a list of `{role, content}` as in the API of OpenAI, and `tools` beside it.
    Messages,
    /// `conversations`: a list of `{from, value}`, and `system` and `tools` beside it.
    Sharegpt,
    /// `instruction`, `input` and `output`, and `system` and `history` beside them.
    Alpaca,
    /// `prompt` and `completion`: texts, or lists of messages. `question` and `answer` are read so, too.
    PromptCompletion,
}

impl From<DataFormat> for Format {
    fn from(format: DataFormat) -> Self {
        match format {
            DataFormat::Messages => Self::Messages,
            DataFormat::Sharegpt => Self::Sharegpt,
            DataFormat::Alpaca => Self::Alpaca,
            DataFormat::PromptCompletion => Self::PromptCompletion,
        }
    }
}

/// What the label of a text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// One class.
    #[default]
    Class,
    /// Any number of classes.
    Classes,
    /// A number.
    Value,
}

/// How a text is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// Not at all.
    #[default]
    None,
    /// Spans are replaced by sentinels, and the target says what they were (T5, Raffel et al. 2020).
    Spans,
    /// Spans are replaced by one mask each, and the target is the whole text (BART, Lewis et al. 2020).
    Infilling,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            validation: Vec::new(),
            validation_fraction: None,
            validation_tail: None,
            text_column: None,
            text_split: TextSplit::File,
            format: None,
            dataset_info: None,
            mode: None,
            seq_len: None,
            dedup: Dedup::None,
            fields: BTreeMap::new(),
            labels: Labels::Class,
            noise: Noise::None,
            mask_share: None,
            whole_words: false,
            target_len: None,
            doc_stride: None,
        }
    }
}

/// How a plain text file becomes documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextSplit {
    /// The file is one document.
    File,
    /// Empty lines separate documents.
    EmptyLine,
    /// The mark `<|endoftext|>` separates documents.
    EndOfText,
}

/// How text becomes sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataMode {
    /// Windows of one long text, in a new order and shifted in every epoch.
    Contiguous,
    /// Whole documents side by side; attention stays within each of them.
    Packed,
}

/// Which documents count as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dedup {
    /// None.
    #[default]
    None,
    /// Equal ones.
    Exact,
    /// Equal and nearly equal ones (MinHash over shingles of words, Broder 1997).
    Near,
}
