//! Held-out questions: put to a model, scored exactly, counted by category.

use crate::failure::Failure;
use crate::progress::Progress;
use loam_chat::{Message, Sampling};
use loam_data::garden::preferences::quality;
use loam_data::garden::{Category, Lang, Question};
use loam_infer::{Generator, OpenModel};
use std::path::Path;

/// Longest reply in tokens; the longest right one has about half of it.
const LONGEST_REPLY: usize = 48;
/// Questions put between two updates of the progress bar.
const AT_ONCE: usize = 20;

/// How a question is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As the text that the base model knows questions from: `Question: … Answer:`, ended by the line.
    Text,
    /// As a user's message.
    Chat,
}

/// Right answers by category, and how good all of them are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    counts: Vec<(Category, usize, usize)>,
    quality: f64,
}

impl Score {
    fn add(&mut self, category: Category, is_right: bool, quality: f64) {
        self.quality += quality;
        let index = self.counts.iter().position(|(known, ..)| *known == category).unwrap_or_else(|| {
            self.counts.push((category, 0, 0));
            self.counts.len() - 1
        });
        self.counts[index].1 += usize::from(is_right);
        self.counts[index].2 += 1;
    }

    /// Share of right answers in a category; `None` where nothing of it was asked.
    pub fn of(&self, category: Category) -> Option<f64> {
        let (_, right, all) = self.counts.iter().find(|(known, ..)| *known == category)?;
        Some(*right as f64 / *all as f64)
    }

    /// Share of right answers to all questions.
    pub fn total(&self) -> f64 {
        let sum = |pick: fn(&(Category, usize, usize)) -> usize| self.counts.iter().map(pick).sum::<usize>();
        sum(|c| c.1) as f64 / sum(|c| c.2).max(1) as f64
    }

    /// Mean quality of the answers, between 0 and 1: right ones that say nothing further have 1, right ones that go on 0.5.
    pub fn quality(&self) -> f64 {
        self.quality / self.counts.iter().map(|count| count.2).sum::<usize>().max(1) as f64
    }

    /// In words.
    pub fn summary(&self, questions: usize) -> String {
        format!("{:.0} % of {questions} right, answer quality {:.2}", 100.0 * self.total(), self.quality())
    }
}

/// Puts all questions to the model in `dir`, always with the most likely answer.
pub fn sit(dir: &Path, questions: &[Question], form: Form, name: &str) -> Result<Score, Failure> {
    sit_with(&OpenModel::open(dir)?, questions, form, name)
}

/// Puts all questions to an open model, always with the most likely answer.
pub fn sit_with(open: &OpenModel, questions: &[Question], form: Form, name: &str) -> Result<Score, Failure> {
    let generator = open.generator();
    let mut score = Score::default();
    let mut progress = Progress::new(name, questions.len() as u64);
    let mut done = 0;
    for some in questions.chunks(AT_ONCE) {
        let prompts = some.iter().map(|question| prompt(&generator, question, form));
        let replies = replies(&generator, &prompts.collect::<Result<Vec<_>, _>>()?)?;
        for (question, reply) in some.iter().zip(&replies) {
            score.add(question.category, question.is_right(reply), quality(question, reply));
        }
        done += some.len() as u64;
        progress.update(done, &format!("{:.0} % right", 100.0 * score.total()));
    }
    Ok(score)
}

/// The prompt of a question.
fn prompt(generator: &Generator<'_>, question: &Question, form: Form) -> Result<Vec<u32>, Failure> {
    Ok(match form {
        Form::Text => generator.encode_prompt(&as_text(question))?,
        Form::Chat => generator.encode_messages(&[Message::user(&question.prompt)])?,
    })
}

/// The most likely replies to some prompts, in order, each of one line.
pub fn replies(generator: &Generator<'_>, prompts: &[Vec<u32>]) -> Result<Vec<String>, Failure> {
    let sampling = Sampling { max_tokens: LONGEST_REPLY, stop: vec!["\n".into()], ..Sampling::greedy() };
    let completions = generator.write_batch(prompts, &sampling)?;
    Ok(completions.into_iter().map(|completion| completion.text.trim().to_owned()).collect())
}

fn as_text(question: &Question) -> String {
    match question.lang {
        Lang::En => format!("Question: {}\nAnswer:", question.prompt),
        Lang::Zh => format!("问：{}\n答：", question.prompt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_counted_by_category_and_in_all() {
        let mut score = Score::default();
        score.add(Category::Fact, true, 1.0);
        score.add(Category::Fact, false, 0.0);
        score.add(Category::Copy, true, 0.5);
        score.add(Category::Copy, true, 1.0);
        assert_eq!((score.of(Category::Fact), score.of(Category::Copy)), (Some(0.5), Some(1.0)));
        assert_eq!((score.of(Category::Recall), score.total(), score.quality()), (None, 0.75, 0.625));
        assert_eq!(Score::default().total(), 0.0);
    }
}
