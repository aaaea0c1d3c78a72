//! Sequence to sequence: the target's tokens, given the source and the target's tokens so far.

use std::sync::Arc;

use loam_data::Seq2SeqBatch;
use loam_models::{Input, LanguageModel};

use super::{Loss, Objective, Pass, right_tokens};
use crate::batch;
use crate::error::Result;

/// Mean cross-entropy of the targets' tokens, their end included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seq2Seq;

impl Objective for Seq2Seq {
    type Batch = Seq2SeqBatch;

    fn counted(&self, batch: &Seq2SeqBatch) -> usize {
        batch::counted(&batch.targets)
    }

    fn tokens(&self, batch: &Seq2SeqBatch) -> usize {
        batch.lengths.iter().flatten().sum()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Seq2SeqBatch, pass: &Pass) -> Result<Loss> {
        let source = Input {
            tokens: &batch.source_tokens,
            batch: batch.rows,
            time: batch.source_len,
            positions: Some(&batch.source_positions),
            segments: Some(Arc::from(&batch.source_segments[..])),
            ..Input::default()
        };
        let memory = model.encode(&source, pass.forward())?;
        let input = Input {
            tokens: &batch.decoder_tokens,
            batch: batch.rows,
            time: batch.target_len,
            positions: Some(&batch.decoder_positions),
            segments: Some(Arc::from(&batch.decoder_segments[..])),
            memory: Some(&memory),
            ..Input::default()
        };
        let tensor = model.loss(&input, &batch.targets, pass.scale, pass.forward())?;
        let metrics = if pass.measures { exact_matches(model, &input, batch)? } else { Vec::new() };
        Ok(Loss { tensor, metrics })
    }
}

/// Right tokens, and targets all of whose tokens are: those that greedy decoding would write. The latter count with the
/// number of their tokens, which is what metrics are a mean over.
fn exact_matches(model: &LanguageModel, input: &Input<'_>, batch: &Seq2SeqBatch) -> Result<Vec<(&'static str, f64)>> {
    let mut right = right_tokens(model, input, &batch.targets)?.into_iter();
    let (mut accurate, mut pairs, mut exact) = (0usize, Vec::<(usize, bool)>::new(), 0.0);
    let mut last = None;
    for (place, _) in batch.targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
        let is_right = right.next().unwrap_or(false);
        accurate += usize::from(is_right);
        let pair = (place / batch.target_len, batch.decoder_segments[place]);
        if last.replace(pair) == Some(pair) {
            if let Some((tokens, all)) = pairs.last_mut() {
                (*tokens, *all) = (*tokens + 1, *all && is_right);
            }
        } else {
            pairs.push((1, is_right));
        }
    }
    let counted: usize = pairs.iter().map(|(tokens, _)| tokens).sum();
    if !pairs.is_empty() {
        exact = pairs.iter().filter(|(_, all)| *all).count() as f64 / pairs.len() as f64 * counted as f64;
    }
    Ok(vec![("accuracy", accurate as f64), ("exact_match", exact)])
}
