//! Supervised fine-tuning: the assistant's tokens of conversations, given all that comes before them.

use loam_data::CausalBatch;
use loam_models::LanguageModel;

use super::{Loss, Objective, Pass, causal_loss};
use crate::batch;
use crate::error::Result;

/// Mean cross-entropy of the assistant's tokens, each turn's end included; see
/// [`encode_conversations`](crate::encode_conversations) for how they are marked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sft;

impl Objective for Sft {
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
