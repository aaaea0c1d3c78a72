//! Learning from rewards without a value function: GRPO and its normalisations, RLOO, REINFORCE.

use loam_models::LanguageModel;
use loam_tensor::Tensor;

use super::answers::Scored;
use super::{Loss, Objective, Pass};
use crate::error::Result;
use crate::losses::policy::{
    KlEstimator, Normalisation, aggregate, clipped_shares, clipped_surrogate, kl, repeat_segments, segment_means,
    segment_sums,
};
use crate::rollout::RlBatch;

/// Which gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyKind {
    /// Clipped ratios of tokens (of answers in `gspo`), and the distance to the reference in the loss.
    Grpo(Normalisation),
    /// Clipped ratios of answers.
    Rloo,
    /// No ratio: log-probabilities times advantages, the mean over answers of sums over tokens.
    Reinforce,
}

/// The loss of answers with known advantages.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Which gradient.
    pub kind: PolicyKind,
    /// Price of the distance to the reference in GRPO's loss.
    pub beta: f32,
    /// How far below and above 1 a ratio counts.
    pub clip: (f32, f32),
    /// Temperature that the answers were drawn at.
    pub temperature: f32,
}

impl Objective for Policy {
    type Batch = RlBatch;

    fn counted(&self, batch: &RlBatch) -> usize {
        batch.answers.labels.len()
    }

    fn tokens(&self, batch: &RlBatch) -> usize {
        batch.tokens()
    }

    fn teaches(&self, batch: &RlBatch) -> bool {
        batch.teaches()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &RlBatch, pass: &Pass) -> Result<Loss> {
        if pass.measures {
            return Ok(batch.measured());
        }
        if !batch.teaches() && self.beta == 0.0 {
            // Their gradient is zero, whatever the model says.
            return Ok(Loss { tensor: Tensor::from(0.0), metrics: batch.report(Vec::new()) });
        }
        let answers = &batch.answers.answers;
        let scored = Scored::of(model, &batch.answers, pass, self.temperature)?;
        let (new, (low, high)) = (&scored.tokens, self.clip);
        let flat = |values: &[f32]| Tensor::from_slice(values, [values.len()]);
        let (old, advantages) = (batch.flat(|label| &label.old), batch.flat(|label| &label.advantages));
        let firsts: Vec<f32> = answers.iter().map(|range| advantages[range.start]).collect();
        let whole = batch.size();
        let clipped = clipped_shares(&new.to_vec(), &old, &advantages, low, high);
        let mean = |per_answer: Tensor| per_answer.sum().scale(1.0 / whole.answers as f32);
        let mut metrics = Vec::new();
        let tensor = match self.kind {
            PolicyKind::Grpo(how) => {
                let mut losses = match how {
                    Normalisation::Gspo => {
                        let ratios = segment_means(&(new - &flat(&old)), answers);
                        let zeros = Tensor::full([answers.len()], 0.0);
                        repeat_segments(&clipped_surrogate(&ratios, &zeros, &flat(&firsts), low, high), answers)
                    }
                    _ => clipped_surrogate(new, &flat(&old), &flat(&advantages), low, high),
                };
                if self.beta > 0.0 {
                    let distance = kl(KlEstimator::K3, new, &flat(&batch.flat(|label| &label.reference)));
                    metrics.push(("kl", f64::from(distance.mean().item())));
                    losses = &losses + &distance.scale(self.beta);
                }
                aggregate(&losses, answers, how, &whole)
            }
            PolicyKind::Rloo => {
                let (new, old) = (segment_sums(new, answers), segment_sums(&flat(&old), answers));
                mean(clipped_surrogate(&new, &old, &flat(&firsts), low, high))
            }
            PolicyKind::Reinforce => mean(-&segment_sums(&new.mul(&flat(&advantages)), answers)),
        };
        metrics.extend([
            ("clip_ratio/low_mean", clipped.0),
            ("clip_ratio/high_mean", clipped.1),
            ("clip_ratio/region_mean", clipped.0 + clipped.1),
        ]);
        Ok(Loss { tensor: tensor.scale(pass.scale * whole.answers as f32), metrics: batch.report(metrics) })
    }
}
