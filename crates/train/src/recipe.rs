//! [`Recipe`]: everything that decides a training run, as a TOML file.
//!
//! The types below are the only description of it: the JSON schema, the reference page `docs/reference/recipe.md`, the
//! message for a misspelt key and the check of `--set` all come from them.

mod check;
mod depth;
mod parse;
mod reference;
mod resolve;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use depth::{DepthRule, depth_rule};
pub(crate) use parse::changed_keys;
pub use reference::{annotated, reference_page, schema};
pub use resolve::Facts;
pub(crate) use resolve::{DEFAULT_MIN_FREQUENCY, DEFAULT_TOKENIZER_BYTES, DEFAULT_VOCAB_SIZE, HELD_OUT};

/// What a run starts from and what it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What is trained.
    pub stage: Stage,
    /// Seed of everything random: fresh weights, the order of the data, dropout, samples.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The model that is trained.
    #[serde(default)]
    pub model: ModelSection,
    /// The tokenizer of a new model. A model that is opened brings its own.
    #[serde(default, skip_serializing_if = "TokenizerSection::is_empty")]
    pub tokenizer: TokenizerSection,
    /// The text.
    #[serde(default)]
    pub data: DataSection,
    /// The optimization.
    #[serde(default)]
    pub train: TrainSection,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The next token of plain text.
    Pretrain,
    /// The assistant's tokens of conversations.
    Sft,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 2] = [Self::Pretrain, Self::Sft];

    /// The name that recipes use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Sft => "sft",
        }
    }
}

/// The model: an existing one (`path`), or a new one (`family` with its `config.json` fields, or `depth` alone).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelSection {
    /// Directory of an existing model in Hugging Face layout. Default: a new model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Architecture of a new model: `gpt2` or `llama`. Default: `llama` where `depth` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Number of layers, from which the rule below chooses every other size, the learning rate, the batch and the
    /// number of tokens that are not set. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Tokens of training per parameter of the matrix products, where `depth` chooses the length of the run.
    /// Default: 12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_parameter: Option<f64>,
    /// Any further key is a field of the family's `config.json`, such as `hidden_size`. Default: the family's own.
    #[serde(flatten)]
    pub config: Map<String, Value>,
}

/// The tokenizer of a new model: an existing one (`path`), or how to train one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSection {
    /// A `tokenizer.json`, or a directory that holds one. Default: one is trained on `data.train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How a new one cuts text. Default: `byte_bpe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<TokenizerKind>,
    /// Size of a new vocabulary, in tokens, special ones included. Default: 8192; `char` takes every character there
    /// is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// How often a pair or a word must occur to be learnt. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_frequency: Option<u64>,
    /// Whether every digit is a token of its own; `byte_bpe` only. Default: false, groups of up to three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_digits: Option<bool>,
    /// Most text that a new vocabulary is learnt from, in bytes. Default: 100000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// How a tokenizer cuts text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    /// Byte-level byte-pair encoding (Radford et al. 2019): no text is unknown to it.
    ByteBpe,
    /// WordPiece (Schuster and Nakajima 2012).
    #[serde(alias = "word_piece")]
    Wordpiece,
    /// Unigram language model (Kudo 2018).
    Unigram,
    /// One token per character.
    Char,
}

/// Text and how it is cut into training sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Files to train on, as glob patterns: .txt, .md, .jsonl (also .gz, .zst), .csv, .parquet.
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
    /// How text becomes sequences. Default: `packed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<DataMode>,
    /// Tokens per sequence. Default: the model's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<usize>,
    /// Documents that are left out because an earlier one is like them.
    pub dedup: Dedup,
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
            mode: None,
            seq_len: None,
            dedup: Dedup::None,
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

/// The optimization: AdamW (Loshchilov and Hutter 2019) with a learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Name of the run, part of its directory's name. Default: the recipe file's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Number format of matrix products and saved activations; weights and optimizer state are always f32.
    pub precision: PrecisionChoice,
    /// Which activations are thrown away and computed again in backward: the same result in less memory and more time.
    pub recompute: Recompute,
    /// Threads. Default: one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Highest learning rate. Default: by `model.depth` where that is set, else 6e-4 (pretrain) or 2e-5 (sft).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Learning rate at the end of the run, as a fraction of `lr`.
    pub min_lr_ratio: f64,
    /// Course of the learning rate after the warmup.
    pub schedule: ScheduleKind,
    /// Fraction of the steps in which the learning rate rises from zero.
    pub warmup: f64,
    /// Fraction of the steps in which the learning rate falls at the end; `wsd` only. Default: 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
    /// Tokens per optimizer step, an alternative to `batch`. Default: by `model.depth` where that is set, else 16384 (pretrain) or 4096 (sft).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<u64>,
    /// Sequences of `data.seq_len` tokens per optimizer step, an alternative to `batch_tokens`. Conversations are packed
    /// into such sequences, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Sequences per forward pass: smaller takes less memory and gives the same result. Default: as many as have 8192
    /// tokens together, at least one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Optimizer steps. One of `steps`, `epochs` and `tokens` is needed, unless `model.depth` chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Length of the run in passes over the training data, an alternative to `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Length of the run in tokens, an alternative to `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Decoupled weight decay, of matrices only: biases and norms have none.
    pub weight_decay: f64,
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the root of the squared gradient's mean.
    pub eps: f64,
    /// Largest L2 norm of all gradients together; larger ones are scaled down to it. 0 is off.
    pub clip: f64,
    /// Probability that a residual branch's element is zeroed in training.
    pub dropout: f64,
    /// Steps between evaluations; 0 is only at the end. Default: a tenth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Batches per evaluation, at most; the evaluation at the end takes all of the held-out text.
    pub eval_batches: u64,
    /// Steps between samples of the model's text; 0 is never. Default: as `eval_every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_every: Option<u64>,
    /// What the samples start with. Default: one that starts from nothing.
    pub sample_prompts: Vec<String>,
    /// Length of a sample, in tokens.
    pub sample_tokens: usize,
    /// Steps between checkpoints; 0 is only at the end. Default: a fifth of the run, at most 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints that are kept, the newest ones.
    pub keep_checkpoints: usize,
    /// Ends the run once the evaluation gets no better, and takes the best weights. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStop>,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            name: None,
            precision: PrecisionChoice::Auto,
            recompute: Recompute::Auto,
            threads: None,
            lr: None,
            min_lr_ratio: 0.1,
            schedule: ScheduleKind::Cosine,
            warmup: 0.05,
            decay: None,
            batch_tokens: None,
            batch: None,
            micro_batch: None,
            steps: None,
            epochs: None,
            tokens: None,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip: 1.0,
            dropout: 0.0,
            eval_every: None,
            eval_batches: 20,
            sample_every: None,
            sample_prompts: Vec::new(),
            sample_tokens: 100,
            checkpoint_every: None,
            keep_checkpoints: 2,
            early_stop: None,
        }
    }
}

/// When to give up hoping for a better evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// Evaluations in a row that may pass without a better loss.
    pub patience: u64,
    /// How much lower the loss must be to count as better, in nats per token.
    #[serde(default)]
    pub min_delta: f64,
}

/// Number format of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionChoice {
    /// bf16 where the processor multiplies it natively, else f32.
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16 operands, sums in f32.
    Bf16,
}

impl PrecisionChoice {
    /// The name that recipes use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Which activations backward computes again instead of keeping them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// None where they fit into memory, else those of a block.
    #[default]
    Auto,
    /// None.
    None,
    /// Those inside of a block: its input is kept. A third more time.
    Block,
}

/// Course of the learning rate after the warmup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// It stays.
    Constant,
    /// A straight line to the minimum.
    Linear,
    /// Half a cosine wave to the minimum (Loshchilov and Hutter 2017).
    Cosine,
    /// It stays, and falls at the end (warmup-stable-decay, Hu et al. 2024).
    Wsd,
}

fn default_seed() -> u64 {
    42
}

impl TokenizerSection {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
