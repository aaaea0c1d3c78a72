//! Rewards of answers: from a model, the garden's scorer, a pattern, or a program.

mod matcher;
mod program;

use std::path::Path;

use loam_data::garden::Question;
use loam_data::garden::preferences::quality;
use loam_data::loader::Example;
use loam_data::preference::{AnswerBatch, Answers, Whole};
use loam_models::{LanguageModel, Task};
use loam_tensor::{Precision, no_grad, with_precision};
use loam_tokenizer::Tokenizer;

pub use matcher::Matcher;
pub use program::Program;

use crate::error::{Error, Result};
use crate::objective::{Pass, with_input};
use crate::recipe::{RewardKind, RewardSource};
use crate::rollout::Prompted;

/// An answer to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// What was asked.
    pub prompt: &'a Prompted,
    /// The answer's tokens, with the end token where it has one.
    pub tokens: &'a [u32],
    /// Its text, without special tokens.
    pub text: &'a str,
}

/// Gives rewards.
pub trait Reward: Send {
    /// One number for every answer.
    fn rewards(&mut self, answers: &[Answered<'_>]) -> Result<Vec<f64>>;
}

/// Rewards of which each must be a finite number.
pub(crate) fn finite_rewards(reward: &mut dyn Reward, answers: &[Answered<'_>]) -> Result<Vec<f64>> {
    let rewards = reward.rewards(answers)?;
    match rewards.iter().zip(answers).find(|(reward, _)| !reward.is_finite()) {
        Some((reward, answer)) => Err(Error::Examples {
            what: format!("the answer {:?} got the reward {reward}", answer.text),
            hint: "a reward must be a finite number".into(),
        }),
        None => Ok(rewards),
    }
}

/// Opens what a recipe names and has been checked. `tokenizer` is the policy's.
pub fn open(source: &RewardSource, tokenizer: &Tokenizer, precision: Precision) -> Result<Box<dyn Reward>> {
    let path = Path::new(source.path.as_deref().unwrap_or_default());
    Ok(match source.kind {
        RewardKind::Garden => Box::new(GardenReward),
        RewardKind::Match => Box::new(Matcher::new(source.pattern())?),
        RewardKind::Model => Box::new(ModelReward::open(path, tokenizer, precision)?),
        RewardKind::Program => {
            Box::new(Program::start(source.command.as_deref().unwrap_or_default(), source.timeout())?)
        }
    })
}

/// The garden's own scorer.
#[derive(Clone, Copy, Debug, Default)]
pub struct GardenReward;

impl Reward for GardenReward {
    fn rewards(&mut self, answers: &[Answered<'_>]) -> Result<Vec<f64>> {
        let score = |answer: &Answered<'_>| {
            let question: Question =
                serde_json::from_value(answer.prompt.row.clone().into()).map_err(|error| Error::Examples {
                    what: format!("the prompt {:?} is no question of the garden: {error}", answer.prompt.text),
                    hint: "take prompts-train.jsonl of `loam data garden`, or choose another reward".into(),
                })?;
            Ok(quality(&question, answer.text))
        };
        answers.iter().map(score).collect()
    }
}

/// A model with one score, as the stage `reward` makes it.
pub struct ModelReward {
    model: LanguageModel,
    precision: Precision,
}

/// Answers that a reward model reads at once.
const BATCH: usize = 16;

impl ModelReward {
    /// Opens a directory. Its tokenizer must be the policy's.
    pub fn open(path: &Path, tokenizer: &Tokenizer, precision: Precision) -> Result<Self> {
        let refuse = |problem: String, hint: &str| Error::RunDir { path: path.into(), problem, hint: hint.into() };
        let model = with_precision(precision, || LanguageModel::open_to_run(path))?;
        let head = model.spec().head;
        if head.task != Task::SequenceClassification || head.num_labels != 1 {
            let problem = format!("a reward model gives one score, this one is for {}", head.task);
            return Err(refuse(problem, "train one with the stage `reward`"));
        }
        if Tokenizer::open(path)?.content_hash() != tokenizer.content_hash() {
            let problem = "the reward model has another tokenizer than the model that is trained".to_owned();
            return Err(refuse(problem, "train the reward model from the same base model"));
        }
        Ok(Self { model, precision })
    }
}

impl Reward for ModelReward {
    fn rewards(&mut self, answers: &[Answered<'_>]) -> Result<Vec<f64>> {
        let mut rewards = Vec::with_capacity(answers.len());
        let pass = Pass::measuring();
        for part in answers.chunks(BATCH) {
            let text = |answer: &Answered<'_>| {
                let ids = [&answer.prompt.ids[..], answer.tokens].concat();
                let trained = vec![true; ids.len()];
                Answers { texts: vec![Example { ids, trained }], label: () }
            };
            let texts: Vec<Answers<()>> = part.iter().map(text).collect();
            let batch = AnswerBatch::pack(texts.iter(), Whole::default());
            let work =
                || no_grad(|| with_input(&batch, |input| self.model.scores(input, &batch.texts, pass.forward())));
            let scores = with_precision(self.precision, work)?;
            rewards.extend(scores.to_vec().into_iter().map(f64::from));
        }
        Ok(rewards)
    }
}
