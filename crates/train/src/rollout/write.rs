//! Writing answers with the inference engine, and scoring them with the trainer's forward pass.

use loam_chat::Sampling;
use loam_data::preference::{AnswerBatch, Answers, Whole};
use loam_infer::Generator;
use loam_kernels::rng::Stream;
use loam_models::LanguageModel;
use loam_tensor::{Precision, no_grad, with_precision};
use loam_tokenizer::Tokenizer;

use super::phase::{Item, RlLabel};
use super::{Prompted, Rollouts};
use crate::error::{Error, Result};
use crate::objective::{Pass, Scored, states, values};

/// Who writes answers, and how.
pub(crate) struct Author<'a> {
    /// The model.
    pub(crate) model: &'a LanguageModel,
    /// Its tokenizer.
    pub(crate) tokenizer: &'a Tokenizer,
    /// Temperature of the draw.
    pub(crate) temperature: f32,
    /// Most tokens of an answer, as far as the model's context has room.
    pub(crate) max_new_tokens: usize,
    /// Number format of the forward passes.
    pub(crate) precision: Precision,
}

/// An answer as it was drawn.
pub(crate) struct Written {
    /// Its tokens, with the end token where it has one.
    pub(crate) tokens: Vec<u32>,
    /// What the sampler says of their log-probabilities.
    pub(crate) sampled: Vec<f32>,
    /// Whether it ends.
    pub(crate) ended: bool,
}

/// One answer to each prompt, in that order; `seed` gives the seed of each draw.
pub(crate) fn write_answers(
    author: &Author<'_>,
    prompts: &[&[u32]],
    seed: impl Fn(usize) -> u64,
) -> Result<Vec<Written>> {
    let generator = Generator::new(author.model, author.tokenizer).keep_logprobs(true);
    let context = author.model.spec().max_position_embeddings;
    let asked = prompts.iter().enumerate().map(|(place, prompt)| {
        let max_tokens = author.max_new_tokens.min(context.saturating_sub(prompt.len()));
        (*prompt, Sampling { temperature: author.temperature, seed: seed(place), max_tokens, ..Sampling::default() })
    });
    let asked: Vec<_> = asked.collect();
    let written =
        with_precision(author.precision, || generator.write_all(&asked)).map_err(|error| Error::Examples {
            what: format!("prompts of a batch cannot be answered: {error}"),
            hint: "look at the prompts, and at the most tokens that an answer may have".into(),
        })?;
    let answer = |written: loam_infer::Written| {
        let (mut tokens, mut sampled) = (written.completion.tokens, written.completion.logprobs.unwrap_or_default());
        if let Some(end) = written.end {
            tokens.push(end.token);
            sampled.push(end.logprob);
        }
        Written { tokens, sampled, ended: written.end.is_some() }
    };
    Ok(written.into_iter().map(answer).collect())
}

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
        let author = Author {
            model: self.policy,
            tokenizer: self.tokenizer,
            temperature,
            max_new_tokens: settings.max_new_tokens,
            precision: settings.precision,
        };
        let count = chosen.len() * samples;
        let asked: Vec<&[u32]> = (0..count).map(|place| &prompts[chosen[place / samples]].ids[..]).collect();
        let seed = |place: usize| Stream::new(settings.seed, "answer", phase * count as u64 + place as u64).next_u64();
        let item = |(place, written): (usize, Written)| {
            let Written { tokens, sampled, ended } = written;
            let text = self.tokenizer.decode(&tokens[..tokens.len() - usize::from(ended)], true)?;
            Ok(Item { prompt: chosen[place / samples], tokens, sampled, ended, text, label: RlLabel::default() })
        };
        write_answers(&author, &asked, seed)?.into_iter().enumerate().map(item).collect()
    }

    /// Fills in log-probabilities under policy and reference, and values. Returns the largest difference between the
    /// log-probabilities of the sampler and of the trainer, both at temperature 1, and the mean entropy before a token at
    /// the temperature of the draw.
    pub(super) fn score(&self, items: &mut [Item]) -> Result<(f64, f64)> {
        let (settings, mut largest) = (&self.settings, 0.0f64);
        let (mut nats, mut tokens) = (0.0, 0);
        for part in items.chunks_mut(settings.micro_batch.max(1)) {
            let examples: Vec<Answers<RlLabel>> = self.examples(part, &self.prompts);
            let batch = AnswerBatch::pack(examples.iter(), Whole::default());
            let at = |model: &LanguageModel, temperature: f32| -> Result<(Vec<f32>, f64)> {
                let scored = Scored::of(model, &batch, &Pass::measuring(), temperature)?;
                Ok((scored.tokens.to_vec(), scored.entropy))
            };
            let work = || -> Result<_> {
                let (plain, entropy) = at(self.policy, 1.0)?;
                let (old, entropy) = match settings.temperature {
                    1.0 => (plain.clone(), entropy),
                    temperature => at(self.policy, temperature)?,
                };
                let reference = self.reference.map(|model| at(model, settings.temperature)).transpose()?;
                let reference = reference.map(|(tokens, _)| tokens);
                let values = match &self.value_head {
                    Some(head) => Some(values(&states(self.policy, &batch, &Pass::measuring())?, head).to_vec()),
                    None => None,
                };
                Ok((plain, old, reference, values, entropy))
            };
            let (plain, old, reference, values, entropy) = with_precision(settings.precision, || no_grad(work))?;
            nats += entropy * old.len() as f64;
            tokens += old.len();
            for (item, range) in part.iter_mut().zip(&batch.answers) {
                let differences = item.sampled.iter().zip(&plain[range.clone()]).map(|(a, b)| f64::from((a - b).abs()));
                largest = differences.fold(largest, f64::max);
                item.label.old = old[range.clone()].to_vec();
                item.label.reference = reference.as_ref().map_or(Vec::new(), |all| all[range.clone()].to_vec());
                item.label.values = values.as_ref().map_or(Vec::new(), |all| all[range.clone()].to_vec());
            }
        }
        Ok((largest, nats / tokens.max(1) as f64))
    }
}
