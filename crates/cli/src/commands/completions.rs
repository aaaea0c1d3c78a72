//! `loam completions`: a shell's completion script.

use crate::Outcome;
use crate::args::Cli;
use crate::failure::Failure;
use crate::output;
use clap::CommandFactory;
use clap_complete::Shell;

pub fn run(shell: Shell) -> Result<Outcome, Failure> {
    // Into memory first: the generator panics where its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "loam", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Done)
}
