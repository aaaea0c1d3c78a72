//! Losses of preferences, from log-probabilities of whole answers: the DPO family, KTO, ORPO, SimPO, CPO, reward models.
//!
//! Every function returns one loss per pair or answer, `[pairs]`, so that whoever sums them decides what the mean is over.
//! Log-probabilities are sums over an answer's tokens unless stated otherwise, in nats.

use std::f64::consts::LN_2;

use loam_tensor::{Tensor, Unary};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::same_shape;

/// A loss of the DPO family, under the name that TRL gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// -ln σ(β Δ) (Rafailov et al. 2023, eq. 7).
    #[default]
    Sigmoid,
    /// max(0, 1 - β Δ) (Zhao et al. 2023).
    Hinge,
    /// (Δ - 1 / 2β)² of means over tokens (Azar et al. 2023, eq. 17).
    Ipo,
    /// Reverse KL to the preferences, of which `label_smoothing` are wrong (Ji et al. 2024, eq. 16).
    ExoPair,
    /// Noise contrastive alignment of a pair (Chen et al. 2024).
    NcaPair,
    /// Unbiased where `label_smoothing` of the preferences are wrong (Chowdhury et al. 2024).
    Robust,
    /// Binary classifier of either answer (Jung et al. 2024).
    BcoPair,
    /// Squared distance to a win rate of 1 and of 0 (Wu et al. 2024, eq. 4.7).
    SppoHard,
    /// Sorted margins against the reference's sorted ones (Melnyk et al. 2024); over the whole micro-batch.
    Aot,
    /// Sorted log-ratios of the chosen against the rejected (Melnyk et al. 2024); over the whole micro-batch.
    AotUnpaired,
    /// Chosen up, rejected down (D'Oosterlinck et al. 2024, eq. 7).
    ApoZero,
    /// Chosen down, rejected down further (D'Oosterlinck et al. 2024, eq. 8).
    ApoDown,
    /// A blend of logistic and exponential loss that was found by a search (Lu et al. 2024, eq. 5).
    Discopop,
    /// -ln σ(β Δ) of means over tokens.
    SigmoidNorm,
    /// Negative log-likelihood per token of the chosen answers: no preference, to be mixed in.
    Sft,
}

/// How far an answer has moved from the reference, as a function of its log-ratio (Wang et al. 2023, "Beyond reverse KL").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// The log-ratio itself: plain DPO.
    #[default]
    ReverseKl,
    /// 1 - e^-r.
    ForwardKl,
    /// ln 2 + ln σ(r).
    JsDivergence,
    /// (e^((α - 1) r) - 1) / (α - 1).
    AlphaDivergence,
}

/// Numbers of the DPO family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoSettings {
    /// Strength of the pull towards the reference: the larger, the stronger.
    pub beta: f32,
    /// Share of the preferences that are taken to be wrong: `exo_pair`, `robust`, `aot`, `aot_unpaired`.
    pub label_smoothing: f32,
    /// What is done to the log-ratios: `sigmoid`, `hinge`, `ipo`, `exo_pair`, `robust`, `discopop`, `sigmoid_norm`.
    pub divergence: Divergence,
    /// α of the α-divergence.
    pub alpha: f32,
    /// Width of the blend in `discopop`.
    pub discopop_tau: f32,
}

impl Default for DpoSettings {
    fn default() -> Self {
        Self { beta: 0.1, label_smoothing: 0.0, divergence: Divergence::ReverseKl, alpha: 0.5, discopop_tau: 0.05 }
    }
}

/// Log-probabilities of pairs, each `[pairs]`.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// Of the chosen answers under the policy.
    pub chosen: Tensor,
    /// Of the rejected answers under the policy.
    pub rejected: Tensor,
    /// Of the chosen answers under the reference.
    pub ref_chosen: Tensor,
    /// Of the rejected answers under the reference.
    pub ref_rejected: Tensor,
    /// Tokens of the chosen answers.
    pub chosen_len: Tensor,
    /// Tokens of the rejected answers.
    pub rejected_len: Tensor,
}

fn log_sigmoid(x: &Tensor) -> Tensor {
    x.unary(Unary::LogSigmoid)
}

fn sigmoid(x: &Tensor) -> Tensor {
    x.unary(Unary::Sigmoid)
}

/// -(1 - ε) ln σ(x) - ε ln σ(-x).
fn smoothed(x: &Tensor, smoothing: f32) -> Tensor {
    &log_sigmoid(x).scale(smoothing - 1.0) - &log_sigmoid(&-x).scale(smoothing)
}

/// The same numbers in ascending order.
fn sorted(x: &Tensor) -> Tensor {
    let (values, count) = (x.to_vec(), x.count());
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
    x.reshape([count, 1]).embedding(&order, [count]).reshape([count])
}

/// The score of an answer by its log-ratio.
fn diverged(ratio: &Tensor, settings: &DpoSettings) -> Tensor {
    match settings.divergence {
        Divergence::ForwardKl => (-&(-ratio).unary(Unary::Exp)).affine(1.0, 1.0),
        Divergence::JsDivergence => log_sigmoid(ratio).affine(1.0, LN_2 as f32),
        Divergence::AlphaDivergence if (settings.alpha - 1.0).abs() >= 1e-6 => {
            let power = f64::from(settings.alpha) - 1.0;
            // As large as exponentials may get.
            ratio.map(|r| match power * r {
                t if t > 80.0 => (80f64.exp_m1() / power, 0.0),
                t => (t.exp_m1() / power, t.exp()),
            })
        }
        Divergence::ReverseKl | Divergence::AlphaDivergence => ratio.clone(),
    }
}

/// The loss of every pair. [`DpoLoss::Sft`] has no place here: it is a mean over tokens, not over pairs.
pub fn dpo(loss: DpoLoss, pairs: &Pairs, settings: &DpoSettings) -> Tensor {
    same_shape("dpo", &pairs.chosen, &pairs.rejected);
    let &DpoSettings { beta, label_smoothing, .. } = settings;
    let (chosen, rejected) = (&pairs.chosen - &pairs.ref_chosen, &pairs.rejected - &pairs.ref_rejected);
    let scores = || (diverged(&chosen, settings), diverged(&rejected, settings));
    let per_token = || {
        let (a, b) = scores();
        &a.div(&pairs.chosen_len) - &b.div(&pairs.rejected_len)
    };
    // β times the difference of the scores.
    let logits = || {
        let (a, b) = scores();
        (&a - &b).scale(beta)
    };
    match loss {
        DpoLoss::Sigmoid => -&log_sigmoid(&logits()),
        DpoLoss::Hinge => logits().affine(-1.0, 1.0).unary(Unary::Relu),
        DpoLoss::Ipo => per_token().affine(1.0, -0.5 / beta).unary(Unary::Square),
        DpoLoss::SigmoidNorm => -&log_sigmoid(&per_token().scale(beta)),
        DpoLoss::ExoPair => {
            let x = logits();
            let (right, wrong) = (f64::from(label_smoothing).mul_add(-1.0, 1.0).ln(), f64::from(label_smoothing).ln());
            let side = |x: &Tensor, target: f64| sigmoid(x).mul(&log_sigmoid(x).affine(1.0, -target as f32));
            &side(&x, right) + &side(&-&x, wrong)
        }
        DpoLoss::NcaPair => {
            let (a, b) = (chosen.scale(beta), rejected.scale(beta));
            let pushed_down = &log_sigmoid(&-&a) + &log_sigmoid(&-&b);
            &-&log_sigmoid(&a) - &pushed_down.scale(0.5)
        }
        DpoLoss::Robust => {
            let x = logits();
            let clean = log_sigmoid(&x).scale(label_smoothing - 1.0);
            (&clean + &log_sigmoid(&-&x).scale(label_smoothing)).scale(1.0 / (1.0 - 2.0 * label_smoothing))
        }
        DpoLoss::BcoPair => -&(&log_sigmoid(&chosen.scale(beta)) + &log_sigmoid(&rejected.scale(-beta))),
        DpoLoss::SppoHard => {
            let winner = chosen.affine(1.0, -0.5 / beta).unary(Unary::Square);
            &winner + &rejected.affine(1.0, 0.5 / beta).unary(Unary::Square)
        }
        DpoLoss::Aot => {
            let (own, reference) = (&pairs.chosen - &pairs.rejected, &pairs.ref_chosen - &pairs.ref_rejected);
            smoothed(&(&sorted(&own) - &sorted(&reference)).scale(beta), label_smoothing)
        }
        DpoLoss::AotUnpaired => smoothed(&(&sorted(&chosen) - &sorted(&rejected)).scale(beta), label_smoothing),
        // 1 - σ(x) is σ(-x).
        DpoLoss::ApoZero => &sigmoid(&chosen.scale(-beta)) + &sigmoid(&rejected.scale(beta)),
        DpoLoss::ApoDown => &sigmoid(&chosen.scale(beta)) + &sigmoid(&(&rejected - &chosen).scale(beta)),
        DpoLoss::Discopop => {
            let x = logits();
            let (logistic, exponential) = (-&log_sigmoid(&x), (-&x).unary(Unary::Exp));
            let blend = sigmoid(&x.scale(1.0 / settings.discopop_tau));
            &logistic + &blend.mul(&(&exponential - &logistic))
        }
        DpoLoss::Sft => panic!("dpo: `sft` is a mean over tokens"),
    }
}

/// Kahneman-Tversky loss of single answers (Ethayarajh et al. 2024, eq. 7): with r the log-ratio of an answer, w (1 - σ(β (r -
/// kl))) where it is wanted and w (1 - σ(β (kl - r))) where it is not.
///
/// `log_ratios`: `[answers]`; `signs`: 1 for wanted answers, -1 for the others; `weights`: one per answer; `kl`: how far the
/// policy is from the reference on answers to other prompts, at least 0; it is no part of the gradient.
pub fn kto(log_ratios: &Tensor, signs: &Tensor, weights: &Tensor, kl: f32, beta: f32) -> Tensor {
    same_shape("kto", log_ratios, signs);
    // 1 - σ(x) is σ(-x).
    let lead = log_ratios.affine(1.0, -kl).mul(signs);
    sigmoid(&lead.scale(-beta)).mul(weights)
}

/// Odds-ratio loss (Hong et al. 2024, eq. 6): -β ln σ(ln odds of the chosen - ln odds of the rejected).
///
/// `chosen`, `rejected`: log-probabilities per token, means over the answers' tokens: `[pairs]`, below 0.
pub fn orpo(chosen: &Tensor, rejected: &Tensor, beta: f32) -> Tensor {
    same_shape("orpo", chosen, rejected);
    log_sigmoid(&log_odds_ratio(chosen, rejected)).scale(-beta)
}

/// ln(p / (1 - p)) of the chosen less that of the rejected, where p is e to the mean log-probability.
pub fn log_odds_ratio(chosen: &Tensor, rejected: &Tensor) -> Tensor {
    // d/dx of x - ln(1 - e^x) is 1 / (1 - e^x).
    let log_odds = |x: &Tensor| x.map(|x| (x - (-x.exp_m1()).ln(), -1.0 / x.exp_m1()));
    &log_odds(chosen) - &log_odds(rejected)
}

/// Simple preference optimisation (Meng et al. 2024, eq. 6): -ln σ(β (chosen - rejected) - γ), smoothed.
///
/// `chosen`, `rejected`: log-probabilities per token, means over the answers' tokens: `[pairs]`.
pub fn simpo(chosen: &Tensor, rejected: &Tensor, beta: f32, gamma: f32, label_smoothing: f32) -> Tensor {
    same_shape("simpo", chosen, rejected);
    smoothed(&(chosen - rejected).affine(beta, -gamma), label_smoothing)
}

/// The preference part of contrastive preference optimisation (Xu et al. 2024, eq. 3), smoothed: DPO without a reference.
pub fn cpo(chosen: &Tensor, rejected: &Tensor, beta: f32, label_smoothing: f32) -> Tensor {
    same_shape("cpo", chosen, rejected);
    smoothed(&(chosen - rejected).scale(beta), label_smoothing)
}

/// Bradley-Terry loss of a reward model (Ouyang et al. 2022, eq. 1): -ln σ(chosen - rejected - margin), and `centering` times
/// (chosen + rejected)², which keeps rewards around zero (Eisenstein et al. 2023). All `[pairs]`.
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, margin: &Tensor, centering: f32) -> Tensor {
    same_shape("bradley_terry", chosen, rejected);
    same_shape("bradley_terry", chosen, margin);
    let loss = -&log_sigmoid(&(&(chosen - rejected) - margin));
    match centering {
        0.0 => loss,
        centering => &loss + &(chosen + rejected).unary(Unary::Square).scale(centering),
    }
}

/// Generalised Jensen-Shannon divergence of two models' logits `[rows, vocab]` (Agarwal et al. 2024, eq. 1), one number per
/// row: `beta` KL(teacher ‖ mixture) + (1 - `beta`) KL(student ‖ mixture), the mixture being `beta` parts teacher. At 0 it is
/// KL(teacher ‖ student), at 1 KL(student ‖ teacher). Both logits are divided by `temperature`.
pub fn generalised_jsd(student: &Tensor, teacher: &Tensor, beta: f32, temperature: f32) -> Tensor {
    same_shape("generalised_jsd", student, teacher);
    let logs = |logits: &Tensor| logits.scale(1.0 / temperature).log_softmax();
    let (student, teacher) = (logs(student), logs(teacher));
    let kl = |p: &Tensor, q: &Tensor| p.unary(Unary::Exp).mul(&(p - q)).sum_last();
    if beta == 0.0 {
        return kl(&teacher, &student);
    }
    if beta == 1.0 {
        return kl(&student, &teacher);
    }
    // ln(a + b) = ln a + softplus(ln b - ln a).
    let (a, b) = (student.affine(1.0, (1.0 - beta).ln()), teacher.affine(1.0, beta.ln()));
    let mixture = &a + &(&b - &a).unary(Unary::Softplus);
    &kl(&teacher, &mixture).scale(beta) + &kl(&student, &mixture).scale(1.0 - beta)
}
