//! The second half of the road, from the tuned model: a reward model and PPO with it, DPO, GRPO, and a LoRA for another task.

use super::align_plan::Files;
use super::exam::{Form, Score, replies};
use super::grow::Lessons;
use super::{Road, Stage};
use crate::commands::merge::attach;
use crate::failure::Failure;
use crate::output;
use loam_chat::Message;
use loam_data::garden::{Question, TopicSentence};
use loam_infer::OpenModel;
use std::path::{Path, PathBuf};

/// What a stage of alignment left.
pub struct Aligned {
    /// Its row of the table.
    pub stage: Stage,
    /// Its model.
    pub model: PathBuf,
}

/// The models that answer questions, and the rows of those that do something else.
pub struct Alignment {
    /// PPO, DPO and GRPO.
    pub models: Vec<Aligned>,
    /// The reward model and the LoRA.
    pub others: Vec<Stage>,
}

impl Road<'_> {
    /// All stages of alignment. `None` where a signal ended the walk.
    pub fn align(
        &mut self,
        tuned: &Path,
        lessons: &Lessons,
        questions: &[Question],
    ) -> Result<Option<Alignment>, Failure> {
        let (seed, plan) = (self.args.seed, self.plan.align);
        let pairs = Files { train: &lessons.pairs.0, valid: &lessons.pairs.1 };
        let prompts = Files { train: &lessons.prompts.0, valid: &lessons.prompts.1 };
        self.heading("A reward model: of two answers to a question it learns which one is better");
        let Some(judge) = self.train(&plan.reward_recipe(seed, tuned, pairs)?, &self.dir.join("reward"), "reward")?
        else {
            return Ok(None);
        };
        let right = judge.evaluation.as_ref().and_then(|row| row.metrics.get("eval_accuracy").copied());
        output::say(&format!("{:.0} % of the held-out pairs ranked right", 100.0 * right.unwrap_or(0.0)));
        let reward = Stage { pairs: right, ..Stage::named("reward model") };
        let judge = self.dir.join("reward/model");
        let mut models = Vec::new();
        for (name, heading, recipe) in [
            (
                "PPO",
                "PPO: the tuned model writes answers, and learns from what the reward model says of them",
                plan.ppo_recipe(seed, tuned, prompts, &judge)?,
            ),
            (
                "DPO",
                "DPO: the tuned model again, learning from the pairs themselves without a reward model",
                plan.dpo_recipe(seed, tuned, pairs)?,
            ),
            (
                "GRPO",
                "GRPO: the tuned model again, eight answers to each question, and an exact scorer",
                plan.grpo_recipe(seed, tuned, prompts)?,
            ),
        ] {
            self.heading(heading);
            let run = self.dir.join(name.to_lowercase());
            if self.train(&recipe, &run, name)?.is_none() {
                return Ok(None);
            }
            let model = run.join("model");
            let score = super::exam::sit(&model, questions, Form::Chat, "questions")?;
            output::say(&score.summary(questions.len()));
            models.push(Aligned { stage: Stage { score: Some(score), ..Stage::named(name) }, model });
        }
        let Some(lora) = self.second_task(tuned, lessons)? else { return Ok(None) };
        Ok(Some(Alignment { models, others: vec![reward, lora] }))
    }

    /// A LoRA learns to say what a sentence is about, while the model itself stays as it is.
    fn second_task(&mut self, tuned: &Path, lessons: &Lessons) -> Result<Option<Stage>, Failure> {
        self.heading("LoRA: a small adapter beside the frozen model learns a second task, what a sentence is about");
        let before = name_topics(tuned, None, &lessons.asked)?;
        let files = Files { train: &lessons.topics.0, valid: &lessons.topics.1 };
        let run = self.dir.join("lora");
        let recipe = self.plan.align.lora_recipe(self.args.seed, tuned, files)?;
        let Some(summary) = self.train(&recipe, &run, "lora")? else { return Ok(None) };
        let after = name_topics(tuned, Some(&run), &lessons.asked)?;
        let kib = std::fs::metadata(run.join("adapter/adapter_model.safetensors")).map_or(0, |file| file.len() >> 10);
        output::say(&format!(
            "{:.0} % of {} topics right without the adapter, {:.0} % with it; it takes {kib} KiB",
            100.0 * before,
            lessons.asked.len(),
            100.0 * after
        ));
        Ok(Some(Stage { evaluation: summary.evaluation, topics: Some((before, after)), ..Stage::named("LoRA") }))
    }
}

/// What a model is asked about a sentence.
pub fn topic_question(sentence: &TopicSentence) -> String {
    format!("What is this about? {}", sentence.text)
}

/// Share of the sentences whose topic is named right.
fn name_topics(model: &Path, adapter: Option<&Path>, sentences: &[TopicSentence]) -> Result<f64, Failure> {
    let open = OpenModel::open(model)?;
    attach(&open.model, adapter)?;
    let generator = open.generator();
    let prompts = sentences.iter().map(|row| generator.encode_messages(&[Message::user(topic_question(row))]));
    let replies = replies(&generator, &prompts.collect::<Result<Vec<_>, _>>()?)?;
    let right = replies.iter().zip(sentences).filter(|(reply, row)| reply.trim_end_matches('.') == row.label).count();
    Ok(right as f64 / sentences.len().max(1) as f64)
}

/// The model with the best answers; of equals the first.
pub fn best<'a>(tuned: (&'a Path, &Score), models: &'a [Aligned]) -> &'a Path {
    let mut best = (tuned.0, tuned.1.quality());
    for Aligned { stage, model } in models {
        let quality = stage.score.as_ref().map_or(0.0, Score::quality);
        if quality > best.1 {
            best = (model.as_path(), quality);
        }
    }
    best.0
}
