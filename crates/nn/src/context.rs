//! What a layer needs to know about the call it runs in.

use std::sync::Arc;

use loam_tensor::{Dropout, RopeTables, Tensor};

use crate::hook::{Hooks, Prefix};

/// Dropout of a training step: its probability, and the counter-based key that makes its masks reproducible.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutKey {
    /// Probability that an element is zeroed.
    pub p: f32,
    /// Run seed.
    pub seed: u64,
    /// Optimizer step and micro-batch, as one number.
    pub step: u64,
}

/// What an encoder made of its source, for cross-attention to look at.
#[derive(Clone)]
pub struct Memory {
    /// `[batch, source_time, hidden]`.
    pub hidden: Tensor,
    /// Document of every position of the source, `[batch, source_time]`; padding is a document that nobody asks for.
    pub segments: Option<Arc<[u32]>>,
}

/// Shared by all layers of one forward pass.
#[derive(Clone, Default)]
pub struct LayerContext {
    /// Rotary tables of the positions at hand, for models that use them.
    pub rope: Option<RopeTables>,
    /// Document of every position, `[batch, time]`: attention stays within a document.
    pub segments: Option<Arc<[u32]>>,
    /// Borders of the documents of a single row, each of which is computed as if it were alone; for inference.
    pub runs: Option<Arc<[usize]>>,
    /// Added to the scores of self-attention, `[heads, time, keys]` (T5's relative positions).
    pub bias: Option<Tensor>,
    /// What cross-attention looks at.
    pub memory: Option<Memory>,
    /// Dropout, while training with it.
    pub dropout: Option<DropoutKey>,
    /// What a position's part in auxiliary losses is multiplied by, while training; else 0.
    pub auxiliary_scale: f32,
    /// Which hooks the pass goes through.
    pub hooks: Hooks,
    /// Keys and values in place of some positions' own.
    pub prefix: Option<Prefix>,
}

/// Most dropout places of one model: keeps the keys of different steps apart.
const PLACES_PER_STEP: u64 = 1 << 20;

impl LayerContext {
    /// Drops elements of `x` with probability `p` if this pass trains; for hooks, which have a probability of their own.
    pub fn drop_with(&self, x: Tensor, p: f32, place: u64) -> Tensor {
        match self.dropout.filter(|_| p > 0.0) {
            None => x,
            Some(key) => x.dropout(Dropout { p, seed: key.seed, step: key.step.wrapping_mul(PLACES_PER_STEP) + place }),
        }
    }

    /// Drops elements of `x` if this pass trains with dropout; `place` names the call within the model.
    pub fn drop(&self, x: Tensor, place: u64) -> Tensor {
        let p = self.dropout.map_or(0.0, |key| key.p);
        self.drop_with(x, p, place)
    }
}
