//! Losses and advantages of reinforcement learning on answers.
//!
//! Tensors hold one number per token of all answers end to end, `[tokens]`, or one per answer; an answer is a range of the
//! tokens. What needs no gradient works on slices. Natural logarithms.

use std::ops::Range;

use loam_tensor::{Tensor, Unary};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::same_shape;

/// An estimate of KL(policy ‖ reference) from tokens that the policy drew (Schulman 2020, "Approximating KL divergence").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// ln(p / q): unbiased, and negative now and then.
    #[default]
    K1,
    /// ln(p / q)² / 2: little variance, biased.
    K2,
    /// q / p - 1 - ln(q / p): unbiased, and never negative.
    K3,
}

/// The estimate of every token.
pub fn kl(estimator: KlEstimator, log_probs: &Tensor, reference: &Tensor) -> Tensor {
    same_shape("kl", log_probs, reference);
    let ratio = reference - log_probs;
    match estimator {
        KlEstimator::K1 => -&ratio,
        KlEstimator::K2 => ratio.unary(Unary::Square).scale(0.5),
        KlEstimator::K3 => ratio.map(|r| (r.exp_m1() - r, r.exp_m1())),
    }
}

/// [`kl`] of numbers.
pub fn kl_values(estimator: KlEstimator, log_probs: &[f32], reference: &[f32]) -> Vec<f32> {
    let tensor = |values: &[f32]| Tensor::from_slice(values, [values.len()]);
    kl(estimator, &tensor(log_probs), &tensor(reference)).to_vec()
}

/// Clipped surrogate (Schulman et al. 2017, eq. 7), as a loss: -min(r A, clip(r, 1 - `low`, 1 + `high`) A) with r = e^(log_probs -
/// old). All of one shape, per token or per answer.
pub fn clipped_surrogate(log_probs: &Tensor, old: &Tensor, advantages: &Tensor, low: f32, high: f32) -> Tensor {
    same_shape("clipped_surrogate", log_probs, old);
    same_shape("clipped_surrogate", log_probs, advantages);
    let ratio = (log_probs - old).unary(Unary::Exp);
    // Where the clip changes nothing both are equal, and the gradient goes to the second.
    let clipped = ratio.minimum(&Tensor::from(1.0 + high)).maximum(&Tensor::from(1.0 - low));
    -&clipped.mul(advantages).minimum(&ratio.mul(advantages))
}

/// Shares of the tokens that [`clipped_surrogate`] gives no gradient because their ratio is too low, and too high.
pub fn clipped_shares(log_probs: &[f32], old: &[f32], advantages: &[f32], low: f32, high: f32) -> (f64, f64) {
    let count = |test: &dyn Fn(f32, f32) -> bool| {
        let ratios = log_probs.iter().zip(old).map(|(new, old)| (new - old).exp());
        ratios.zip(advantages).filter(|&(ratio, &advantage)| test(ratio, advantage)).count() as f64
    };
    let all = log_probs.len().max(1) as f64;
    (count(&|r, a| r < 1.0 - low && a < 0.0) / all, count(&|r, a| r > 1.0 + high && a > 0.0) / all)
}

/// Clipped value loss (Schulman et al. 2017, in OpenAI's code): half the larger of the squared errors of the values and of the
/// values kept within `clip` of the old ones. `[tokens]`.
pub fn clipped_value_loss(values: &Tensor, old: &Tensor, returns: &Tensor, clip: f32) -> Tensor {
    same_shape("clipped_value_loss", values, old);
    same_shape("clipped_value_loss", values, returns);
    let (low, high) = (old.affine(1.0, -clip), old.affine(1.0, clip));
    let clipped = values.minimum(&high).maximum(&low);
    let error = |x: &Tensor| (x - returns).unary(Unary::Square);
    error(&clipped).maximum(&error(values)).scale(0.5)
}

/// How per-token losses become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// Mean over the tokens of all answers of the batch (Yu et al. 2025).
    #[default]
    Dapo,
    /// Mean over the answers of means over their tokens (Shao et al. 2024): short answers' tokens weigh more.
    Grpo,
    /// Sum over the tokens, divided by answers times the most tokens an answer may have (Liu et al. 2025).
    DrGrpo,
    /// As `dapo`, over each micro-batch by itself.
    Bnpo,
    /// One ratio per answer, that of its geometric mean over tokens (Zheng et al. 2025), and the mean over the answers.
    Gspo,
}

/// What [`Normalisation`] divides by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchSize {
    /// Answers of the whole batch.
    pub answers: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Most tokens that an answer may have.
    pub max_tokens: usize,
}

/// The part of these answers in the batch's loss, from losses per token: all parts of a batch add up to its loss.
/// [`Normalisation::Gspo`] counts as [`Normalisation::Grpo`]: its losses are the same for all tokens of an answer.
pub fn aggregate(per_token: &Tensor, answers: &[Range<usize>], how: Normalisation, whole: &BatchSize) -> Tensor {
    let (own, all) = (answers.len() as f32, whole.answers as f32);
    match how {
        Normalisation::Dapo => per_token.sum().scale(1.0 / whole.tokens.max(1) as f32),
        Normalisation::Bnpo => per_token.sum().scale(own / all / per_token.count().max(1) as f32),
        Normalisation::DrGrpo => per_token.sum().scale(1.0 / (all * whole.max_tokens as f32)),
        Normalisation::Grpo | Normalisation::Gspo => segment_means(per_token, answers).sum().scale(1.0 / all),
    }
}

/// Sum over each answer's tokens: `[tokens] -> [answers]`.
pub fn segment_sums(per_token: &Tensor, answers: &[Range<usize>]) -> Tensor {
    let sums: Vec<Tensor> =
        answers.iter().map(|range| per_token.narrow(0, range.start, range.len()).sum().reshape([1])).collect();
    Tensor::concat(&sums.iter().collect::<Vec<_>>(), 0)
}

/// Mean over each answer's tokens: `[tokens] -> [answers]`.
pub fn segment_means(per_token: &Tensor, answers: &[Range<usize>]) -> Tensor {
    let shares: Vec<f32> = answers.iter().map(|range| 1.0 / range.len().max(1) as f32).collect();
    segment_sums(per_token, answers).mul(&Tensor::from_slice(&shares, [shares.len()]))
}

/// One number per answer for each of its tokens: `[answers] -> [tokens]`.
pub fn repeat_segments(per_answer: &Tensor, answers: &[Range<usize>]) -> Tensor {
    let ids: Vec<u32> = (0u32..).zip(answers).flat_map(|(id, range)| vec![id; range.len()]).collect();
    per_answer.reshape([answers.len(), 1]).embedding(&ids, [ids.len()]).reshape([ids.len()])
}

/// What group advantages are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardScale {
    /// The standard deviation of the group.
    #[default]
    Group,
    /// That of all rewards of the batch.
    Batch,
    /// Nothing (Liu et al. 2025).
    None,
}

/// Added to a standard deviation before it divides, as in TRL.
const STD_EPS: f64 = 1e-4;

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation with Bessel's correction; 0 of fewer than two values.
pub fn std_dev(values: &[f64]) -> f64 {
    let center = mean(values);
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    if values.len() < 2 { 0.0 } else { (squares / (values.len() - 1) as f64).sqrt() }
}

/// Rewards less the mean of their group of `group` answers to one prompt, over `scale` (Shao et al. 2024, section 4.1.2).
pub fn group_advantages(rewards: &[f64], group: usize, scale: RewardScale) -> Vec<f64> {
    let of_batch = std_dev(rewards);
    let of_group = |rewards: &[f64]| {
        let center = mean(rewards);
        let divisor = match scale {
            RewardScale::Group => std_dev(rewards) + STD_EPS,
            RewardScale::Batch => of_batch + STD_EPS,
            RewardScale::None => 1.0,
        };
        rewards.iter().map(|reward| (reward - center) / divisor).collect::<Vec<_>>()
    };
    rewards.chunks(group.max(1)).flat_map(of_group).collect()
}

/// Rewards less the mean of the other answers to the same prompt (Ahmadian et al. 2024, eq. 7).
pub fn leave_one_out(rewards: &[f64], group: usize) -> Vec<f64> {
    let of_group = |rewards: &[f64]| {
        let (sum, others) = (rewards.iter().sum::<f64>(), rewards.len() as f64 - 1.0);
        let advantage = |reward: &f64| if others > 0.0 { reward - (sum - reward) / others } else { 0.0 };
        rewards.iter().map(advantage).collect::<Vec<_>>()
    };
    rewards.chunks(group.max(1)).flat_map(of_group).collect()
}

/// Generalised advantage estimates of one answer's tokens, and the returns that their values should have been (Schulman et al.
/// 2016, eq. 16). Nothing follows the last token.
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(rewards.len(), values.len(), "gae: as many rewards as values");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let surprise = rewards[t] + gamma * next_value - values[t];
        next_advantage = surprise + gamma * lambda * next_advantage;
        advantages[t] = next_advantage;
        next_value = values[t];
    }
    let returns = advantages.iter().zip(values).map(|(advantage, value)| advantage + value).collect();
    (advantages, returns)
}

/// Brings numbers to variance 1 (with Bessel's correction), and to mean 0 unless `keep_mean`.
pub fn whiten(values: &mut [f64], keep_mean: bool) {
    let (center, spread) = (mean(values), std_dev(values));
    let factor = 1.0 / (spread * spread + 1e-8).sqrt();
    let shift = if keep_mean { center } else { 0.0 };
    values.iter_mut().for_each(|value| *value = (*value - center) * factor + shift);
}
