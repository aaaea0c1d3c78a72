//! What the objectives over labelled texts share.

use std::ops::Range;
use std::sync::Arc;

use loam_data::LabelledBatch;
use loam_models::{Input, LanguageModel};
use loam_tensor::Tensor;

use super::Pass;
use crate::error::Result;

/// A batch of labelled texts as a model's input.
pub(super) struct Texts<'a, L>(pub(super) &'a LabelledBatch<L>);

impl<L> Texts<'_, L> {
    /// Positions that are text.
    pub(super) fn tokens(&self) -> usize {
        self.0.texts.iter().map(|text| text.range.len()).sum()
    }

    /// Where each text lies.
    pub(super) fn ranges(&self) -> Vec<Range<usize>> {
        self.0.texts.iter().map(|text| text.range.clone()).collect()
    }

    /// Runs `work` on the input.
    pub(super) fn with_input<R>(&self, model: &LanguageModel, work: impl FnOnce(&Input<'_>) -> R) -> R {
        let batch = self.0;
        work(&Input {
            tokens: &batch.tokens,
            batch: batch.rows,
            time: batch.seq_len,
            positions: Some(&batch.positions),
            segments: Some(Arc::from(&batch.segments[..])),
            // A model with one kind of token, or none, sees no difference between the sentences of a pair.
            token_types: (model.spec().type_vocab_size > 1).then_some(&batch.token_types[..]),
            ..Input::default()
        })
    }

    /// The head's scores: `[texts, labels]`, or `[positions, labels]`.
    pub(super) fn scores(&self, model: &LanguageModel, pass: &Pass) -> Result<Tensor> {
        Ok(self.with_input(model, |input| model.scores(input, &self.ranges(), pass.forward()))?)
    }
}

/// The place of the largest number, the first of equal ones.
pub(super) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = place;
        }
    }
    best
}
