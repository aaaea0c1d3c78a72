//! The command line as types. What the verbs do is in `commands`.

mod bench;
mod compress;
mod data;
mod embed;
mod model;
mod plan;
mod sampling;
mod serve;
mod tokenizer;
mod train;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

pub use bench::{BenchConfig, BenchVerb, ComputeArgs, ModelBench, PrecisionArg};
pub use compress::{CalibrationArgs, CompareArgs, MethodArg, PruneArgs, QuantizeArgs, ReportArgs};
pub use data::{DataVerb, DedupArg, DedupArgs, GardenArgs, PreferArgs, PrepareArgs, RewardArg, SplitArg};
pub use embed::{EmbedArgs, PoolingArg};
pub use model::{
    ChatArgs, CombineArgs, ConvertArgs, EvalArgs, FileDtype, GenerateArgs, LogitsArgs, MergeArgs, ModelVerb, PullArgs,
    RmArgs, ShowArgs, Way,
};
pub use plan::PlanArgs;
pub use sampling::{GrammarArgs, SamplingArgs};
pub use serve::{LogFormat, LogLevel, ServeArgs};
pub use tokenizer::{AlgorithmArg, DecodeArgs, EncodeArgs, TokenizerShowArgs, TokenizerTrainArgs, TokenizerVerb};
pub use train::{ConfigVerb, RunsVerb, TrainArgs};

/// Loam makes, trains and runs language models on your own machine.
#[derive(Debug, Parser)]
#[command(name = "loam", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "New here? `loam quickstart` trains a small model before your eyes and lets you talk to it.\n\
    Environment: LOAM_HOME (local store, default ~/.loam), LOAM_THREADS, LOAM_CPU=scalar|avx2|avx512|amx|neon, NO_COLOR.\n\
    Exit status: 0 done, 1 a negative result, 2 an error.")]
pub struct Cli {
    /// Threads to compute with [default: LOAM_THREADS, else all cores]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The whole road on the built-in corpus, then a chat
    Quickstart(QuickstartArgs),
    /// Train, inspect and run tokenizers
    #[command(subcommand)]
    Tokenizer(TokenizerVerb),
    /// Turn text into token shards, look into them, remove duplicates, write the garden
    #[command(subcommand)]
    Data(DataVerb),
    /// Train a model as a recipe says
    Train(TrainArgs),
    /// Defaults, checks and the schema of recipes
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Continue a text
    Generate(GenerateArgs),
    /// Talk to a model
    Chat(ChatArgs),
    /// Measure how well a model does a task
    Eval(EvalArgs),
    /// Write a model with fewer bits per weight as a GGUF file
    Quantize(QuantizeArgs),
    /// Write a model with fewer weights: zeros, or whole blocks, heads and widths less
    Prune(PruneArgs),
    /// Two models on the same text: perplexity, divergence, speed, bytes
    Compare(CompareArgs),
    /// Turn texts into vectors
    Embed(EmbedArgs),
    /// Serve models over HTTP: the APIs of OpenAI, Anthropic and Ollama, and a page to chat in
    Serve(ServeArgs),
    /// Look into a model
    #[command(subcommand)]
    Model(ModelVerb),
    /// Training runs: list, show, compare
    #[command(subcommand)]
    Runs(RunsVerb),
    /// Measure speed
    #[command(subcommand)]
    Bench(BenchVerb),
    /// What this machine offers
    Doctor(JsonArgs),
    /// Print a shell's completion script
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// `--json` alone.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print one JSON value instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam quickstart`.
#[derive(Debug, Args)]
pub struct QuickstartArgs {
    /// A smaller model and fewer steps: little more than a minute
    #[arg(long)]
    pub fast: bool,
    /// Train on this text instead of the garden's stories
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Where the run directories go
    #[arg(long, value_name = "RUNS", default_value = "runs")]
    pub dir: PathBuf,
    /// Seed of the world, the weights and the order of the data
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}
