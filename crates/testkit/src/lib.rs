//! What the other crates' tests share: golden files, tolerances, comparisons and a seeded source of random cases.
//!
//! It depends on no other loam crate, so every crate may name it as a dev-dependency. Everything here is for tests, so a
//! file that is missing or malformed panics with a sentence instead of returning an error.
//!
//! ```
//! use loam_testkit::{Golden, LOGITS_TOLERANCE, assert_close, cases};
//!
//! for case in cases() {
//!     let golden = Golden::open(&case);
//!     let logits = golden.floats("logits");
//!     // ... run the model in golden_dir(&case) on golden.integers("tokens"), then:
//!     assert_close(&case, &logits.values, &logits.values, LOGITS_TOLERANCE);
//! }
//! ```

mod compare;
mod golden;
mod random;
mod tables;

pub use compare::{GRADIENT_TOLERANCE, LOGITS_TOLERANCE, assert_close, assert_close_relative};
pub use golden::{
    AdamW, Array, EncoderGolden, Golden, cases, cases_of, encoder, golden_copy, golden_dir, head_cases, pickled_copy,
    workspace_root,
};
pub use random::Random;
pub use tables::{
    Operation, OptimizerSettings, OptimizerTable, Sampler, SamplerTable, Schedule, activations, adamw8bit, alignment,
    losses, operations, optimizers, running_means, samplers, schedules,
};
