//! Batches of answers: packed side by side, each with its own segment and positions.

use std::ops::Range;

use crate::loader::Example;
use crate::permute::epoch_order;
use crate::{Error, Result};

/// Rows are as long as the longest text, rounded up to this, so that few different sizes occur.
const ROW_STEP: usize = 32;

/// One or several answers that must be in the same batch, and what is known about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers<L> {
    /// Prompts with answers.
    pub texts: Vec<Example>,
    /// What is known.
    pub label: L,
}

/// Sizes of the whole batch of a step, of which a micro-batch is a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Whole {
    /// Examples.
    pub examples: usize,
    /// Trained tokens.
    pub tokens: usize,
    /// Trained tokens of each example's first text.
    pub first_tokens: usize,
}

/// A micro-batch. Fields per token are `[rows, seq_len]`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerBatch<L> {
    /// Number of rows.
    pub rows: usize,
    /// Positions per row.
    pub seq_len: usize,
    /// Inputs.
    pub tokens: Vec<u32>,
    /// Per position the number of its text within the row; padding has the first number that is free.
    pub segments: Vec<u32>,
    /// Per position its distance from the start of its text.
    pub positions: Vec<u32>,
    /// Every text's positions, counted through all rows, example by example.
    pub texts: Vec<Range<usize>>,
    /// Positions after which a trained token comes, in ascending order.
    pub places: Vec<u32>,
    /// That token.
    pub next: Vec<u32>,
    /// Every text's part of `places`.
    pub answers: Vec<Range<usize>>,
    /// Every example's label.
    pub labels: Vec<L>,
    /// Sizes of the step's whole batch.
    pub whole: Whole,
}

impl<L> AnswerBatch<L> {
    /// Tokens that a model reads, without padding.
    pub fn text_tokens(&self) -> usize {
        self.texts.iter().map(ExactSizeIterator::len).sum()
    }
}

impl<L: Clone> AnswerBatch<L> {
    /// Packs examples in their order. Every text is some token long and starts with one that is not trained.
    pub fn pack<'a>(examples: impl Iterator<Item = &'a Answers<L>> + Clone, whole: Whole) -> Self
    where
        L: 'a,
    {
        let longest = examples.clone().flat_map(|example| &example.texts).map(|text| text.ids.len()).max().unwrap_or(1);
        let seq_len = longest.next_multiple_of(ROW_STEP);
        let mut batch = Self {
            rows: 0,
            seq_len,
            tokens: Vec::new(),
            segments: Vec::new(),
            positions: Vec::new(),
            texts: Vec::new(),
            places: Vec::new(),
            next: Vec::new(),
            answers: Vec::new(),
            labels: Vec::new(),
            whole,
        };
        let mut segment = 0;
        for example in examples {
            for text in &example.texts {
                if batch.tokens.len() - batch.rows * seq_len + text.ids.len() > seq_len {
                    batch.end_row(segment);
                    segment = 0;
                }
                batch.push(text, segment);
                segment += 1;
            }
            batch.labels.push(example.label.clone());
        }
        batch.end_row(segment);
        batch
    }

    fn push(&mut self, text: &Example, segment: u32) {
        let (start, first) = (self.tokens.len(), self.places.len());
        self.tokens.extend(&text.ids);
        self.positions.extend(0..text.ids.len() as u32);
        self.segments.resize(self.tokens.len(), segment);
        for place in (1..text.ids.len()).filter(|&place| text.trained[place]) {
            self.places.push((start + place - 1) as u32);
            self.next.push(text.ids[place]);
        }
        self.texts.push(start..self.tokens.len());
        self.answers.push(first..self.places.len());
    }

    fn end_row(&mut self, segment: u32) {
        self.rows += 1;
        let size = self.rows * self.seq_len;
        self.positions.extend(0..(size - self.tokens.len()) as u32);
        self.tokens.resize(size, 0);
        self.segments.resize(size, segment);
    }
}

fn trained(text: &Example) -> usize {
    text.trained.iter().skip(1).filter(|&&is| is).count()
}

impl Whole {
    /// The sizes of some examples.
    pub fn of<'a, L: 'a>(examples: impl Iterator<Item = &'a Answers<L>>) -> Self {
        let mut whole = Self::default();
        for example in examples {
            whole.examples += 1;
            whole.tokens += example.texts.iter().map(trained).sum::<usize>();
            whole.first_tokens += example.texts.first().map_or(0, trained);
        }
        whole
    }
}

/// Cuts examples of a step, which has `whole`, into micro-batches of at most `micro` examples.
pub fn micro_batches<L: Clone>(examples: &[&Answers<L>], whole: Whole, micro: usize) -> Vec<AnswerBatch<L>> {
    examples.chunks(micro.max(1)).map(|part| AnswerBatch::pack(part.iter().copied(), whole)).collect()
}

/// Gives out batches of answers as a pure function of (seed, step), so resuming costs nothing.
#[derive(Debug)]
pub struct AnswerLoader<L> {
    examples: Vec<Answers<L>>,
    batch: usize,
    seed: u64,
}

impl<L: Clone> AnswerLoader<L> {
    /// A loader of `batch` examples per step. It is an error if there is no example, or a text without a trained token.
    pub fn new(examples: Vec<Answers<L>>, batch: usize, seed: u64) -> Result<Self> {
        if examples.is_empty() {
            return Err(Error::NothingLeft { reason: "there is no answer to train on".into() });
        }
        let bad = examples.iter().position(|e| e.texts.is_empty() || e.texts.iter().any(|text| trained(text) == 0));
        if let Some(index) = bad {
            return Err(Error::NothingLeft { reason: format!("example {} has no trained token", index + 1) });
        }
        Ok(Self { examples, batch: batch.max(1), seed })
    }

    /// The examples.
    pub fn examples(&self) -> &[Answers<L>] {
        &self.examples
    }

    /// The examples of a step: shuffled, every one once per epoch, for ever.
    pub fn step(&self, step: u64) -> Vec<&Answers<L>> {
        let batch = self.batch as u64;
        let order = epoch_order(self.examples.len() as u64, self.seed, step * batch..(step + 1) * batch);
        order.map(|(_, index)| &self.examples[index as usize]).collect()
    }

    /// The micro-batches of a step's examples.
    pub fn micro_batches(&self, step: u64, micro: usize) -> Vec<AnswerBatch<L>> {
        let examples = self.step(step);
        micro_batches(&examples, Whole::of(examples.iter().copied()), micro)
    }

    /// How many batches of at most `micro` examples all of them make.
    pub fn batches_in_order(&self, micro: usize) -> u64 {
        self.examples.len().div_ceil(micro.max(1)) as u64
    }

    /// One of these, in a fixed order, for measuring.
    pub fn batch_in_order(&self, index: u64, micro: usize) -> AnswerBatch<L> {
        let start = index as usize * micro.max(1);
        let part = &self.examples[start..(start + micro.max(1)).min(self.examples.len())];
        AnswerBatch::pack(part.iter(), Whole::of(part.iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(first: u32, prompt: usize, answer: usize) -> Example {
        let len = prompt + answer;
        Example { ids: (first..first + len as u32).collect(), trained: (0..len).map(|i| i >= prompt).collect() }
    }

    #[test]
    fn texts_lie_side_by_side_and_trained_tokens_follow_their_places() {
        let pair = |at: u32| Answers { texts: vec![example(at, 3, 2), example(at + 50, 4, 20)], label: at };
        let examples = [pair(100), pair(200), pair(300)];
        let all: Vec<&Answers<u32>> = examples.iter().collect();
        let batches = micro_batches(&all, Whole::of(all.iter().copied()), 2);
        assert_eq!(batches.len(), 2);
        for batch in &batches {
            assert_eq!(batch.whole, Whole { examples: 3, tokens: 66, first_tokens: 6 });
            assert_eq!((batch.seq_len, batch.tokens.len()), (32, batch.rows * 32));
            for (place, next) in batch.places.iter().zip(&batch.next) {
                assert_eq!(batch.tokens[*place as usize] + 1, *next);
            }
            for (text, answer) in batch.texts.iter().zip(&batch.answers) {
                assert_eq!(batch.places[answer.end - 1] as usize, text.end - 2);
                assert!(batch.positions[text.clone()].iter().copied().eq(0..text.len() as u32));
                let segment = batch.segments[text.start];
                let row = text.start / 32 * 32;
                assert!((row..row + 32).filter(|&i| batch.segments[i] == segment).eq(text.clone()));
            }
        }
        assert_eq!(batches[0].labels, [100, 200]);
        assert_eq!(batches[0].answers, [0..2, 2..22, 22..24, 24..44]);
    }

    #[test]
    fn an_epoch_sees_every_example_once() {
        let examples = (0..10).map(|i| Answers { texts: vec![example(i, 2, 3)], label: i }).collect();
        let loader = AnswerLoader::new(examples, 5, 7).unwrap();
        let mut seen: Vec<u32> =
            (0..2).flat_map(|step| loader.micro_batches(step, 2)).flat_map(|batch| batch.labels).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..10));
        assert_eq!((loader.batches_in_order(4), loader.batch_in_order(2, 4).labels), (3, vec![8, 9]));
        let nothing = Answers { texts: vec![example(1, 3, 0)], label: 0 };
        assert!(AnswerLoader::new(vec![nothing], 1, 0).unwrap_err().to_string().contains("example 1"));
    }
}
