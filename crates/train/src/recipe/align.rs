//! The `[preference]`, `[distill]` and `[rl]` of a recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Stage;
use crate::losses::policy::{KlEstimator, Normalisation, RewardScale};
use crate::losses::preference::{Divergence, DpoLoss, DpoSettings};

/// How preferences are learnt: `reward`, `dpo`, `kto`, `orpo`, `simpo`, `cpo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PreferenceSection {
    /// Losses that are added up; `dpo` only.
    pub loss: Vec<DpoLoss>,
    /// Their weights. Default: 1 each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loss_weights: Vec<f64>,
    /// Strength of the pull towards the reference in `dpo` and `kto`; factor of the preference in `orpo`, `simpo` and `cpo`.
    /// Default: 0.1, in `simpo` 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Share of the preferences that is taken to be wrong: in `dpo` the losses `exo_pair`, `robust`, `aot` and `aot_unpaired`;
    /// `simpo`, `cpo`.
    pub label_smoothing: f64,
    /// How the distance to the reference is measured; `dpo` only.
    pub divergence: Divergence,
    /// α of `divergence = "alpha_divergence"`.
    pub alpha: f64,
    /// Width of the blend of the loss `discopop`.
    pub discopop_tau: f64,
    /// Weight of the negative log-likelihood per token of the chosen answers beside the preference; `orpo`, `simpo` and `cpo`.
    /// Default: 1, in `simpo` 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sft_weight: Option<f64>,
    /// Margin by which a chosen answer should win; `simpo` only.
    pub gamma: f64,
    /// Weight of wanted answers; `kto` only.
    pub desirable_weight: f64,
    /// Weight of unwanted answers; `kto` only.
    pub undesirable_weight: f64,
    /// Factor of the squared sum of a pair's rewards, which keeps them around zero; `reward` only.
    pub centering: f64,
    /// Directory of the model whose answers are the starting point; `dpo` and `kto`. Default: the one of `model.path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Default for PreferenceSection {
    fn default() -> Self {
        Self {
            loss: vec![DpoLoss::Sigmoid],
            loss_weights: Vec::new(),
            beta: None,
            label_smoothing: 0.0,
            divergence: Divergence::ReverseKl,
            alpha: 0.5,
            discopop_tau: 0.05,
            sft_weight: None,
            gamma: 0.5,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            centering: 0.0,
            reference: None,
        }
    }
}

impl PreferenceSection {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// β of a stage.
    pub(crate) fn beta(&self, stage: Stage) -> f32 {
        self.beta.unwrap_or(if stage == Stage::Simpo { 2.0 } else { 0.1 }) as f32
    }

    /// Weight of the likelihood of the chosen answers in a stage.
    pub(crate) fn sft_weight(&self, stage: Stage) -> f32 {
        self.sft_weight.unwrap_or(if stage == Stage::Simpo { 0.0 } else { 1.0 }) as f32
    }

    /// Numbers of the DPO family.
    pub(crate) fn dpo(&self) -> DpoSettings {
        DpoSettings {
            beta: self.beta(Stage::Dpo),
            label_smoothing: self.label_smoothing as f32,
            divergence: self.divergence,
            alpha: self.alpha as f32,
            discopop_tau: self.discopop_tau as f32,
        }
    }

    /// What contradicts itself or is out of range.
    pub(super) fn check(&self, stage: Stage, batch: Option<(usize, usize)>, problems: &mut Vec<String>) {
        if stage.learns_preferences() || stage.is_online() {
            let is_positive = |x: f64| x > 0.0 && x.is_finite();
            let sorts = self.loss.iter().any(|loss| matches!(loss, DpoLoss::Aot | DpoLoss::AotUnpaired));
            let checks = [
                ("loss", self.loss.is_empty(), "a list with one loss or more"),
                (
                    "loss_weights",
                    !(self.loss_weights.is_empty() || self.loss_weights.len() == self.loss.len()),
                    "one weight per loss",
                ),
                ("beta", self.beta.is_some_and(|beta| !(beta > 0.0 && beta.is_finite())), "above 0"),
                ("label_smoothing", !(0.0..0.5).contains(&self.label_smoothing), "at least 0 and below 0.5"),
                (
                    "label_smoothing",
                    self.loss.contains(&DpoLoss::ExoPair) && self.label_smoothing == 0.0,
                    "above 0 for the loss `exo_pair`, such as 0.001",
                ),
                ("discopop_tau", !(self.discopop_tau > 0.0 && self.discopop_tau.is_finite()), "above 0"),
                ("alpha", !self.alpha.is_finite(), "a number"),
                ("desirable_weight", !is_positive(self.desirable_weight), "above 0"),
                ("undesirable_weight", !is_positive(self.undesirable_weight), "above 0"),
                ("centering", !(0.0..f64::INFINITY).contains(&self.centering), "at least 0"),
            ];
            let bad = checks.iter().filter(|(_, bad, _)| *bad);
            problems.extend(bad.map(|(name, _, range)| format!("`preference.{name}` must be {range}")));
            if sorts && batch.is_some_and(|(batch, micro)| micro < batch) {
                problems.push("the losses `aot` sort a whole batch: set `train.micro_batch` to `train.batch`".into());
            }
        } else if !self.is_default() {
            problems.push(format!("`preference` is for stages that learn preferences, `{}` does not", stage.name()));
        }
    }
}

/// How a student imitates a teacher: `distill`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistillSection {
    /// Directory of the teacher, a model with the student's tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Which divergence: 0 is the forward Kullback-Leibler divergence (the student covers all that the teacher does), 1 the
    /// reverse one (it keeps to what the teacher likes), between them a generalised Jensen-Shannon divergence.
    pub beta: f64,
    /// What logits of both are divided by, and the temperature of the student's own answers.
    pub temperature: f64,
    /// Share of the steps that learn on answers which the student has just written to the prompts of the data (generalised
    /// knowledge distillation, Agarwal et al. 2024).
    pub on_policy: f64,
    /// Most tokens of such an answer.
    pub max_new_tokens: usize,
}

impl Default for DistillSection {
    fn default() -> Self {
        Self { teacher: None, beta: 0.5, temperature: 0.9, on_policy: 0.5, max_new_tokens: 128 }
    }
}

impl DistillSection {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What contradicts itself or is out of range.
    pub(super) fn check(&self, stage: Stage, problems: &mut Vec<String>) {
        if stage != Stage::Distill {
            if !self.is_default() {
                problems.push(format!("`distill` is for the stage `distill`, this is `{}`", stage.name()));
            }
            return;
        }
        let checks = [
            ("teacher", self.teacher.is_none(), "set: the directory of the model to imitate"),
            ("beta", !(0.0..=1.0).contains(&self.beta), "between 0 and 1"),
            ("temperature", !(self.temperature > 0.0 && self.temperature.is_finite()), "above 0"),
            ("on_policy", !(0.0..=1.0).contains(&self.on_policy), "between 0 and 1"),
            ("max_new_tokens", self.max_new_tokens == 0, "above 0"),
        ];
        let bad = checks.iter().filter(|(_, bad, _)| *bad);
        problems.extend(bad.map(|(name, _, range)| format!("`distill.{name}` must be {range}")));
    }
}

/// How a model learns from rewards of its own answers: `grpo`, `rloo`, `reinforce`, `ppo`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RlSection {
    /// What gives the rewards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<RewardSource>,
    /// Answers to each prompt. Default: 8, in `rloo` and `reinforce` 2, in `ppo` 1. `train.batch` counts answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Temperature that answers are drawn at, and their probabilities taken at.
    pub temperature: f64,
    /// Passes over the same answers. Default: 1, in `ppo` 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iterations: Option<u64>,
    /// Optimizer steps that a pass is cut into.
    pub minibatches: u64,
    /// Price of a nat of distance from the reference (the model of `model.path`). Default: 0.05, in `grpo` and `reinforce` 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// How that distance is estimated where it is part of the reward (`rloo`, `reinforce`, `ppo`); `grpo` takes `k3`.
    pub kl: KlEstimator,
    /// Distance in nats per answer that `beta` is steered towards (Ziegler et al. 2019); `ppo` only. Default: `beta` is fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_kl: Option<f64>,
    /// How far below 1 a ratio of probabilities counts.
    pub clip_low: f64,
    /// How far above 1. Default: as `clip_low`; 0.28 is "clip-higher".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_high: Option<f64>,
    /// What the loss is a mean over; `grpo` only.
    pub normalisation: Normalisation,
    /// What advantages are divided by; `grpo` only.
    pub scale_rewards: RewardScale,
    /// Discount per token; `ppo` only.
    pub gamma: f64,
    /// Mix of the advantage estimate; `ppo` only.
    pub lambda: f64,
    /// Weight of the value loss; `ppo` only.
    pub value_coefficient: f64,
    /// How far a value may move from the old one; `ppo` only.
    pub value_clip: f64,
    /// Taken from the reward of an answer that does not end. Default: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_end_penalty: Option<f64>,
}

impl Default for RlSection {
    fn default() -> Self {
        Self {
            reward: None,
            samples: None,
            max_new_tokens: 128,
            temperature: 1.0,
            iterations: None,
            minibatches: 1,
            beta: None,
            kl: KlEstimator::K1,
            target_kl: None,
            clip_low: 0.2,
            clip_high: None,
            normalisation: Normalisation::Dapo,
            scale_rewards: RewardScale::Group,
            gamma: 1.0,
            lambda: 0.95,
            value_coefficient: 0.1,
            value_clip: 0.2,
            missing_end_penalty: None,
        }
    }
}

/// Where rewards come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSource {
    /// What gives them.
    pub kind: RewardKind,
    /// Directory of a model that the stage `reward` made, with the tokenizer of this one; `model` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A regular expression; its first group counts, where it has one; `match` only. Default: the last number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The program and its arguments; `program` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Seconds that a program may take for one answer. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
}

/// What gives rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardKind {
    /// The garden's own scorer, for the prompts that `loam data garden` writes: 1 right, 0.5 right and then more, 0 wrong.
    Garden,
    /// 1 where the last match of a pattern in the answer equals the last one in the row's field `answer`, else 0. Numbers are
    /// compared as numbers.
    Match,
    /// A reward model.
    Model,
    /// A program that reads `{"prompt","completion","row"}` lines and writes one `{"reward": number}` line for each.
    Program,
}

/// A number.
pub const DEFAULT_PATTERN: &str = r"-?\d[\d,]*(?:\.\d+)?";

impl RewardSource {
    /// The pattern of `match`.
    pub(crate) fn pattern(&self) -> &str {
        self.pattern.as_deref().unwrap_or(DEFAULT_PATTERN)
    }

    /// The time limit of `program`, in seconds.
    pub(crate) fn timeout(&self) -> f64 {
        self.timeout.unwrap_or(10.0)
    }

    /// What is missing, or belongs to another kind.
    pub fn check(&self, problems: &mut Vec<String>) {
        let own = [
            ("path", self.path.is_some(), RewardKind::Model),
            ("pattern", self.pattern.is_some(), RewardKind::Match),
            ("command", self.command.is_some(), RewardKind::Program),
            ("timeout", self.timeout.is_some(), RewardKind::Program),
        ];
        for (name, _, kind) in own.iter().filter(|(_, is_set, kind)| *is_set && *kind != self.kind) {
            problems.push(format!("`rl.reward.{name}` belongs to the kind {kind:?}").to_lowercase());
        }
        match self.kind {
            RewardKind::Model if self.path.is_none() => problems.push("`rl.reward.path` is missing".into()),
            RewardKind::Match => {
                if let Err(error) = regex::Regex::new(self.pattern()) {
                    problems.push(format!("`rl.reward.pattern` is no regular expression: {error}"));
                }
            }
            RewardKind::Program if self.command.as_ref().is_none_or(Vec::is_empty) => {
                problems.push("`rl.reward.command` is missing".into());
            }
            _ => {}
        }
        if !(self.timeout() > 0.0 && self.timeout().is_finite()) {
            problems.push("`rl.reward.timeout` must be above 0".into());
        }
    }
}

impl RlSection {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn samples(&self, stage: Stage) -> usize {
        self.samples.unwrap_or(match stage {
            Stage::Ppo => 1,
            Stage::Rloo | Stage::Reinforce => 2,
            _ => 8,
        })
    }

    pub(crate) fn iterations(&self, stage: Stage) -> u64 {
        self.iterations.unwrap_or(if stage == Stage::Ppo { 4 } else { 1 })
    }

    pub(crate) fn beta(&self, stage: Stage) -> f64 {
        self.beta.unwrap_or(if matches!(stage, Stage::Ppo | Stage::Rloo) { 0.05 } else { 0.0 })
    }

    pub(crate) fn clip(&self) -> (f32, f32) {
        (self.clip_low as f32, self.clip_high.unwrap_or(self.clip_low) as f32)
    }

    /// What contradicts itself or is out of range.
    pub(super) fn check(&self, stage: Stage, batch: Option<usize>, problems: &mut Vec<String>) {
        if !stage.is_online() {
            if !self.is_default() {
                problems.push(format!("`rl` is for grpo, rloo, reinforce and ppo, this is `{}`", stage.name()));
            }
            return;
        }
        let samples = self.samples(stage);
        let least = if matches!(stage, Stage::Grpo | Stage::Rloo) { 2 } else { 1 };
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let checks = [
            ("reward", self.reward.is_none(), "set: what gives the rewards, such as { kind = \"garden\" }"),
            ("samples", samples < least, "at least 2 in `grpo` and `rloo`, which compare them"),
            ("max_new_tokens", self.max_new_tokens == 0, "above 0"),
            ("temperature", !positive(self.temperature), "above 0"),
            ("iterations", self.iterations == Some(0), "above 0"),
            ("minibatches", self.minibatches == 0, "above 0"),
            ("beta", self.beta.is_some_and(|beta| !(beta >= 0.0 && beta.is_finite())), "at least 0"),
            ("target_kl", self.target_kl.is_some_and(|target| !positive(target)), "above 0"),
            ("clip_low", !(positive(self.clip_low) && self.clip_low <= 1.0), "above 0 and at most 1"),
            ("clip_high", self.clip_high.is_some_and(|high| !positive(high)), "above 0"),
            ("gamma", !(0.0..=1.0).contains(&self.gamma), "between 0 and 1"),
            ("lambda", !(0.0..=1.0).contains(&self.lambda), "between 0 and 1"),
            ("value_clip", !positive(self.value_clip), "above 0"),
        ];
        let bad = checks.iter().filter(|(_, bad, _)| *bad);
        problems.extend(bad.map(|(name, _, range)| format!("`rl.{name}` must be {range}")));
        if let Some(batch) = batch
            && (!batch.is_multiple_of(samples.max(1)) || !(batch as u64).is_multiple_of(self.minibatches.max(1)))
        {
            problems.push(format!(
                "`train.batch` = {batch} answers must be a multiple of `rl.samples` = {samples} and of `rl.minibatches`"
            ));
        }
        if let Some(reward) = &self.reward {
            reward.check(problems);
        }
    }
}
