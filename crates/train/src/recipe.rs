//! [`Recipe`]: everything that decides a training run, as a TOML file.
//!
//! The types below are the only description of it: the JSON schema, the reference page `docs/reference/recipe.md`, the
//! message for a misspelt key and the check of `--set` all come from them.

mod align;
mod check;
mod data;
mod depth;
mod parse;
mod peft;
mod reference;
mod resolve;
mod stage;

use loam_models::{Fan, Init};
use loam_tensor::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::optim::OptimizerSettings;

pub use align::{DEFAULT_PATTERN, DistillSection, PreferenceSection, RewardKind, RewardSource, RlSection};
pub(crate) use data::{DOC_STRIDE, MASK_SHARE};
pub use data::{DataFormat, DataMode, DataSection, Dedup, Labels, Noise, TextSplit};
pub use depth::{DepthRule, depth_rule};
pub(crate) use parse::changed_keys;
pub use peft::{PeftEncoder, PeftInit, PeftMethod, PeftPromptInit, PeftSection};
pub use reference::{annotated, reference_page, schema};
pub use resolve::Facts;
pub(crate) use resolve::{DEFAULT_MIN_FREQUENCY, DEFAULT_TOKENIZER_BYTES, DEFAULT_VOCAB_SIZE, HELD_OUT};
pub use stage::Stage;

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
    /// An adapter to train instead of the model. Default: none, the model is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peft: Option<PeftSection>,
    /// The optimization.
    #[serde(default)]
    pub train: TrainSection,
    /// How preferences are learnt.
    #[serde(default, skip_serializing_if = "PreferenceSection::is_default")]
    pub preference: PreferenceSection,
    /// How a teacher is imitated.
    #[serde(default, skip_serializing_if = "DistillSection::is_default")]
    pub distill: DistillSection,
    /// How a model learns from rewards.
    #[serde(default, skip_serializing_if = "RlSection::is_default")]
    pub rl: RlSection,
}

/// The model: an existing one (`path`), or a new one (`family` with its `config.json` fields, or `depth` alone).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelSection {
    /// Directory of an existing model in Hugging Face layout. Default: a new model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Architecture of a new model: `gpt2`, `llama`, `mistral`, `qwen2`, `qwen3`, `gemma2`, `gemma3_text`, `phi3`,
    /// `gpt_neox`, `opt`, `mixtral`, `qwen3_moe`, `bert`, `roberta`, `distilbert`, `modernbert`, `t5`, `bart` or `marian`.
    /// Default: `llama` where `depth` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Whether a model that is opened gets a head for this stage where its checkpoint has none, or another: its weights
    /// are drawn anew, and reported. Default: false, such a checkpoint is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_head: Option<bool>,
    /// Number of layers, from which the rule below chooses every other size, the learning rate, the batch and the
    /// number of tokens that are not set. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Tokens of training per parameter of the matrix products, where `depth` chooses the length of the run.
    /// Default: 12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_parameter: Option<f64>,
    /// How the matrices of a new model's blocks start. Default: `normal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initializer: Option<Initializer>,
    /// Any further key is a field of the family's `config.json`, such as `hidden_size`. Default: the family's own.
    #[serde(flatten)]
    pub config: Map<String, Value>,
}

/// How a matrix of a new model starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initializer {
    /// Normal with the family's `initializer_range`, and less in projections to the residual stream (Radford et al. 2019).
    Normal,
    /// Normal with `initializer_range` everywhere, drawn again beyond two standard deviations.
    TruncatedNormal,
    /// Normal with variance 2 / (inputs + outputs) (Glorot and Bengio 2010).
    XavierNormal,
    /// Uniform with that variance.
    XavierUniform,
    /// Normal with variance 1 / inputs (He et al. 2015, without the factor for rectifiers).
    KaimingNormal,
    /// Uniform with that variance.
    KaimingUniform,
    /// Orthonormal rows or columns (Saxe et al. 2014).
    Orthogonal,
}

impl Initializer {
    /// What it means for a matrix; `None` is what a new model has anyway.
    pub(crate) fn init(self, initializer_range: f32) -> Option<Init> {
        match self {
            Self::Normal => None,
            Self::TruncatedNormal => Some(Init::TruncatedNormal { std: initializer_range }),
            Self::XavierNormal => Some(Init::XavierNormal { gain: 1.0 }),
            Self::XavierUniform => Some(Init::XavierUniform { gain: 1.0 }),
            Self::KaimingNormal => Some(Init::KaimingNormal { fan: Fan::In, gain: 1.0 }),
            Self::KaimingUniform => Some(Init::KaimingUniform { fan: Fan::In, gain: 1.0 }),
            Self::Orthogonal => Some(Init::Orthogonal { gain: 1.0 }),
        }
    }
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
    /// Further special tokens of a new tokenizer, after its own. Default: none, but `<mask>` for `masked_lm` and for
    /// `data.noise = "infilling"`, and `<extra_id_0>` to `<extra_id_99>` for `data.noise = "spans"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<Vec<String>>,
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

/// The optimization: an optimizer with a learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Name of the run, part of its directory's name. Default: the recipe file's name. A run that goes on keeps its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Number format of matrix products and saved activations; weights are always f32, and so is the optimizer's state but
    /// for `adamw8bit`.
    pub precision: PrecisionChoice,
    /// Which activations are thrown away and computed again in backward: the same result in less memory and more time.
    pub recompute: Recompute,
    /// Threads. Default: one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// How gradients change weights.
    pub optimizer: OptimizerKind,
    /// Highest learning rate. Default: by `model.depth` where that is set, else 6e-4 for a new model, 5e-5 for one
    /// that is opened, 2e-5 in `sft` and `distill`, 1e-4 in `reward`, 3e-6 in `ppo` and 1e-6 in the other stages of alignment; with
    /// `[peft]` 2e-4, 1e-3 in `p_tuning`, 5e-3 in `vera`, `ia3`, `prefix` and `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Learning rate at the end of the run, as a fraction of `lr`; `inverse_sqrt` has no end and does not look at it.
    pub min_lr_ratio: f64,
    /// Course of the learning rate after the warmup.
    pub schedule: ScheduleKind,
    /// Fraction of the steps in which the learning rate rises from zero, or in `one_cycle` from a 25th.
    pub warmup: f64,
    /// Fraction of the steps in which the learning rate falls at the end; `wsd` only. Default: 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
    /// Waves of `cosine_restarts`. Default: 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles: Option<u64>,
    /// Exponent of `polynomial`; 1 is `linear`. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// Tokens per optimizer step, an alternative to `batch`. Default: by `model.depth` where that is set, else 16384 for text
    /// (`pretrain`, `masked_lm`, `seq2seq`) and 4096 for the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<u64>,
    /// Sequences of `data.seq_len` tokens per optimizer step, an alternative to `batch_tokens`. Conversations are packed
    /// into such sequences, too. In stages of alignment: pairs (`kto`: answers), or answers that are written before the next
    /// steps. Default there: 16.
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
    /// Weight decay, of matrices only: biases and norms have none. Decoupled (times `lr`, beside the gradient) in
    /// `adamw`, `adamw8bit`, `adafactor`, `lion` and `muon`; an L2 penalty, a part of the gradient, in the others.
    pub weight_decay: f64,
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean; in `lion` of the mean that is kept.
    pub beta2: f64,
    /// Added to the root of the squared gradient's mean. `adafactor` has its own.
    pub eps: f64,
    /// How much of the gradients before is kept, in `momentum`, `nesterov` and `muon` only. Default: 0.95 in `muon`, else
    /// 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Largest L2 norm of all gradients together; larger ones are scaled down to it. 0 is off.
    pub clip: f64,
    /// Probability that a residual branch's element is zeroed in training.
    pub dropout: f64,
    /// Strength α of uniform noise on the token vectors in training, α / sqrt(tokens of the text × width) at most (NEFTune, Jain
    /// et al. 2023); 5 is usual, `sft` only. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neftune_alpha: Option<f64>,
    /// Share of the target's weight that is spread over all tokens alike, in training (Szegedy et al. 2016). 0 is off.
    pub label_smoothing: f64,
    /// Factor of the mean of (ln of the sum of e^logit)², which is added to the loss in training and keeps the logits from
    /// drifting; 1e-4 in PaLM (Chowdhery et al. 2022). 0 is off.
    pub z_loss: f64,
    /// Decay of a running mean of the weights, such as 0.999, which evaluations, samples and the finished model take instead
    /// of the last ones (Polyak and Juditsky 1992). It takes 4 bytes per weight. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// What cosines are divided by; `contrastive` only. Default: 0.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
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
            optimizer: OptimizerKind::Adamw,
            lr: None,
            min_lr_ratio: 0.1,
            schedule: ScheduleKind::Cosine,
            warmup: 0.05,
            decay: None,
            cycles: None,
            power: None,
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
            momentum: None,
            clip: 1.0,
            dropout: 0.0,
            neftune_alpha: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            ema_decay: None,
            temperature: None,
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
    /// Evaluations in a row without a gain after which the run ends.
    pub patience: u64,
    /// A gain is a loss that is lower than the lowest one before by more than this, in nats per token.
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

    /// What it comes to on this machine.
    pub fn settled(self) -> Precision {
        self.name().parse().unwrap_or_default()
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

/// How gradients change weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    #[default]
    Adamw,
    /// Running means of gradient and squared gradient (Kingma and Ba 2015).
    Adam,
    /// Plain gradient descent; it wants a learning rate of 0.1 or so.
    Sgd,
    /// Gradient descent with momentum (Polyak 1964).
    Momentum,
    /// The same, looking ahead (Nesterov 1983, Sutskever et al. 2013).
    Nesterov,
    /// Rates that fall with the gradients seen (Duchi et al. 2011).
    Adagrad,
    /// The gradient over its running root mean square, with decay `beta2` (Tieleman and Hinton 2012).
    Rmsprop,
    /// Second moments of rows and columns only, next to no state; `lr` is relative to the weights (Shazeer and Stern
    /// 2018).
    Adafactor,
    /// The sign of a running mean; it wants an `lr` 3 to 10 times smaller than `adamw` (Chen et al. 2023).
    Lion,
    /// Orthogonalized momentum for the matrices of the blocks, scaled to the size of `adamw`'s updates, which all else
    /// has (Jordan et al. 2024, Liu et al. 2025).
    Muon,
    /// `adamw` with moments of 8 bits, a quarter of its state (Dettmers et al. 2022).
    Adamw8bit,
}

impl OptimizerKind {
    /// Whether it looks at `train.momentum`.
    pub fn has_momentum(self) -> bool {
        matches!(self, Self::Momentum | Self::Nesterov | Self::Muon)
    }
}

impl TrainSection {
    /// The optimizer and its settings, defaults filled in.
    pub(crate) fn optimizer_settings(&self) -> OptimizerSettings {
        OptimizerSettings {
            kind: self.optimizer,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            momentum: self.momentum.unwrap_or(if self.optimizer == OptimizerKind::Muon { 0.95 } else { 0.9 }),
            weight_decay: self.weight_decay,
        }
    }
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
    /// Half a cosine wave to the minimum, again and again from the top, `cycles` times (Loshchilov and Hutter 2017).
    CosineRestarts,
    /// To the minimum with a power of the way that is left.
    Polynomial,
    /// One over the root of the step (Vaswani et al. 2017, the "Noam" schedule), from the end of the warmup on.
    InverseSqrt,
    /// Half a cosine wave up from a 25th in the warmup, half a one down to the minimum (Smith and Topin 2019).
    OneCycle,
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
