//! Arguments of `loam train`, `loam config` and `loam runs`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `loam train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe (TOML)
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Change one value of the recipe, e.g. --set train.steps=100
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The run directory itself [default: a new one below runs/]
    #[arg(long, value_name = "RUN")]
    pub dir: Option<PathBuf>,
    /// Last part of the new run directory's name
    #[arg(long, conflicts_with = "dir")]
    pub name: Option<String>,
    /// Continue from the last checkpoint in the run directory
    #[arg(long, requires = "dir")]
    pub resume: bool,
    /// Also say where the time went, operation by operation, beside what the machine could do
    #[arg(long)]
    pub profile: bool,
}

/// Verbs of `loam config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// A recipe of this stage with every default written out
    Default {
        /// The stage, e.g. pretrain or sft
        stage: String,
    },
    /// Whether a recipe is valid
    Check {
        /// The recipe
        file: PathBuf,
        /// Change one value before checking
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// The JSON schema of recipes
    Schema,
}

/// Verbs of `loam runs`.
#[derive(Debug, Subcommand)]
pub enum RunsVerb {
    /// The runs below a directory, newest first
    List {
        /// Where the runs are
        #[arg(default_value = "runs", value_name = "RUNS")]
        dir: PathBuf,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
    /// One run: recipe, progress, losses
    Show {
        /// The run directory
        run: PathBuf,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
    /// Several runs side by side
    Compare {
        /// The run directories
        #[arg(required = true, num_args = 2.., value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
}
