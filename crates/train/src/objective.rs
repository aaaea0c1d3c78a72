//! Objectives: what a stage minimizes, one file each.

mod pretrain;
mod sft;

use loam_models::{DropoutKey, Forward, Input, LanguageModel};
use loam_tensor::{CrossEntropyTerms, Tensor};

pub use pretrain::Pretrain;
pub use sft::Sft;

use loam_data::CausalBatch;

use crate::batch::counted;
use crate::error::Result;

/// The loss of a micro-batch.
pub struct Loss {
    /// Sum of the loss over the tokens that count, times the pass's scale: where back-propagation starts.
    pub tensor: Tensor,
    /// Tokens that count.
    pub tokens: usize,
    /// Further numbers worth a look, by name.
    pub metrics: Vec<(&'static str, f64)>,
}

/// What the trainer asks of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Factor on the summed loss: one over the tokens of the whole batch, so that micro-batches add up to its mean.
    pub scale: f32,
    /// Dropout, while training with it.
    pub dropout: Option<DropoutKey>,
    /// Whether backward computes each block's activations again.
    pub recompute: bool,
    /// Label smoothing and z-loss: none in an evaluation, whose loss is the model's likelihood.
    pub terms: CrossEntropyTerms,
}

/// What a stage minimizes.
pub trait Objective {
    /// A micro-batch.
    type Batch: Send;

    /// Tokens of a micro-batch that the loss counts.
    fn counted(&self, batch: &Self::Batch) -> usize;

    /// Tokens of a micro-batch that the model reads.
    fn tokens(&self, batch: &Self::Batch) -> usize;

    /// The loss of a micro-batch.
    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss>;
}

/// Next-token cross-entropy over the positions that have a target.
fn causal_loss(model: &LanguageModel, batch: &CausalBatch, pass: &Pass) -> Result<Loss> {
    let input = Input {
        tokens: &batch.tokens,
        batch: batch.rows,
        time: batch.seq_len,
        // Where a row is one document they count up from zero, which models do by themselves.
        positions: batch.segments.as_ref().map(|_| &batch.positions[..]),
        segments: batch.segments.as_deref().map(Into::into),
        ..Input::default()
    };
    let Pass { scale, dropout, recompute, terms } = *pass;
    let forward = Forward { cache: None, dropout, recompute, terms, ..Forward::default() };
    let tensor = model.loss(&input, &batch.targets, scale, forward)?;
    Ok(Loss { tensor, tokens: counted(batch), metrics: Vec::new() })
}
