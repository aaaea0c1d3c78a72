//! How the loop tells the outside what happens.

use crate::metrics::{EvalRow, MetricRow};

/// Receives news of a run. Every method does nothing by default.
pub trait Observer: Send {
    /// A step is done.
    fn on_step(&mut self, _row: &MetricRow, _total_steps: u64) {}
    /// An evaluation is done.
    fn on_eval(&mut self, _row: &EvalRow) {}
    /// The model has written something.
    fn on_sample(&mut self, _step: u64, _samples: &[String]) {}
    /// Anything worth a line.
    fn on_message(&mut self, _message: &str) {}
}

/// Listens to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
