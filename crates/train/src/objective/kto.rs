//! Kahneman-Tversky optimisation: answers that are wanted or not, one by one.

use loam_data::preference::AnswerBatch;
use loam_models::LanguageModel;
use loam_tensor::{Tensor, no_grad};

use super::answers::Scored;
use super::{Loss, Objective, Pass};
use crate::error::Result;
use crate::losses::policy::segment_sums;
use crate::losses::preference::kto;

/// What is known about an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KtoLabel {
    /// Whether it is wanted.
    pub wanted: bool,
    /// Its log-probability under the reference.
    pub reference: f32,
}

/// Answers, and beside them as many answers to other prompts, from which the distance to the reference is estimated.
pub struct KtoBatch {
    /// The answers to learn from.
    pub answers: AnswerBatch<KtoLabel>,
    /// The same prompts with the answers before them in the data.
    pub mismatched: AnswerBatch<KtoLabel>,
}

/// The mean of KTO's loss over answers. The estimate of the distance is a mean over the micro-batch, as in TRL.
#[derive(Clone, Copy, Debug)]
pub struct Kto {
    /// Strength of the pull towards the reference.
    pub beta: f32,
    /// Weight of wanted answers.
    pub desirable: f32,
    /// Weight of the others.
    pub undesirable: f32,
}

fn reference(batch: &AnswerBatch<KtoLabel>) -> Tensor {
    let values: Vec<f32> = batch.labels.iter().map(|label| label.reference).collect();
    Tensor::from_slice(&values, [values.len()])
}

impl Objective for Kto {
    type Batch = KtoBatch;

    fn counted(&self, batch: &KtoBatch) -> usize {
        batch.answers.labels.len()
    }

    fn tokens(&self, batch: &KtoBatch) -> usize {
        batch.answers.text_tokens() + batch.mismatched.text_tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &KtoBatch, pass: &Pass) -> Result<Loss> {
        let quiet = pass.quiet();
        let kl = no_grad(|| -> Result<f32> {
            let other = Scored::of(model, &batch.mismatched, &quiet, 1.0)?;
            let sums = segment_sums(&other.tokens, &batch.mismatched.answers);
            Ok((&sums - &reference(&batch.mismatched)).mean().item().max(0.0))
        })?;
        let answers = &batch.answers;
        let scored = Scored::of(model, answers, pass, 1.0)?;
        let sums = segment_sums(&scored.tokens, &answers.answers);
        let ratios = &sums - &reference(answers);
        let row = |of: &dyn Fn(bool) -> f32| {
            let values: Vec<f32> = answers.labels.iter().map(|label| of(label.wanted)).collect();
            Tensor::from_slice(&values, [values.len()])
        };
        let signs = row(&|wanted| if wanted { 1.0 } else { -1.0 });
        let weights = row(&|wanted| if wanted { self.desirable } else { self.undesirable });
        let tensor = kto(&ratios, &signs, &weights, kl, self.beta).sum().scale(pass.scale);
        let count = answers.labels.len() as f64;
        let mut metrics = vec![("kl", f64::from(kl) * count), ("entropy", scored.entropy * count)];
        metrics.extend(self.by_label(answers, &ratios.to_vec(), &sums.to_vec()));
        Ok(Loss { tensor, metrics })
    }
}

impl Kto {
    /// Means over the wanted and over the other answers of a micro-batch, where it has both.
    fn by_label(&self, batch: &AnswerBatch<KtoLabel>, ratios: &[f32], sums: &[f32]) -> Vec<(&'static str, f64)> {
        let count = batch.labels.len() as f64;
        let mean = |values: &[f32], wanted: bool| {
            let of_label = batch.labels.iter().zip(values).filter(|(label, _)| label.wanted == wanted);
            let values: Vec<f64> = of_label.map(|(_, &value)| f64::from(value)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let beta = f64::from(self.beta);
        let (Some(chosen), Some(rejected)) = (mean(ratios, true), mean(ratios, false)) else { return Vec::new() };
        let (own, other) = (mean(sums, true).unwrap_or_default(), mean(sums, false).unwrap_or_default());
        vec![
            ("rewards/chosen", beta * chosen * count),
            ("rewards/rejected", beta * rejected * count),
            ("rewards/margins", beta * (chosen - rejected) * count),
            ("logps/chosen", own * count),
            ("logps/rejected", other * count),
        ]
    }
}
