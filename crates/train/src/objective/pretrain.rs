//! Pretraining: the next token of plain text.

use loam_data::CausalBatch;
use loam_models::LanguageModel;

use super::{Loss, Objective, Pass, causal_loss};
use crate::batch;
use crate::error::Result;

/// Mean cross-entropy of the next token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pretrain;

impl Objective for Pretrain {
    type Batch = CausalBatch;

    fn counted(&self, batch: &CausalBatch) -> usize {
        batch::counted(batch)
    }

    fn tokens(&self, batch: &CausalBatch) -> usize {
        batch::text_tokens(batch)
    }

    fn loss(&mut self, model: &LanguageModel, batch: &CausalBatch, pass: &Pass) -> Result<Loss> {
        causal_loss(model, batch, pass)
    }
}
