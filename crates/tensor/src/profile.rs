//! Where the time of a step goes: seconds, arithmetic and memory traffic per operation, while [`recorded`] runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::raw::Raw;

/// What one kind of operation has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpCost {
    /// How often it ran.
    pub calls: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Floating-point operations of matrix products and attention; other arithmetic counts nothing.
    pub flop: f64,
    /// Bytes of operands and results, each counted once.
    pub bytes: f64,
}

static RECORDING: AtomicBool = AtomicBool::new(false);
static COSTS: Mutex<BTreeMap<&'static str, OpCost>> = Mutex::new(BTreeMap::new());

fn costs<R>(work: impl FnOnce(&mut BTreeMap<&'static str, OpCost>) -> R) -> R {
    work(&mut COSTS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `work` and returns with its result what every operation has cost meanwhile, on any thread.
pub fn recorded<R>(work: impl FnOnce() -> R) -> (R, BTreeMap<&'static str, OpCost>) {
    costs(BTreeMap::clear);
    RECORDING.store(true, Ordering::Relaxed);
    let result = work();
    RECORDING.store(false, Ordering::Relaxed);
    (result, costs(std::mem::take))
}

/// Measures until it is dropped.
pub(crate) struct Op {
    name: &'static str,
    start: Option<Instant>,
    flop: f64,
    bytes: f64,
}

/// An operation begins that reads or writes these tensors.
pub(crate) fn op(name: &'static str, tensors: &[&Raw]) -> Op {
    let start = RECORDING.load(Ordering::Relaxed).then(Instant::now);
    let bytes = match start {
        Some(_) => tensors.iter().map(|raw| raw.bytes() as f64).sum(),
        None => 0.0,
    };
    Op { name, start, flop: 0.0, bytes }
}

impl Op {
    /// Also does this much arithmetic.
    pub(crate) fn with_flop(mut self, flop: f64) -> Self {
        self.flop = flop;
        self
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        let Some(start) = self.start else { return };
        let seconds = start.elapsed().as_secs_f64();
        costs(|costs| {
            let cost = costs.entry(self.name).or_default();
            cost.calls += 1;
            cost.seconds += seconds;
            cost.flop += self.flop;
            cost.bytes += self.bytes;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    #[test]
    fn operations_are_counted_only_while_recording() {
        let (a, b) = (Tensor::from_slice(&[1.0; 6], [2, 3]), Tensor::from_slice(&[1.0; 12], [3, 4]));
        drop(a.matmul(&b));
        // Other tests may run beside this one, so there may be more.
        let (_, costs) = recorded(|| a.matmul(&b));
        let cost = costs["matmul"];
        assert!(cost.calls >= 1 && cost.flop >= 48.0 && cost.bytes >= 4.0 * (6.0 + 12.0 + 8.0), "{cost:?}");
    }
}
