//! Optimizers: one file each, state per parameter.

mod adamw;

pub use adamw::{AdamW, Betas};
