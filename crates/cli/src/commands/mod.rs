//! What the verbs do, one file each.

mod bench;
mod chat;
mod completions;
mod compress;
mod config;
mod convert;
mod convert_gguf;
mod data;
mod doctor;
mod embed;
mod eval;
mod eval_answers;
mod generate;
mod inspect;
mod merge;
mod model;
pub mod plan;
mod prefer;
mod prepare;
mod quickstart;
mod runs;
mod sampling;
mod serve;
mod store;
mod tokenizer;
mod train;

use crate::Outcome;
use crate::args::{PrecisionArg, Verb};
use crate::failure::Failure;
use crate::setup::Environment;
use loam_models::{LanguageModel, Mix};
use loam_tensor::{Precision, set_default_precision};

/// Runs a verb. `threads` is the number asked for, if any.
pub fn run(verb: Verb, threads: Option<usize>, environment: &Environment) -> Result<Outcome, Failure> {
    match verb {
        Verb::Quickstart(args) => quickstart::run(&args, threads),
        Verb::Tokenizer(verb) => tokenizer::run(verb, environment),
        Verb::Data(verb) => data::run(verb, environment),
        Verb::Train(args) => train::run(&args, threads, environment),
        Verb::Config(verb) => config::run(verb),
        Verb::Generate(args) => generate::run(&args, environment),
        Verb::Chat(args) => chat::run(&args, environment),
        Verb::Eval(args) => eval::run(&args, environment),
        Verb::Quantize(args) => compress::quantize(&args, environment),
        Verb::Prune(args) => compress::prune(&args, environment),
        Verb::Compare(args) => compress::compare(&args, environment),
        Verb::Embed(args) => embed::run(&args, environment),
        Verb::Serve(args) => serve::run(&args, threads, environment),
        Verb::Model(verb) => model::run(verb, environment),
        Verb::Runs(verb) => runs::run(verb),
        Verb::Bench(verb) => bench::run(verb, environment),
        Verb::Doctor(args) => doctor::run(&args, environment),
        Verb::Completions { shell } => completions::run(shell),
    }
}

/// The precision that an argument names.
fn precision_of(argument: PrecisionArg) -> Result<Precision, Failure> {
    let name = match argument {
        PrecisionArg::Auto => "auto",
        PrecisionArg::F32 => "f32",
        PrecisionArg::Bf16 => "bf16",
    };
    name.parse().map_err(Failure::new)
}

/// Computes in the precision that `--precision` asks for, from now on.
fn set_precision(argument: PrecisionArg) -> Result<(), Failure> {
    set_default_precision(precision_of(argument)?);
    Ok(())
}

/// Rounds a model's weights as `--quant` asks.
fn quantise(model: &LanguageModel, quant: Option<Mix>) -> Result<(), Failure> {
    if let Some(mix) = quant {
        model.quantise(&model.plan(mix), None)?;
    }
    Ok(())
}
