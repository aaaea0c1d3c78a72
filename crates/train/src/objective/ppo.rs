//! Proximal policy optimisation with a value head on the policy's hidden states.

use loam_models::LanguageModel;
use loam_tensor::{Parameter, Tensor};

use super::answers::{Scored, states};
use super::{Loss, Objective, Pass};
use crate::error::Result;
use crate::losses::policy::{clipped_shares, clipped_surrogate, clipped_value_loss};
use crate::rollout::RlBatch;

/// Mean over tokens of the clipped surrogate and of the clipped value loss (Schulman et al. 2017; Ouyang et al. 2022).
pub struct Ppo {
    /// Weight `[1, hidden]` that makes a value of a hidden state.
    pub value_head: Parameter,
    /// Weight of the value loss.
    pub value_coefficient: f32,
    /// How far a value may move from the old one.
    pub value_clip: f32,
    /// How far below and above 1 a ratio counts.
    pub clip: (f32, f32),
    /// Temperature that the answers were drawn at.
    pub temperature: f32,
}

/// Values of hidden states `[tokens, hidden]`: `[tokens]`.
pub(crate) fn values(states: &Tensor, head: &Parameter) -> Tensor {
    // A dot product per token: no matrix product, whose operands might be bf16.
    let weight = Tensor::parameter(head).reshape([head.count()]);
    states.mul(&weight).sum_last()
}

impl Objective for Ppo {
    type Batch = RlBatch;

    fn counted(&self, batch: &RlBatch) -> usize {
        batch.answers.labels.len()
    }

    fn tokens(&self, batch: &RlBatch) -> usize {
        batch.tokens()
    }

    fn parameters(&self) -> Vec<(String, Parameter)> {
        vec![("value_head.weight".into(), self.value_head.clone())]
    }

    fn teaches(&self, batch: &RlBatch) -> bool {
        let moves = |values: &[f32]| values.iter().any(|&value| value != 0.0);
        batch.answers.labels.iter().any(|label| moves(&label.advantages) && moves(&label.returns))
    }

    fn loss(&mut self, model: &LanguageModel, batch: &RlBatch, pass: &Pass) -> Result<Loss> {
        if pass.measures {
            return Ok(batch.measured());
        }
        let states = states(model, &batch.answers, pass)?;
        let scored = Scored::of_states(model, &states, &batch.answers.next, self.temperature)?;
        let values = values(&states, &self.value_head);
        let flat = |values: &[f32]| Tensor::from_slice(values, [values.len()]);
        let (old, advantages) = (batch.flat(|label| &label.old), batch.flat(|label| &label.advantages));
        let (low, high) = self.clip;
        let whole = batch.size();
        let mean = |losses: &Tensor| losses.sum().scale(1.0 / whole.tokens.max(1) as f32);
        let policy = mean(&clipped_surrogate(&scored.tokens, &flat(&old), &flat(&advantages), low, high));
        let (old_values, returns) = (batch.flat(|label| &label.values), batch.flat(|label| &label.returns));
        let errors = clipped_value_loss(&values, &flat(&old_values), &flat(&returns), self.value_clip);
        let value = mean(&errors);
        let clipped = clipped_shares(&scored.tokens.to_vec(), &old, &advantages, low, high);
        let share = whole.answers as f32 / batch.answers.labels.len().max(1) as f32;
        let metrics = vec![
            ("clip_ratio/low_mean", clipped.0),
            ("clip_ratio/high_mean", clipped.1),
            ("clip_ratio/region_mean", clipped.0 + clipped.1),
            ("loss/policy", f64::from(policy.item() * share)),
            ("loss/value", f64::from(value.item() * share)),
        ];
        let tensor = (&policy + &value.scale(self.value_coefficient)).scale(pass.scale * whole.answers as f32);
        Ok(Loss { tensor, metrics: batch.report(metrics) })
    }
}
