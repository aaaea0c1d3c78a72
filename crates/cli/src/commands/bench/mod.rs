//! `loam bench`: how fast this machine is at what Loam does, and how fast it could be.

mod costs;
mod infer;
mod kernels;
mod model;
mod shape;
mod tokenizer;
mod train;

use crate::Outcome;
use crate::args::{BenchVerb, PrecisionArg};
use crate::commands::set_precision;
use crate::failure::Failure;
use crate::setup::Environment;
pub(super) use costs::Operations;
use loam_kernels::roofline;
use loam_tensor::Precision;

pub fn run(verb: BenchVerb, environment: &Environment) -> Result<Outcome, Failure> {
    match verb {
        BenchVerb::Train { config, precision, recompute, profile, json } => {
            train::run(config, precision, recompute, profile, json)?;
        }
        BenchVerb::Infer { model: Some(name), bench, precision, json, .. } => {
            set_precision(precision.unwrap_or(PrecisionArg::F32))?;
            model::run(&name, &bench, json, environment)?;
        }
        BenchVerb::Infer { model: None, config, precision, quant, tokens, json, .. } => {
            infer::run(config, precision.unwrap_or(PrecisionArg::Auto), quant, tokens.get(), json)?;
        }
        BenchVerb::Kernels { only, json } => kernels::run(only, json)?,
        BenchVerb::Tokenizer { file, vocab_size, json } => tokenizer::run(&file, vocab_size, json)?,
    }
    Ok(Outcome::Done)
}

/// What the machine can do at most.
pub(super) struct Roof {
    flop_per_s: f64,
    bf16_flop_per_s: f64,
    bytes_per_s: f64,
}

impl Roof {
    /// In f32.
    pub(super) fn measured() -> Self {
        let flop_per_s = roofline::peak_flop_per_s();
        let bf16_flop_per_s = roofline::peak_bf16_flop_per_s(flop_per_s);
        Self { flop_per_s, bf16_flop_per_s, bytes_per_s: roofline::read_bytes_per_s() }
    }

    /// The f32 roof as another precision has it.
    pub(super) fn of(&self, precision: Precision) -> Self {
        let flop_per_s = match precision {
            Precision::F32 => self.flop_per_s,
            Precision::Bf16 => self.bf16_flop_per_s,
        };
        Self { flop_per_s, ..*self }
    }

    /// The share of the roof that an operation reaches: the time it must take at least, by arithmetic or by traffic, of
    /// the time it took. Above 1 where the data came from a cache.
    fn share(&self, flop: f64, bytes: f64, seconds: f64) -> f64 {
        (flop / self.flop_per_s).max(bytes / self.bytes_per_s) / seconds
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
