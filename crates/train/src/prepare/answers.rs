//! Answers from files, encoded, and the stages that learn from pairs of them.

use std::path::Path;

use loam_data::preference::{AnswerLoader, Answers, Encoder, Preference, read_pairs};
use rayon::prelude::*;
use serde_json::Value;

use super::records::Split;
use super::reference;
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::InOrder;
use crate::error::Result;
use crate::objective::{Dpo, Odds, OddsKind, PairLabel, Reward};
use crate::recipe::{Recipe, Stage};
use crate::trainer::{Observer, Summary};

pub(super) fn encoder(start: &Start, seq_len: usize) -> Encoder<'_> {
    Encoder { tokenizer: &start.tokenizer, template: start.template.as_ref(), max_len: seq_len }
}

/// Encoded answers to train on and to measure with.
pub(super) struct Parts<L> {
    pub(super) train: Vec<Answers<L>>,
    pub(super) held_out: Vec<Answers<L>>,
    pub(super) description: Value,
}

impl<L: Clone + Send> Parts<L> {
    /// Encodes the records of a split; `encode` gets a record's number for its messages.
    pub(super) fn encoded<T: Sync>(
        split: Split<T>,
        encode: impl Fn(usize, &T) -> loam_data::Result<Answers<L>> + Sync,
    ) -> Result<Self> {
        let all = |records: &[T]| -> loam_data::Result<Vec<_>> {
            records.par_iter().enumerate().map(|(number, record)| encode(number, record)).collect()
        };
        Ok(Self { train: all(&split.train)?, held_out: all(&split.held_out)?, description: split.description })
    }

    /// The token that ends an answer.
    pub(super) fn end(&self) -> Option<u32> {
        self.train.first()?.texts.first()?.ids.last().copied()
    }

    /// Where training batches come from.
    pub(super) fn loader(&self, run: &StageRun<'_>) -> Result<AnswerLoader<L>> {
        Ok(AnswerLoader::new(self.train.clone(), run.rows().0, run.recipe.seed)?)
    }

    /// Where held-out ones do, if there are any.
    pub(super) fn validation(&self, run: &StageRun<'_>) -> Result<Option<AnswerLoader<L>>> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        Ok(Some(AnswerLoader::new(self.held_out.clone(), run.rows().1, run.recipe.seed)?))
    }
}

/// Pairs of a recipe.
pub(super) struct PairData(Parts<PairLabel>);

impl PairData {
    pub(super) fn open(
        recipe: &Recipe,
        start: &Start,
        seq_len: usize,
        cache_dir: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let split = Split::of_tables(recipe, read_pairs, |pair| format!("{pair:?}"))?;
        observer.on_message(&format!("data: {} pairs, {} held out", split.train.len(), split.held_out.len()));
        let encoder = encoder(start, seq_len);
        let encode = |number: usize, pair: &Preference| {
            let text = |answer| encoder.answer(&pair.prompt, answer, number);
            let label = PairLabel { margin: pair.margin, ..PairLabel::default() };
            Ok(Answers { texts: vec![text(&pair.chosen)?, text(&pair.rejected)?], label })
        };
        let mut parts = Parts::encoded(split, encode)?;
        if recipe.stage == Stage::Dpo {
            for part in [&mut parts.train, &mut parts.held_out] {
                let values = reference::log_probs(recipe, start, part, cache_dir, observer)?;
                part.iter_mut().zip(values).for_each(|(pair, values)| pair.label.reference = [values[0], values[1]]);
            }
        }
        Ok(Self(parts))
    }
}

impl StageData for PairData {
    fn sequences(&self) -> u64 {
        self.0.train.len() as u64
    }

    fn description(&self) -> Value {
        self.0.description.clone()
    }

    fn chat_end(&self) -> Option<u32> {
        self.0.end()
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let micro = run.rows().1;
        let (loader, held_out) = (self.0.loader(&run)?, self.0.validation(&run)?);
        let source = |step: u64| Ok(loader.micro_batches(step, micro));
        let validation = held_out.as_ref().map(|loader| InOrder {
            len: loader.batches_in_order(micro),
            batch: |index| loader.batch_in_order(index, micro),
            bytes_per_token: None,
        });
        let validation = validation.as_ref().map(|validation| validation as _);
        let (stage, preference) = (run.recipe.stage, run.recipe.preference.clone());
        let odds = |kind| Odds {
            kind,
            beta: preference.beta(stage),
            gamma: preference.gamma as f32,
            label_smoothing: preference.label_smoothing as f32,
            sft_weight: preference.sft_weight(stage),
        };
        match stage {
            Stage::Dpo => {
                let weights = preference.loss_weights.iter().map(|&weight| weight as f32).chain(std::iter::repeat(1.0));
                let losses = preference.loss.iter().copied().zip(weights).collect();
                run.run(Dpo { losses, settings: preference.dpo() }, &source, validation)
            }
            Stage::Orpo => run.run(odds(OddsKind::Orpo), &source, validation),
            Stage::Simpo => run.run(odds(OddsKind::Simpo), &source, validation),
            Stage::Cpo => run.run(odds(OddsKind::Cpo), &source, validation),
            _ => run.run(Reward { centering: preference.centering as f32 }, &source, validation),
        }
    }
}
