//! Writing answers with the inference engine, and scoring them with the trainer's forward pass.

use loam_chat::Sampling;
use loam_data::preference::{AnswerBatch, Answers, Whole};
use loam_infer::Generator;
use loam_kernels::rng::Stream;
use loam_models::LanguageModel;
use loam_tensor::{CrossEntropyTerms, no_grad, with_precision};
use rayon::prelude::*;

use super::phase::{Item, RlLabel};
use super::{Prompted, Rollouts};
use crate::error::{Error, Result};
use crate::objective::{Pass, Scored, states, values};

impl Rollouts<'_> {
    /// `samples` answers to each of some prompts, in that order; a function of the weights, the seed and `phase`.
    pub(super) fn write(
        &self,
        prompts: &[Prompted],
        chosen: &[usize],
        samples: usize,
        phase: u64,
        temperature: f32,
    ) -> Result<Vec<Item>> {
        let settings = &self.settings;
        let generator = Generator::new(self.policy, self.tokenizer);
        let write = |place: usize| -> Result<Item> {
            let prompt = chosen[place / samples];
            let seed =
                Stream::new(settings.seed, "answer", phase * (chosen.len() * samples) as u64 + place as u64).next_u64();
            let sampling = Sampling { temperature, seed, max_tokens: settings.max_new_tokens, ..Sampling::default() };
            let run = || generator.tokens(&prompts[prompt].ids, &sampling, &mut |_| true);
            let written = with_precision(settings.precision, run).map_err(|error| Error::Examples {
                what: format!("the prompt {:?} cannot be answered: {error}", prompts[prompt].text),
                hint: "look at the prompt, and at rl.max_new_tokens".into(),
            })?;
            let text = self.tokenizer.decode(&written.tokens, true)?;
            let (mut tokens, mut sampled) = (written.tokens, written.logprobs);
            if let Some(end) = written.end {
                tokens.push(end.token);
                sampled.push(end.logprob);
            }
            Ok(Item { prompt, tokens, sampled, ended: written.end.is_some(), text, label: RlLabel::default() })
        };
        (0..chosen.len() * samples).into_par_iter().map(write).collect()
    }

    /// Fills in log-probabilities under policy and reference, and values. Returns the largest difference between the
    /// log-probabilities of the sampler and of the trainer, both at temperature 1.
    pub(super) fn score(&self, items: &mut [Item]) -> Result<f64> {
        let (settings, mut largest) = (&self.settings, 0.0f64);
        for part in items.chunks_mut(settings.micro_batch.max(1)) {
            let examples: Vec<Answers<RlLabel>> = self.examples(part, &self.prompts);
            let batch = AnswerBatch::pack(examples.iter(), Whole::default());
            let at = |model: &LanguageModel, temperature: f32| -> Result<Vec<f32>> {
                Ok(Scored::of(model, &batch, &pass(), temperature)?.tokens.to_vec())
            };
            let work = || -> Result<_> {
                let plain = at(self.policy, 1.0)?;
                let old =
                    if settings.temperature == 1.0 { plain.clone() } else { at(self.policy, settings.temperature)? };
                let reference = self.reference.map(|model| at(model, settings.temperature)).transpose()?;
                let values = match &self.value_head {
                    Some(head) => Some(values(&states(self.policy, &batch, &pass())?, head).to_vec()),
                    None => None,
                };
                Ok((plain, old, reference, values))
            };
            let (plain, old, reference, values) = with_precision(settings.precision, || no_grad(work))?;
            for (item, range) in part.iter_mut().zip(&batch.answers) {
                let differences = item.sampled.iter().zip(&plain[range.clone()]).map(|(a, b)| f64::from((a - b).abs()));
                largest = differences.fold(largest, f64::max);
                item.label.old = old[range.clone()].to_vec();
                item.label.reference = reference.as_ref().map_or(Vec::new(), |all| all[range.clone()].to_vec());
                item.label.values = values.as_ref().map_or(Vec::new(), |all| all[range.clone()].to_vec());
            }
        }
        Ok(largest)
    }
}

/// A pass that only looks.
fn pass() -> Pass {
    Pass { scale: 1.0, dropout: None, recompute: false, terms: CrossEntropyTerms::default(), measures: true }
}
