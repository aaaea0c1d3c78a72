//! The buffer pool belongs to the whole process, so this test has a process of its own.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{hooks, settings, source, tiny_model};
use loam_tensor::pool_stats;
use loam_train::objective::Tokens;
use loam_train::{MetricRow, Observer, Trainer};

#[derive(Default)]
struct Allocations(Vec<u64>);

impl Observer for Allocations {
    fn on_step(&mut self, _row: &MetricRow, _total: u64) {
        self.0.push(pool_stats().fresh_allocations);
    }
}

#[test]
fn a_steady_training_step_takes_no_large_buffer_from_the_system() {
    let _ = hooks;
    let model = tiny_model(1);
    let mut allocations = Allocations::default();
    let mut hooks = loam_train::Hooks { observer: &mut allocations, sample: None, stop: std::sync::Arc::default() };
    Trainer::new(&model, &mut Tokens, &source, None, settings(10)).run(&mut hooks).unwrap();
    let counts = allocations.0;
    assert!(counts[0] > 0, "the first step must take some: {counts:?}");
    assert!(counts[3..].iter().all(|&count| count == counts[3]), "{counts:?}");
}
