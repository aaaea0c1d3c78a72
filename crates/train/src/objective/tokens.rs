//! Cross-entropy of the tokens that a batch marks: all next ones (`pretrain`), the assistant's (`sft`), the masked ones
//! (`masked_lm`).

use loam_data::CausalBatch;
use loam_models::{Input, LanguageModel};

use super::{Loss, Objective, Pass, right_tokens};
use crate::batch;
use crate::error::Result;

/// Mean cross-entropy of the marked tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tokens;

impl Objective for Tokens {
    type Batch = CausalBatch;

    fn counted(&self, batch: &CausalBatch) -> usize {
        batch::counted(&batch.targets)
    }

    fn tokens(&self, batch: &CausalBatch) -> usize {
        batch.lengths.iter().sum()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &CausalBatch, pass: &Pass) -> Result<Loss> {
        let input = Input {
            tokens: &batch.tokens,
            batch: batch.rows,
            time: batch.seq_len,
            // Where a row is one document they count up from zero, which models do by themselves.
            positions: batch.segments.as_ref().map(|_| &batch.positions[..]),
            segments: batch.segments.as_deref().map(Into::into),
            ..Input::default()
        };
        let tensor = model.loss(&input, &batch.targets, pass.scale, pass.forward())?;
        let metrics = match pass.measures && !model.spec().is_causal() {
            true => {
                vec![("accuracy", right_tokens(model, &input, &batch.targets)?.iter().filter(|r| **r).count() as f64)]
            }
            false => Vec::new(),
        };
        Ok(Loss { tensor, metrics })
    }
}
