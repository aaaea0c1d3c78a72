//! What the loop needs to know of a recipe.

use loam_tensor::{CrossEntropyTerms, Precision};

use crate::optim::OptimizerSettings;
use crate::recipe::{EarlyStop, Recipe, Recompute};
use crate::schedule::Schedule;

/// Numbers that govern the loop.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Highest learning rate.
    pub lr: f64,
    /// Its course; also the length of the run.
    pub schedule: Schedule,
    /// The optimizer and its settings.
    pub optimizer: OptimizerSettings,
    /// Largest gradient norm; 0 is no limit.
    pub clip: f64,
    /// Number format of matrix products.
    pub precision: Precision,
    /// Dropout probability.
    pub dropout: f64,
    /// Strength of the noise on token vectors, where there is any.
    pub neftune_alpha: Option<f64>,
    /// Whether backward computes each block's activations again.
    pub recompute: bool,
    /// Label smoothing and z-loss.
    pub terms: CrossEntropyTerms,
    /// Decay of the weights' running mean, where there is one.
    pub ema_decay: Option<f64>,
    /// Seed of dropout.
    pub seed: u64,
    /// Steps between evaluations; 0 is only at the end.
    pub eval_every: u64,
    /// Batches of an evaluation; the last one takes all.
    pub eval_batches: u64,
    /// Steps between samples; 0 is never.
    pub sample_every: u64,
    /// Steps between checkpoints; 0 is only at the end.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    pub keep_checkpoints: usize,
    /// When to end before the last step.
    pub early_stop: Option<EarlyStop>,
}

impl Settings {
    /// The settings of a resolved recipe; what it leaves open is off.
    pub fn of(recipe: &Recipe) -> Self {
        let train = &recipe.train;
        Self {
            lr: train.lr.unwrap_or(6e-4),
            schedule: recipe.schedule(train.steps.unwrap_or(1)),
            optimizer: train.optimizer_settings(),
            clip: train.clip,
            precision: train.precision.settled(),
            dropout: train.dropout,
            neftune_alpha: train.neftune_alpha,
            recompute: train.recompute == Recompute::Block,
            terms: CrossEntropyTerms { label_smoothing: train.label_smoothing as f32, z_loss: train.z_loss as f32 },
            ema_decay: train.ema_decay,
            seed: recipe.seed,
            eval_every: train.eval_every.unwrap_or(0),
            eval_batches: train.eval_batches,
            sample_every: train.sample_every.unwrap_or(0),
            checkpoint_every: train.checkpoint_every.unwrap_or(0),
            keep_checkpoints: train.keep_checkpoints,
            early_stop: train.early_stop,
        }
    }
}
