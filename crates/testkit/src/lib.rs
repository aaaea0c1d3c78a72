//! Tiny random models, golden files and tolerances for the other crates' tests.
