//! The `loam` binary: the only crate that prints, ends the process and reads the environment.
//!
//! `args` says what can be typed, `commands` what it does; the rest is what every command needs: output that survives a
//! closed pipe, progress, signals, errors with hints, and finding models by name.

mod args;
mod commands;
mod failure;
mod hub;
mod locate;
mod machine;
mod output;
mod progress;
mod setup;
mod signals;
mod table;
mod view;

use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

/// How a command that did its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Done,
    /// The work was done and its result is negative: a recipe is invalid, duplicates were found.
    Negative,
}

/// Exit status of an error.
const ERROR: u8 = 2;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let result = setup::Environment::read().and_then(|environment| {
        setup::choose_instruction_set(&environment)?;
        let threads = setup::thread_count(cli.threads, &environment)?;
        setup::start_threads(threads)?;
        match cli.verb {
            // A server waits for ever: it must not hold one of the threads that compute, perhaps the only one.
            verb @ args::Verb::Serve(_) => commands::run(verb, threads, &environment),
            verb => setup::in_thread_pool(|| commands::run(verb, threads, &environment))?,
        }
    });
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Negative) => ExitCode::FAILURE,
        // Whoever read our output has seen enough.
        Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(Failure::Said { message, hint }) => {
            output::complain("error", &message);
            if let Some(hint) = hint {
                output::complain("hint", &hint);
            }
            ExitCode::from(ERROR)
        }
    }
}
