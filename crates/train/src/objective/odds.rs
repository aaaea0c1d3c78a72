//! Preferences without a reference: ORPO, SimPO, CPO.

use loam_data::preference::AnswerBatch;
use loam_models::LanguageModel;

use super::answers::PairScores;
use super::{Loss, Objective, PairLabel, Pass};
use crate::error::Result;
use crate::losses::preference::{cpo, orpo, simpo};

/// How the two answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OddsKind {
    /// By the odds of their likelihood per token.
    Orpo,
    /// By their likelihood per token, with a margin.
    Simpo,
    /// By their likelihood.
    Cpo,
}

/// The mean over pairs of the comparison, and the negative log-likelihood of the chosen answers beside it.
#[derive(Clone, Copy, Debug)]
pub struct Odds {
    /// How the two answers are compared.
    pub kind: OddsKind,
    /// Factor of the comparison.
    pub beta: f32,
    /// Margin (SimPO).
    pub gamma: f32,
    /// Share of the preferences that is taken to be wrong (SimPO, CPO).
    pub label_smoothing: f32,
    /// Weight of the likelihood per token.
    pub sft_weight: f32,
}

impl Objective for Odds {
    type Batch = AnswerBatch<PairLabel>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch.labels.len()
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        batch.text_tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let scores = PairScores::of(model, batch, pass)?;
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let (chosen, rejected) = match self.kind {
            OddsKind::Cpo => (&scores.chosen, &scores.rejected),
            OddsKind::Orpo | OddsKind::Simpo => (&scores.chosen_mean, &scores.rejected_mean),
        };
        let per_pair = match self.kind {
            OddsKind::Orpo => orpo(chosen, rejected, beta),
            OddsKind::Simpo => simpo(chosen, rejected, beta, self.gamma, smoothing),
            OddsKind::Cpo => cpo(chosen, rejected, beta, smoothing),
        };
        let mut tensor = per_pair.sum().scale(pass.scale);
        let likelihood = scores.likelihood(batch, pass);
        let per_token = f64::from(likelihood.item() / pass.scale);
        if self.sft_weight > 0.0 {
            tensor = &tensor + &likelihood.scale(self.sft_weight);
        }
        let mut metrics = scores.metrics(&chosen.detach().scale(beta), &rejected.detach().scale(beta));
        metrics.push(("nll_loss", per_token));
        Ok(Loss { tensor, metrics })
    }
}
