//! Conversations that a teacher's distribution is learnt on: those of the files, and with them answers that the student
//! writes itself.

use std::path::Path;
use std::sync::Arc;

use loam_data::Example;
use loam_data::dialogue::Dialogue;
use loam_data::preference::{AnswerBatch, AnswerLoader, Answers, Whole, micro_batches};
use loam_kernels::rng::Stream;
use loam_models::LanguageModel;
use loam_tensor::with_precision;
use loam_tokenizer::Tokenizer;
use serde_json::Value;

use super::answers::{Parts, encoder};
use super::chats::dialogues;
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::InOrder;
use crate::error::{Error, Result};
use crate::objective::Distill;
use crate::recipe::Recipe;
use crate::rollout::{Author, Written, write_answers};
use crate::trainer::{Observer, Settings, Summary};

/// Conversations of a recipe, and the teacher.
pub(super) struct Lessons {
    parts: Parts<()>,
    teacher: Arc<LanguageModel>,
}

impl Lessons {
    pub(super) fn open(recipe: &Recipe, start: &Start, seq_len: usize, observer: &mut dyn Observer) -> Result<Self> {
        let teacher = teacher(recipe, start, observer)?;
        let encoder = encoder(start, seq_len);
        let encode = |number: usize, dialogue: &Dialogue| {
            Ok(Answers { texts: vec![encoder.dialogue(dialogue, number)?], label: () })
        };
        Ok(Self { parts: Parts::encoded(dialogues(recipe, observer)?, encode)?, teacher: Arc::new(teacher) })
    }
}

fn teacher(recipe: &Recipe, start: &Start, observer: &mut dyn Observer) -> Result<LanguageModel> {
    let path = Path::new(recipe.distill.teacher.as_deref().unwrap_or_default());
    let refuse =
        |problem: &str, hint: &str| Error::RunDir { path: path.into(), problem: problem.into(), hint: hint.into() };
    let teacher = with_precision(recipe.train.precision.settled(), || LanguageModel::open_to_run(path))?;
    let spec = teacher.spec();
    if spec.encoder.is_some() || !spec.is_causal() || spec.head.task != loam_models::Task::LanguageModel {
        let problem = "a teacher writes from left to right, this model does not";
        return Err(refuse(problem, "take a model such as a `llama` or a `gpt2`"));
    }
    if Tokenizer::open(path)?.content_hash() != start.tokenizer.content_hash() {
        let hint =
            "for a new student set tokenizer.path to the teacher's directory; else choose a teacher of its family";
        return Err(refuse("the teacher has another tokenizer than the student", hint));
    }
    observer.on_message(&format!("teacher: {}, {} parameters", spec.summary(), teacher.num_parameters()));
    Ok(teacher)
}

/// What is read before the last thing that the assistant says.
fn prompt(example: &Example) -> &[u32] {
    let end = example.trained.iter().rposition(|&is| is).unwrap_or(0);
    let start = example.trained[..end].iter().rposition(|&is| !is).map_or(0, |before| before + 1);
    &example.ids[..start]
}

/// Whether the student writes the answers of a step itself.
fn is_on_policy(seed: u64, step: u64, share: f64) -> bool {
    Stream::new(seed, "on_policy", step).next_f64() < share
}

/// The batch of a step with answers that the student writes, as it is now, to the prompts of the files.
fn own_answers(
    (recipe, start, model): (&Recipe, &Start, &LanguageModel),
    loader: &AnswerLoader<()>,
    step: u64,
    micro: usize,
) -> Result<Vec<AnswerBatch<()>>> {
    let distill = &recipe.distill;
    let prompts: Vec<&[u32]> = loader.step(step).into_iter().map(|answers| prompt(&answers.texts[0])).collect();
    let author = Author {
        model,
        tokenizer: &start.tokenizer,
        temperature: distill.temperature as f32,
        max_new_tokens: distill.max_new_tokens,
        precision: Settings::of(recipe).precision,
    };
    let seed = |place: usize| Stream::new(recipe.seed, "lesson", step * prompts.len() as u64 + place as u64).next_u64();
    let written = write_answers(&author, &prompts, seed)?;
    let example = |(prompt, answer): (&&[u32], Written)| {
        let ids = [*prompt, &answer.tokens[..]].concat();
        let trained = (0..ids.len()).map(|place| place >= prompt.len()).collect();
        Answers { texts: vec![Example { ids, trained }], label: () }
    };
    let examples: Vec<Answers<()>> = prompts.iter().zip(written).map(example).collect();
    let examples: Vec<_> = examples.iter().collect();
    Ok(micro_batches(&examples, Whole::of(examples.iter().copied()), micro))
}

impl StageData for Lessons {
    fn sequences(&self) -> u64 {
        self.parts.train.len() as u64
    }

    fn description(&self) -> Value {
        self.parts.description.clone()
    }

    fn chat_end(&self) -> Option<u32> {
        self.parts.end()
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let micro = run.rows().1;
        let (loader, held_out) = (self.parts.loader(&run)?, self.parts.validation(&run)?);
        let (recipe, start, model) = (run.recipe, run.start, run.model);
        let distill = &recipe.distill;
        let source = |step: u64| match is_on_policy(recipe.seed, step, distill.on_policy) {
            true => own_answers((recipe, start, model), &loader, step, micro),
            false => Ok(loader.micro_batches(step, micro)),
        };
        let validation = held_out.as_ref().map(|loader| InOrder {
            len: loader.batches_in_order(micro),
            batch: |index| loader.batch_in_order(index, micro),
            bytes_per_token: None,
        });
        let objective = Distill {
            teacher: self.teacher.clone(),
            beta: distill.beta as f32,
            temperature: distill.temperature as f32,
        };
        run.run(objective, &source, validation.as_ref().map(|validation| validation as _))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_ends_where_the_last_answer_begins() {
        let example = |trained: &[u8]| Example {
            ids: (0..trained.len() as u32).collect(),
            trained: trained.iter().map(|&is| is == 1).collect(),
        };
        assert_eq!(prompt(&example(&[0, 0, 1, 1])), [0, 1]);
        assert_eq!(prompt(&example(&[0, 1, 0, 0, 1])), [0, 1, 2, 3]);
        assert_eq!(prompt(&example(&[0, 1, 1, 0])), [0]);
    }

    #[test]
    fn the_share_of_own_answers_is_kept() {
        let of = |share: f64| (0..2000).filter(|&step| is_on_policy(1, step, share)).count();
        assert_eq!((of(0.0), of(1.0)), (0, 2000));
        assert!((900..1100).contains(&of(0.5)));
    }
}
