//! A reward model: of two answers the better one gets the larger number.

use loam_data::preference::AnswerBatch;
use loam_models::LanguageModel;
use loam_tensor::Tensor;

use super::answers::with_input;
use super::{Loss, Objective, PairLabel, Pass};
use crate::error::Result;
use crate::losses::preference::bradley_terry;

/// The mean over pairs of the Bradley-Terry loss, with margins and centering.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reward {
    /// Factor of the squared sum of a pair's rewards.
    pub centering: f32,
}

impl Objective for Reward {
    type Batch = AnswerBatch<PairLabel>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch.labels.len()
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        batch.text_tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let scores = with_input(batch, |input| model.scores(input, &batch.texts, pass.forward()))?;
        let pairs = batch.labels.len();
        // One after the other: chosen, rejected.
        let table = scores.reshape([pairs, 2]);
        let side = |side: usize| table.narrow(1, side, 1).reshape([pairs]);
        let (chosen, rejected) = (side(0), side(1));
        let margins: Vec<f32> = batch.labels.iter().map(|label| label.margin).collect();
        let margins = Tensor::from_slice(&margins, [pairs]);
        let tensor = bradley_terry(&chosen, &rejected, &margins, self.centering).sum().scale(pass.scale);
        let (a, b) = (chosen.to_vec(), rejected.to_vec());
        let sum = |values: &[f32]| values.iter().map(|&x| f64::from(x)).sum::<f64>();
        let won = a.iter().zip(&b).filter(|(a, b)| a > b).count() as f64;
        let metrics =
            vec![("accuracy", won), ("margin", sum(&a) - sum(&b)), ("mean_reward", (sum(&a) + sum(&b)) / 2.0)];
        Ok(Loss { tensor, metrics })
    }
}
