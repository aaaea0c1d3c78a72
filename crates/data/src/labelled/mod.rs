//! Examples with labels, packed: several texts share a row, each with its own segment and its own positions.
//!
//! A batch says where each text lies, so that a head can pool its first token, its last or all of them. One module per
//! task turns rows of files into [`Labelled`] examples: [`classify`], [`token_classify`], [`qa`], [`contrastive`].

pub mod classify;
pub mod contrastive;
pub mod entities;
pub mod qa;
pub mod squad;
pub mod token_classify;
mod wrap;

pub use wrap::Wrap;

use std::ops::Range;

use crate::loader::IGNORED;
use crate::packing::Groups;
use crate::permute::epoch_order;
use crate::{Error, Result};

/// One text as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text {
    /// Its tokens, special ones included.
    pub tokens: Vec<u32>,
    /// Per token 0, or 1 in the second of two sentences. A model with one kind of token ignores it.
    pub token_types: Vec<u32>,
}

/// An example: one text, or several that must be in the same batch, and what is to be learnt about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled<L> {
    /// Its texts.
    pub texts: Vec<Text>,
    /// What is true of it.
    pub label: L,
}

/// What batches of labelled examples look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelledConfig {
    /// Positions per batch; a batch has as many rows as fit.
    pub batch_tokens: usize,
    /// Positions per row.
    pub seq_len: usize,
    /// Seed of the order.
    pub seed: u64,
}

/// Where a text lies in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSpan {
    /// Which of the batch's examples it belongs to: an index into [`LabelledBatch::labels`].
    pub example: usize,
    /// Its positions in the flattened `[rows * seq_len]` batch; the first is that of its first token (`[CLS]`).
    pub range: Range<usize>,
}

/// A batch of labelled examples. Fields per token are `[rows, seq_len]`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledBatch<L> {
    /// Number of rows.
    pub rows: usize,
    /// Positions per row.
    pub seq_len: usize,
    /// Inputs.
    pub tokens: Vec<u32>,
    /// Per position 0 or 1, see [`Text::token_types`].
    pub token_types: Vec<u32>,
    /// Per position the number of its text within the row; padding has the first number that is free.
    pub segments: Vec<u32>,
    /// Per position its distance from the start of its text.
    pub positions: Vec<u32>,
    /// Every text, in the order of the examples and of the texts within them.
    pub texts: Vec<TextSpan>,
    /// Every example's label.
    pub labels: Vec<L>,
    /// Every example's index in the list that the loader was made of.
    pub indices: Vec<u64>,
}

impl<L: Clone> LabelledBatch<L> {
    fn push(&mut self, index: u64, example: &Labelled<L>, segment: &mut u32) {
        for text in &example.texts {
            let start = self.tokens.len();
            self.tokens.extend(&text.tokens);
            self.token_types.extend(&text.token_types);
            self.positions.extend(0..text.tokens.len() as u32);
            self.segments.resize(self.tokens.len(), *segment);
            self.texts.push(TextSpan { example: self.labels.len(), range: start..self.tokens.len() });
            *segment += 1;
        }
        self.labels.push(example.label.clone());
        self.indices.push(index);
    }

    fn end_row(&mut self, segment: u32) {
        self.rows += 1;
        let size = self.rows * self.seq_len;
        self.positions.extend(0..(size - self.tokens.len()) as u32);
        self.tokens.resize(size, 0);
        self.token_types.resize(size, 0);
        self.segments.resize(size, segment);
    }
}

impl LabelledBatch<Vec<i32>> {
    /// The labels of tokens at their positions, [`IGNORED`] elsewhere: `[rows, seq_len]`.
    pub fn targets(&self) -> Vec<i32> {
        let mut targets = vec![IGNORED; self.tokens.len()];
        for text in &self.texts {
            targets[text.range.clone()].copy_from_slice(&self.labels[text.example]);
        }
        targets
    }
}

/// Gives out batches of labelled examples as a pure function of (seed, step), so resuming costs nothing.
#[derive(Debug)]
pub struct LabelledLoader<L> {
    examples: Vec<Labelled<L>>,
    config: LabelledConfig,
    groups: Groups,
}

impl<L: Clone> LabelledLoader<L> {
    /// Plans the rows. It is an error if there is no example, if one is empty or longer than a row, or if no row fits a
    /// batch.
    pub fn new(examples: Vec<Labelled<L>>, config: LabelledConfig) -> Result<Self> {
        if config.seq_len == 0 || config.batch_tokens < config.seq_len {
            let found = config.batch_tokens.to_string();
            return Err(Error::Setting { key: "batch_tokens", found, expected: "at least seq_len, which is above 0" });
        }
        if examples.is_empty() {
            return Err(Error::NothingLeft { reason: "there is no labelled example".into() });
        }
        for (index, example) in examples.iter().enumerate() {
            let len = len(example);
            if len == 0 || len > config.seq_len {
                let reason = format!("example {} has {len} tokens, a row holds 1 to {}", index + 1, config.seq_len);
                return Err(Error::NothingLeft { reason });
            }
        }
        let sizes = |index: u64| [len(&examples[index as usize]), 0];
        let groups = Groups::new(examples.len() as u64, sizes, [config.seq_len, 0], config.seed);
        Ok(Self { examples, config, groups })
    }

    /// The examples.
    pub fn examples(&self) -> &[Labelled<L>] {
        &self.examples
    }

    /// The settings.
    pub fn config(&self) -> LabelledConfig {
        self.config
    }

    /// Rows of a batch.
    pub fn rows(&self) -> usize {
        self.config.batch_tokens / self.config.seq_len
    }

    /// Rows after which everything was seen once.
    pub fn rows_per_epoch(&self) -> u64 {
        self.groups.rows()
    }

    /// How many epochs `steps` batches are.
    pub fn epochs(&self, steps: u64) -> f64 {
        (steps * self.rows() as u64) as f64 / self.rows_per_epoch() as f64
    }

    /// The training batch of a step: shuffled, every row once per epoch, for ever.
    pub fn batch(&self, step: u64) -> LabelledBatch<L> {
        let rows = self.rows() as u64;
        self.samples(step * rows..(step + 1) * rows)
    }

    /// The training batch of a step in parts of at most `rows` rows.
    pub fn micro_batches(&self, step: u64, rows: usize) -> Vec<LabelledBatch<L>> {
        let all = self.rows() as u64;
        let starts = (step * all..(step + 1) * all).step_by(rows.max(1));
        starts.map(|start| self.samples(start..((step + 1) * all).min(start + rows.max(1) as u64))).collect()
    }

    /// How many batches all rows make once.
    pub fn batches_in_order(&self) -> u64 {
        self.rows_per_epoch().div_ceil(self.rows() as u64)
    }

    /// One of the batches of all rows in a fixed order, for measuring; the last may have fewer rows.
    pub fn batch_in_order(&self, index: u64) -> LabelledBatch<L> {
        let rows = self.rows() as u64;
        self.collect(index * rows..self.rows_per_epoch().min((index + 1) * rows))
    }

    fn samples(&self, samples: Range<u64>) -> LabelledBatch<L> {
        self.collect(epoch_order(self.rows_per_epoch(), self.config.seed, samples).map(|(_, row)| row))
    }

    fn collect(&self, rows: impl Iterator<Item = u64>) -> LabelledBatch<L> {
        let mut batch = LabelledBatch {
            rows: 0,
            seq_len: self.config.seq_len,
            tokens: Vec::new(),
            token_types: Vec::new(),
            segments: Vec::new(),
            positions: Vec::new(),
            texts: Vec::new(),
            labels: Vec::new(),
            indices: Vec::new(),
        };
        for row in rows {
            let mut segment = 0;
            for &index in self.groups.row(row) {
                batch.push(index, &self.examples[index as usize], &mut segment);
            }
            batch.end_row(segment);
        }
        batch
    }
}

fn len<L>(example: &Labelled<L>) -> usize {
    example.texts.iter().map(|text| text.tokens.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(count: usize, texts: usize) -> Vec<Labelled<usize>> {
        let text = |i: usize, t: usize| {
            let len = 1 + (i * 7 + t) % 6;
            Text { tokens: vec![(10 * i + t) as u32; len], token_types: vec![t as u32 % 2; len] }
        };
        (0..count).map(|i| Labelled { texts: (0..texts).map(|t| text(i, t)).collect(), label: i }).collect()
    }

    const CONFIG: LabelledConfig = LabelledConfig { batch_tokens: 70, seq_len: 20, seed: 4 };

    #[test]
    fn every_text_lies_where_the_batch_says_with_its_own_segment_and_positions() {
        let loader = LabelledLoader::new(examples(30, 3), CONFIG).unwrap();
        let mut seen = Vec::new();
        for batch in (0..loader.batches_in_order()).map(|index| loader.batch_in_order(index)) {
            assert!(batch.rows <= 3 && batch.tokens.len() == batch.rows * 20);
            for (number, text) in batch.texts.iter().enumerate() {
                let example = &loader.examples()[batch.indices[text.example] as usize];
                let expected = &example.texts[number % 3];
                assert_eq!(batch.labels[text.example], example.label);
                assert_eq!(batch.tokens[text.range.clone()], expected.tokens);
                assert_eq!(batch.token_types[text.range.clone()], expected.token_types);
                assert!(batch.positions[text.range.clone()].iter().copied().eq(0..expected.tokens.len() as u32));
                let segment = batch.segments[text.range.start];
                let row = text.range.start / 20;
                let same = (row * 20..row * 20 + 20).filter(|&i| batch.segments[i] == segment);
                assert!(same.eq(text.range.clone()), "no other position has its segment");
            }
            seen.extend(batch.indices);
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..30));
    }

    #[test]
    fn an_epoch_of_training_sees_everything_once_and_parts_join_to_the_batch() {
        let loader = LabelledLoader::new(examples(50, 1), LabelledConfig { batch_tokens: 20, ..CONFIG }).unwrap();
        let mut seen: Vec<u64> = (0..loader.rows_per_epoch()).flat_map(|step| loader.batch(step).indices).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..50));
        let loader = LabelledLoader::new(examples(50, 1), CONFIG).unwrap();
        let parts = loader.micro_batches(1, 2);
        assert_eq!(parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [2, 1]);
        assert_eq!([&parts[0].tokens[..], &parts[1].tokens].concat(), loader.batch(1).tokens);
    }

    #[test]
    fn the_targets_of_tokens_stand_at_their_tokens() {
        let text = |token: u32, len: usize| Text { tokens: vec![token; len], token_types: vec![0; len] };
        let label = vec![IGNORED, 3, IGNORED];
        let example = Labelled { texts: vec![text(5, 3)], label };
        let loader =
            LabelledLoader::new(vec![example], LabelledConfig { batch_tokens: 5, seq_len: 5, seed: 0 }).unwrap();
        assert_eq!(loader.batch(0).targets(), [IGNORED, 3, IGNORED, IGNORED, IGNORED]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_number() {
        let refusal = |examples, config| LabelledLoader::<usize>::new(examples, config).unwrap_err().to_string();
        let small = LabelledConfig { seq_len: 3, batch_tokens: 3, seed: 0 };
        assert!(refusal(examples(9, 1), small).starts_with("example 4 has 4 tokens"));
        assert!(refusal(examples(9, 1), LabelledConfig { batch_tokens: 3, ..CONFIG }).starts_with("batch_tokens = 3"));
        assert!(refusal(Vec::new(), CONFIG).contains("no labelled example"));
    }
}
