//! Answers that the policy writes while it is trained, with their rewards and advantages.
//!
//! One code for every kind of online learning: prompts are drawn as a function of the seed, the inference engine writes the
//! answers, the trainer's own forward pass scores them (and must agree with the sampler), rewards become advantages. A batch of
//! answers may serve several optimizer steps; until then it is part of the checkpoint.

mod advantages;
mod critic;
mod phase;
mod write;

use std::sync::Mutex;

use loam_data::loader::Example;
use loam_data::permute::epoch_order;
use loam_data::preference::{AnswerBatch, Answers, Whole, micro_batches};
use loam_kernels::rng::Stream;
use loam_models::LanguageModel;
use loam_tensor::{Parameter, Precision, Tensor};
use loam_tokenizer::Tokenizer;
use serde_json::{Map, Value};

pub use phase::{Item, News, RlLabel};
pub(crate) use write::{Author, Written, write_answers};

use crate::batch::{Source, Validation};
use crate::error::{Error, Result};
use crate::losses::policy::{BatchSize, KlEstimator, RewardScale};
use crate::objective::Loss;
use crate::recipe::Stage;
use crate::reward::Reward;
use phase::Phase;

/// A prompt in ids, with what its scorer needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompted {
    /// What is asked, for readers.
    pub text: String,
    /// It up to where the answer begins.
    pub ids: Vec<u32>,
    /// The row of the data.
    pub row: Map<String, Value>,
    /// Its field with the right answer.
    pub answer_field: String,
}

/// How answers are written and judged.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutSettings {
    /// `grpo`, `rloo`, `reinforce` or `ppo`.
    pub stage: Stage,
    /// Answers per phase.
    pub batch: usize,
    /// Answers per forward pass.
    pub micro_batch: usize,
    /// Answers per prompt.
    pub samples: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Temperature of the draw.
    pub temperature: f32,
    /// Passes over a phase's answers.
    pub iterations: u64,
    /// Optimizer steps per pass.
    pub minibatches: u64,
    /// Price of the distance to the reference.
    pub beta: f64,
    /// How that is estimated.
    pub kl: KlEstimator,
    /// Distance per answer that the price is steered towards.
    pub target_kl: Option<f64>,
    /// What group advantages are divided by.
    pub scale: RewardScale,
    /// Discount per token.
    pub gamma: f64,
    /// Mix of the advantage estimate.
    pub lambda: f64,
    /// Taken from the reward of an answer that does not end.
    pub missing_end_penalty: f64,
    /// Seed of prompts and draws.
    pub seed: u64,
    /// Number format of the forward passes.
    pub precision: Precision,
}

/// A micro-batch of answers.
#[derive(Clone, Debug)]
pub struct RlBatch {
    /// The answers.
    pub answers: AnswerBatch<RlLabel>,
    /// What the phase was like.
    pub news: News,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

impl RlBatch {
    /// Tokens that the model reads.
    pub fn tokens(&self) -> usize {
        self.answers.text_tokens()
    }

    /// Whether an answer was better or worse than expected.
    pub(crate) fn teaches(&self) -> bool {
        self.answers.labels.iter().any(RlLabel::teaches)
    }

    pub(crate) fn size(&self) -> BatchSize {
        let Whole { examples, tokens, .. } = self.answers.whole;
        BatchSize { answers: examples, tokens, max_tokens: self.max_tokens }
    }

    /// A number of every token, all answers end to end.
    pub(crate) fn flat<'a>(&'a self, of: impl Fn(&'a RlLabel) -> &'a Vec<f32>) -> Vec<f32> {
        self.answers.labels.iter().flat_map(of).copied().collect()
    }

    /// Means as sums over the answers, with the phase's own.
    pub(crate) fn report(&self, metrics: Vec<(&'static str, f64)>) -> Vec<(&'static str, f64)> {
        let count = self.answers.labels.len() as f64;
        metrics.into_iter().chain(self.news.metrics()).map(|(name, mean)| (name, mean * count)).collect()
    }

    /// What an evaluation says: the loss is the negative reward.
    pub(crate) fn measured(&self) -> Loss {
        let count = self.answers.labels.len() as f64;
        let tensor = Tensor::from((-self.news.reward * count) as f32);
        Loss { tensor, metrics: self.report(Vec::new()) }
    }
}

/// Where the batches of online learning come from.
pub struct Rollouts<'a> {
    policy: &'a LanguageModel,
    reference: Option<&'a LanguageModel>,
    tokenizer: &'a Tokenizer,
    prompts: Vec<Prompted>,
    held_out: Vec<Prompted>,
    reward: Mutex<Box<dyn Reward + 'a>>,
    value_head: Option<Parameter>,
    settings: RolloutSettings,
    phase: Mutex<Option<Phase>>,
}

/// Held-out prompts that are answered together.
const HELD_OUT_AT_ONCE: usize = 32;

impl<'a> Rollouts<'a> {
    /// Rollouts of a policy. A distance to a reference is taken where there is one.
    pub fn new(
        (policy, reference): (&'a LanguageModel, Option<&'a LanguageModel>),
        tokenizer: &'a Tokenizer,
        (prompts, held_out): (Vec<Prompted>, Vec<Prompted>),
        reward: Box<dyn Reward + 'a>,
        value_head: Option<Parameter>,
        settings: RolloutSettings,
    ) -> Result<Self> {
        let longest = prompts.iter().chain(&held_out).map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let context = policy.spec().max_position_embeddings;
        if prompts.is_empty() || longest + settings.max_new_tokens > context {
            return Err(Error::Examples {
                what: format!(
                    "{} prompts of up to {longest} tokens and answers of rl.max_new_tokens = {} in a context of {context}",
                    prompts.len(),
                    settings.max_new_tokens
                ),
                hint: "there must be a prompt, and room for its answer: lower rl.max_new_tokens".into(),
            });
        }
        let (reward, phase) = (Mutex::new(reward), Mutex::new(None));
        Ok(Self { policy, reference, tokenizer, prompts, held_out, reward, value_head, settings, phase })
    }

    /// Optimizer steps per phase.
    fn updates(&self) -> u64 {
        self.settings.iterations * self.settings.minibatches
    }

    /// A phase as examples.
    fn examples(&self, items: &[Item], prompts: &[Prompted]) -> Vec<Answers<RlLabel>> {
        let example = |item: &Item| {
            let prompt = &prompts[item.prompt].ids;
            let ids = [&prompt[..], &item.tokens].concat();
            let trained = (0..ids.len()).map(|place| place >= prompt.len()).collect();
            Answers { texts: vec![Example { ids, trained }], label: item.label.clone() }
        };
        items.iter().map(example).collect()
    }

    fn rewards(&self, items: &[Item], prompts: &[Prompted]) -> Result<Vec<f64>> {
        let answered: Vec<_> = items
            .iter()
            .map(|item| crate::reward::Answered {
                prompt: &prompts[item.prompt],
                tokens: &item.tokens,
                text: &item.text,
            })
            .collect();
        crate::reward::finite_rewards(&mut **lock(&self.reward), &answered)
    }

    /// Writes and judges the answers of a phase.
    fn phase(&self, index: u64, before: Option<&Phase>) -> Result<Phase> {
        let settings = &self.settings;
        let coefficient = before.map_or(settings.beta, |before| before.next_coefficient(settings));
        let count = (settings.batch / settings.samples).max(1) as u64;
        let drawn = epoch_order(self.prompts.len() as u64, settings.seed, index * count..(index + 1) * count);
        let prompts: Vec<usize> = drawn.map(|(_, prompt)| prompt as usize).collect();
        let mut items = self.write(&self.prompts, &prompts, settings.samples, index, settings.temperature)?;
        let (agreement, entropy) = self.score(&mut items)?;
        let mut rewards = self.rewards(&items, &self.prompts)?;
        for (reward, item) in rewards.iter_mut().zip(&items) {
            *reward -= if item.ended { 0.0 } else { settings.missing_end_penalty };
        }
        if index == 0 && before.is_none() && self.begin_values(&items, &rewards)? {
            self.score(&mut items)?;
        }
        let distances = self.distances(&items);
        let mut news = News::of(&items, &rewards, settings.samples);
        (news.agreement, news.entropy) = (Some(agreement), Some(entropy));
        news.kl = distances.as_ref().map(|all| mean_of_sums(all));
        if settings.stage == Stage::Grpo {
            // Its distance is measured where it is a part of the loss.
            news.kl = None;
        }
        if settings.stage == Stage::Ppo {
            news.coefficient = Some(coefficient);
        }
        self.advantages(&mut items, &rewards, distances.as_deref(), coefficient);
        Ok(Phase { index, coefficient, items, news })
    }

    /// The answers of an optimizer step within its phase.
    fn part(&self, phase: &Phase, step: u64) -> Vec<RlBatch> {
        let settings = &self.settings;
        let all = self.examples(&phase.items, &self.prompts);
        let mut order: Vec<usize> = (0..all.len()).collect();
        let within = step % self.updates();
        if settings.minibatches > 1 {
            Stream::new(settings.seed, "minibatch", step - within % settings.minibatches).shuffle(&mut order);
        }
        let size = all.len().div_ceil(settings.minibatches as usize);
        let start = (within % settings.minibatches) as usize * size;
        let own: Vec<&Answers<RlLabel>> =
            order[start.min(all.len())..(start + size).min(all.len())].iter().map(|&at| &all[at]).collect();
        let max_tokens = settings.max_new_tokens;
        let batch = |answers| RlBatch { answers, news: phase.news.clone(), max_tokens };
        // Answers that are as good as all others to their prompt are by themselves: an objective may pass over them.
        let whole = Whole::of(own.iter().copied());
        let (teaching, silent): (Vec<_>, Vec<_>) = own.into_iter().partition(|answer| answer.label.teaches());
        let cut = |part: Vec<_>| micro_batches(&part, whole, settings.micro_batch);
        cut(teaching).into_iter().chain(cut(silent)).map(batch).collect()
    }
}

fn mean_of_sums(distances: &[Vec<f32>]) -> f64 {
    let sum: f64 = distances.iter().flatten().map(|&x| f64::from(x)).sum();
    sum / distances.len().max(1) as f64
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Source<RlBatch> for Rollouts<'_> {
    fn batch(&self, step: u64) -> Result<Vec<RlBatch>> {
        let mut phase = lock(&self.phase);
        let index = step / self.updates();
        if phase.as_ref().is_none_or(|phase| phase.index != index) {
            let new = self.phase(index, phase.as_ref())?;
            *phase = Some(new);
        }
        Ok(phase.as_ref().map(|phase| self.part(phase, step)).unwrap_or_default())
    }

    fn state(&self) -> Result<Option<String>> {
        Ok(lock(&self.phase).as_ref().map(Phase::to_json))
    }

    fn restore(&self, state: &str) -> Result<()> {
        *lock(&self.phase) = Some(Phase::from_json(state)?);
        Ok(())
    }
}

/// Held-out prompts, answered with the most likely tokens.
pub(crate) struct HeldOut<'r, 'a>(pub(crate) &'r Rollouts<'a>);

impl Validation<RlBatch> for HeldOut<'_, '_> {
    fn len(&self) -> u64 {
        self.0.held_out.len().div_ceil(HELD_OUT_AT_ONCE) as u64
    }

    fn batch(&self, index: u64) -> Result<RlBatch> {
        let rollouts = self.0;
        let start = index as usize * HELD_OUT_AT_ONCE;
        let prompts: Vec<usize> = (start..rollouts.held_out.len().min(start + HELD_OUT_AT_ONCE)).collect();
        let items = rollouts.write(&rollouts.held_out, &prompts, 1, 0, 0.0)?;
        let rewards = rollouts.rewards(&items, &rollouts.held_out)?;
        let news = News::of(&items, &rewards, 1);
        let examples = rollouts.examples(&items, &rollouts.held_out);
        let answers = AnswerBatch::pack(examples.iter(), Whole::of(examples.iter()));
        Ok(RlBatch { answers, news, max_tokens: rollouts.settings.max_new_tokens })
    }

    fn bytes_per_token(&self) -> Option<f64> {
        None
    }
}
