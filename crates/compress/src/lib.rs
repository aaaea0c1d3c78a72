//! Smaller models: fewer bits per weight, fewer weights, and what either costs.
//!
//! **What it is for.** Quantising with calibration (importance matrix, GPTQ, AWQ, SmoothQuant), pruning (magnitude,
//! Wanda, SparseGPT; whole blocks, heads and feed-forward widths), and comparing the result with the original.
//!
//! **What it is not.** The element types themselves: how numbers become blocks is `kernels::quant`; which type each weight
//! gets is `models::Mix`.
//!
//! **Where to start.** [`quantise()`], [`prune()`], [`shrink()`], [`compare()`]. All calibration goes through
//! [`Calibration`]: rows of tokens run block by block, so that a block is fitted to what the changed blocks before it give.

mod activations;
mod awq;
mod calibration;
mod error;
mod fold;
mod gptq;
mod grid;
mod imatrix;
mod linalg;
mod prune;
mod quantise;
mod report;
mod statistics;

pub use activations::round_activations;
pub use calibration::Calibration;
pub use error::Error;
pub use gptq::{GptqSettings, gptq};
pub use grid::Grid;
pub use imatrix::ImatrixFile;
pub use prune::structure::{Shape, Shrunk, shrink};
pub use prune::{Pruning, Sparsity, prune, sparsity_of};
pub use prune::{magnitude_mask, sparsegpt, wanda_mask};
pub use quantise::{Method, Quantised, Settings, quantise, to_f32};
pub use report::{Comparison, Speed, Windows, compare, speed};
pub use statistics::Statistics;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Is told how far a piece of work is: steps done and steps in all.
pub type Watch<'a> = &'a (dyn Fn(usize, usize) + Sync);
