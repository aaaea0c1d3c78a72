//! Objectives: what a stage minimizes, one file each.

mod classify;
mod contrastive;
mod labelled;
mod qa;
mod seq2seq;
mod token_classify;
mod tokens;

use loam_models::{DropoutKey, Forward, Input, LanguageModel};
use loam_tensor::{CrossEntropyTerms, Tensor};

pub use classify::Classify;
pub use contrastive::Contrastive;
pub use qa::Qa;
pub use seq2seq::Seq2Seq;
pub use token_classify::TokenClassify;
pub use tokens::Tokens;

use crate::error::Result;

/// The loss of a micro-batch.
pub struct Loss {
    /// Sum of the loss over what counts (tokens or examples), times the pass's scale: where back-propagation starts.
    pub tensor: Tensor,
    /// Further numbers worth a look, by name, as sums over what counts; of a pass that measures.
    pub metrics: Vec<(&'static str, f64)>,
}

/// What the trainer asks of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Factor on the summed loss: one over what counts in the whole batch, so that micro-batches add up to its mean.
    pub scale: f32,
    /// Dropout, while training with it.
    pub dropout: Option<DropoutKey>,
    /// Whether backward computes each block's activations again.
    pub recompute: bool,
    /// Label smoothing and z-loss: none in an evaluation, whose loss is the model's likelihood.
    pub terms: CrossEntropyTerms,
    /// Whether metrics are wanted: in evaluations.
    pub measures: bool,
}

impl Pass {
    fn forward<'a>(&self) -> Forward<'a> {
        let &Self { dropout, recompute, terms, .. } = self;
        Forward { dropout, recompute, terms, ..Forward::default() }
    }
}

/// What a stage minimizes.
pub trait Objective {
    /// A micro-batch.
    type Batch: Send;

    /// What the loss of a micro-batch is a sum over: tokens or examples.
    fn counted(&self, batch: &Self::Batch) -> usize;

    /// Tokens of a micro-batch that the model reads.
    fn tokens(&self, batch: &Self::Batch) -> usize;

    /// The loss of a micro-batch.
    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss>;
}

/// For every position that has a target whether the most likely token is it.
fn right_tokens(model: &LanguageModel, input: &Input<'_>, targets: &[i32]) -> Result<Vec<bool>> {
    let places: Vec<u32> = (0u32..).zip(targets).filter(|(_, target)| **target >= 0).map(|(place, _)| place).collect();
    let found = model.predictions(input, &places, Forward::default())?;
    Ok(places.iter().zip(found).map(|(&place, found)| targets[place as usize] == found as i32).collect())
}
