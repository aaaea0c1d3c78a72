//! What the objectives over answers share: log-probabilities of their tokens.

use std::sync::Arc;

use loam_data::preference::AnswerBatch;
use loam_models::{Input, LanguageModel};
use loam_tensor::Tensor;

use super::Pass;
use crate::error::Result;
use crate::losses::policy::{segment_means, segment_sums};

/// Runs `work` on a batch as a model's input.
pub(crate) fn with_input<L, R>(batch: &AnswerBatch<L>, work: impl FnOnce(&Input<'_>) -> R) -> R {
    work(&Input {
        tokens: &batch.tokens,
        batch: batch.rows,
        time: batch.seq_len,
        positions: Some(&batch.positions),
        segments: Some(Arc::from(&batch.segments[..])),
        ..Input::default()
    })
}

/// Hidden states before each trained token: `[tokens, hidden]`.
pub(crate) fn states<L>(model: &LanguageModel, batch: &AnswerBatch<L>, pass: &Pass) -> Result<Tensor> {
    let hidden = with_input(batch, |input| model.hidden(input, pass.forward()))?;
    let width = hidden.shape().width();
    Ok(hidden.reshape([batch.tokens.len(), width]).embedding(&batch.places, [batch.places.len()]))
}

/// How likely the trained tokens of a batch are.
pub(crate) struct Scored {
    /// Log-probability of every trained token: `[tokens]`.
    pub(crate) tokens: Tensor,
    /// Mean entropy before them, in nats.
    pub(crate) entropy: f64,
}

impl Scored {
    /// Scores a batch, as sampled at `temperature`.
    pub(crate) fn of<L>(model: &LanguageModel, batch: &AnswerBatch<L>, pass: &Pass, temperature: f32) -> Result<Self> {
        Self::of_states(model, &states(model, batch, pass)?, &batch.next, temperature)
    }

    /// The same from hidden states.
    pub(crate) fn of_states(model: &LanguageModel, states: &Tensor, next: &[u32], temperature: f32) -> Result<Self> {
        let (tokens, entropies) = model.log_probs(states, next, temperature, true)?;
        let sum: f64 = entropies.iter().map(|&entropy| f64::from(entropy)).sum();
        Ok(Self { tokens, entropy: sum / entropies.len().max(1) as f64 })
    }
}

/// Chosen and rejected answers of a batch of pairs.
pub(super) struct PairScores {
    /// Sums over the chosen answers' tokens: `[pairs]`.
    pub(super) chosen: Tensor,
    /// Sums over the rejected answers' tokens.
    pub(super) rejected: Tensor,
    /// Means over the chosen answers' tokens.
    pub(super) chosen_mean: Tensor,
    /// Means over the rejected answers' tokens.
    pub(super) rejected_mean: Tensor,
    /// Tokens of the chosen answers.
    pub(super) chosen_len: Tensor,
    /// Tokens of the rejected answers.
    pub(super) rejected_len: Tensor,
    /// Mean entropy.
    pub(super) entropy: f64,
}

impl PairScores {
    pub(super) fn of<L>(model: &LanguageModel, batch: &AnswerBatch<L>, pass: &Pass) -> Result<Self> {
        let scored = Scored::of(model, batch, pass, 1.0)?;
        // Two texts per example: the chosen one first.
        let side = |side: usize| batch.answers.iter().skip(side).step_by(2).cloned().collect::<Vec<_>>();
        let (chosen, rejected) = (side(0), side(1));
        let lengths = |answers: &[std::ops::Range<usize>]| {
            let lengths: Vec<f32> = answers.iter().map(|answer| answer.len() as f32).collect();
            Tensor::from_slice(&lengths, [lengths.len()])
        };
        Ok(Self {
            chosen: segment_sums(&scored.tokens, &chosen),
            rejected: segment_sums(&scored.tokens, &rejected),
            chosen_mean: segment_means(&scored.tokens, &chosen),
            rejected_mean: segment_means(&scored.tokens, &rejected),
            chosen_len: lengths(&chosen),
            rejected_len: lengths(&rejected),
            entropy: scored.entropy,
        })
    }

    /// Negative log-likelihood of the chosen answers: this batch's part of the mean over all their tokens, as a sum over
    /// pairs.
    pub(super) fn likelihood<L>(&self, batch: &AnswerBatch<L>, pass: &Pass) -> Tensor {
        let share = batch.whole.examples as f32 / batch.whole.first_tokens.max(1) as f32;
        self.chosen.sum().scale(-share * pass.scale)
    }

    /// What is reported of pairs whose rewards these are.
    pub(super) fn metrics(&self, chosen: &Tensor, rejected: &Tensor) -> Vec<(&'static str, f64)> {
        let (a, b) = (chosen.to_vec(), rejected.to_vec());
        let sum = |values: &[f32]| values.iter().map(|&x| f64::from(x)).sum::<f64>();
        let won = a.iter().zip(&b).filter(|(a, b)| a > b).count() as f64;
        vec![
            ("rewards/chosen", sum(&a)),
            ("rewards/rejected", sum(&b)),
            ("rewards/margins", sum(&a) - sum(&b)),
            ("rewards/accuracies", won),
            ("logps/chosen", sum(&self.chosen.to_vec())),
            ("logps/rejected", sum(&self.rejected.to_vec())),
            ("entropy", self.entropy * a.len() as f64),
        ]
    }
}
