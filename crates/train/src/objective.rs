//! Objectives: what a stage minimizes, one file each.

mod answers;
mod classify;
mod contrastive;
mod distill;
mod dpo;
mod kto;
mod labelled;
mod odds;
mod policy;
mod ppo;
mod qa;
mod reward;
mod seq2seq;
mod token_classify;
mod tokens;

use loam_models::{DropoutKey, EmbeddingNoise, Forward, Input, LanguageModel};
use loam_tensor::{CrossEntropyTerms, Parameter, Tensor};

pub(crate) use answers::{Scored, states, with_input};
pub use classify::Classify;
pub use contrastive::Contrastive;
pub use distill::Distill;
pub use dpo::{Dpo, PairLabel};
pub use kto::{Kto, KtoBatch, KtoLabel};
pub use odds::{Odds, OddsKind};
pub use policy::{Policy, PolicyKind};
pub use ppo::Ppo;
pub(crate) use ppo::values;
pub use qa::Qa;
pub use reward::Reward;
pub use seq2seq::Seq2Seq;
pub use token_classify::TokenClassify;
pub use tokens::Tokens;

use crate::error::Result;

/// The loss of a micro-batch.
pub struct Loss {
    /// Sum of the loss over what counts (tokens or examples), times the pass's scale: where back-propagation starts.
    pub tensor: Tensor,
    /// Further numbers worth a look, by name, as sums over what counts.
    pub metrics: Vec<(&'static str, f64)>,
}

/// What the trainer asks of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Factor on the summed loss: one over what counts in the whole batch, so that micro-batches add up to its mean.
    pub scale: f32,
    /// Dropout, while training with it.
    pub dropout: Option<DropoutKey>,
    /// Noise on the token vectors, while training with it.
    pub noise: Option<EmbeddingNoise>,
    /// Whether backward computes each block's activations again.
    pub recompute: bool,
    /// Label smoothing and z-loss: none in an evaluation, whose loss is the model's likelihood.
    pub terms: CrossEntropyTerms,
    /// Whether metrics are wanted: in evaluations.
    pub measures: bool,
}

impl Pass {
    /// A pass that only looks: the sum of the loss, without dropout or noise.
    pub fn measuring() -> Self {
        let terms = CrossEntropyTerms::default();
        Self { scale: 1.0, dropout: None, noise: None, recompute: false, terms, measures: true }
    }

    /// The same pass without anything random.
    pub(crate) fn quiet(&self) -> Self {
        Self { dropout: None, noise: None, ..*self }
    }

    pub(crate) fn forward<'a>(&self) -> Forward<'a> {
        let &Self { dropout, noise, recompute, terms, .. } = self;
        Forward { dropout, noise, recompute, terms, ..Forward::default() }
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

    /// Parameters of its own, which are trained and kept in checkpoints beside the model's, and are no part of it.
    fn parameters(&self) -> Vec<(String, Parameter)> {
        Vec::new()
    }

    /// Whether every parameter can be expected to have a gradient: not where all answers got the same reward.
    fn teaches(&self, _batch: &Self::Batch) -> bool {
        true
    }

    /// The loss of a micro-batch.
    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss>;
}

/// For every position that has a target whether the most likely token is it.
fn right_tokens(model: &LanguageModel, input: &Input<'_>, targets: &[i32]) -> Result<Vec<bool>> {
    let places: Vec<u32> = (0u32..).zip(targets).filter(|(_, target)| **target >= 0).map(|(place, _)| place).collect();
    let found = model.predictions(input, &places, Forward::default())?;
    Ok(places.iter().zip(found).map(|(&place, found)| targets[place as usize] == found as i32).collect())
}
