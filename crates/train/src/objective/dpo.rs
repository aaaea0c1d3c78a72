//! Direct preference optimisation and its family, against log-probabilities of a reference that were computed before.

use loam_data::preference::AnswerBatch;
use loam_models::LanguageModel;
use loam_tensor::Tensor;

use super::answers::PairScores;
use super::{Loss, Objective, Pass};
use crate::error::Result;
use crate::losses::preference::{DpoLoss, DpoSettings, Pairs, dpo};

/// What is known about a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLabel {
    /// By how much the chosen answer is better, where that is known.
    pub margin: f32,
    /// Log-probabilities of the chosen and of the rejected answer under the reference.
    pub reference: [f32; 2],
}

/// The mean over pairs of a weighted sum of losses.
#[derive(Clone, Debug)]
pub struct Dpo {
    /// Losses and their weights.
    pub losses: Vec<(DpoLoss, f32)>,
    /// Their numbers.
    pub settings: DpoSettings,
}

impl Objective for Dpo {
    type Batch = AnswerBatch<PairLabel>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch.labels.len()
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        batch.text_tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let scores = PairScores::of(model, batch, pass)?;
        let reference = |side: usize| {
            let values: Vec<f32> = batch.labels.iter().map(|label| label.reference[side]).collect();
            Tensor::from_slice(&values, [values.len()])
        };
        let pairs = Pairs {
            chosen: scores.chosen.clone(),
            rejected: scores.rejected.clone(),
            ref_chosen: reference(0),
            ref_rejected: reference(1),
            chosen_len: scores.chosen_len.clone(),
            rejected_len: scores.rejected_len.clone(),
        };
        let part = |&(kind, weight): &(DpoLoss, f32)| match kind {
            DpoLoss::Sft => scores.likelihood(batch, pass).scale(weight),
            kind => dpo(kind, &pairs, &self.settings).sum().scale(weight * pass.scale),
        };
        let parts = self.losses.iter().map(part);
        let tensor = parts.reduce(|sum, part| &sum + &part).unwrap_or_else(|| Tensor::from(0.0));
        let reward = |own: &Tensor, reference: &Tensor| (&own.detach() - reference).scale(self.settings.beta);
        let (chosen, rejected) =
            (reward(&pairs.chosen, &pairs.ref_chosen), reward(&pairs.rejected, &pairs.ref_rejected));
        Ok(Loss { tensor, metrics: scores.metrics(&chosen, &rejected) })
    }
}
