//! Arguments of `loam quantize`, `loam prune` and `loam compare`.

use clap::{Args, ValueEnum};
use loam_compress::{Method, Pruning, Sparsity};
use loam_models::Mix;
use std::path::PathBuf;

/// Text that says what a model's activations are like.
#[derive(Debug, Args)]
pub struct CalibrationArgs {
    /// Text that the method looks at; not the one that the result is judged by
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Rows of the calibration text
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub samples: usize,
    /// Tokens of such a row [default: 512, or the model's context where that is less]
    #[arg(long, value_name = "N")]
    pub sample_tokens: Option<usize>,
}

/// What the result is compared on.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Text to compare the original and the result on, in rows of --context tokens
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens of a row; each row is read from its own beginning [default: 512, or the model's context where that is less]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Most tokens of the text
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub tokens: usize,
}

/// Arguments of `loam quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// The GGUF file to write; with --type nf4 the directory
    pub out: PathBuf,
    /// Element types of the weights, such as q8_0, q6_k, q4_k_m, q4_0, mxfp4, q3_k_s, or nf4 for a directory in
    /// bitsandbytes' layout [default: q4_k_m; q8_0 with smoothquant]
    #[arg(long = "type", value_name = "TYPE")]
    pub mix: Option<Mix>,
    /// How weights are rounded
    #[arg(long, value_enum, default_value_t = MethodArg::Rtn)]
    pub method: MethodArg,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// With --method imatrix: read the importance matrix from this file of llama.cpp's (GGUF or .dat)
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub imatrix: Option<PathBuf>,
    /// Write the importance matrix that was found: as GGUF, or in llama.cpp's old form where the name ends with .dat
    #[arg(long, value_name = "FILE")]
    pub save_imatrix: Option<PathBuf>,
    /// With --method gptq: share of the Hessian's mean diagonal that is added to its diagonal
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub damping: f64,
    /// With --method gptq: weigh columns by their inputs when scales are searched for, too
    #[arg(long)]
    pub weigh_scales: bool,
    /// With --method smoothquant: the share of the activations' range that goes to the weights
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub smoothing: f64,
    #[command(flatten)]
    pub report: ReportArgs,
    /// Replace the file that OUT is
    #[arg(long)]
    pub force: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Ways to round weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodArg {
    /// To the nearest, one weight at a time
    Rtn,
    /// Scales searched for with an importance matrix: the mean squares of every layer's inputs
    Imatrix,
    /// Column by column, later ones making up for the errors of earlier ones
    Gptq,
    /// After columns with large inputs were made larger
    Awq,
    /// Eight bits per output channel, after the activations' range was moved into the weights
    Smoothquant,
}

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::Rtn => Self::Rtn,
            MethodArg::Imatrix => Self::Imatrix,
            MethodArg::Gptq => Self::Gptq,
            MethodArg::Awq => Self::Awq,
            MethodArg::Smoothquant => Self::SmoothQuant,
        }
    }
}

/// Arguments of `loam prune`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["sparsity", "layers", "heads", "width"]))]
pub struct PruneArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// The directory to write, or the GGUF file: a name that ends with .gguf
    pub out: PathBuf,
    /// Share of the blocks' weights that becomes zero, or a pattern: 2:4 makes two of every four neighbours zero
    #[arg(long, value_name = "SHARE|N:M")]
    pub sparsity: Option<Sparsity>,
    /// Which weights become zero
    #[arg(long, value_enum, default_value_t = PruningArg::Wanda)]
    pub method: PruningArg,
    /// Keep this many blocks: those that change the text's states most
    #[arg(long, value_name = "N", conflicts_with = "sparsity")]
    pub layers: Option<usize>,
    /// Keep this many key heads per block, each with the query heads that share it
    #[arg(long, value_name = "N", conflicts_with = "sparsity")]
    pub heads: Option<usize>,
    /// Keep feed-forwards of this width
    #[arg(long, value_name = "N", conflicts_with = "sparsity")]
    pub width: Option<usize>,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    #[command(flatten)]
    pub report: ReportArgs,
    /// Replace the model that OUT holds
    #[arg(long)]
    pub force: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// What decides which weights become zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PruningArg {
    /// The smallest of each matrix
    Magnitude,
    /// The smallest of each row, times the size of their inputs
    Wanda,
    /// Those that the weights that stay can best make up for, which these then do
    Sparsegpt,
}

impl From<PruningArg> for Pruning {
    fn from(method: PruningArg) -> Self {
        match method {
            PruningArg::Magnitude => Self::Magnitude,
            PruningArg::Wanda => Self::Wanda,
            PruningArg::Sparsegpt => Self::SparseGpt,
        }
    }
}

/// Arguments of `loam compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The original
    pub before: String,
    /// What became of it: a model with the same vocabulary
    pub after: String,
    /// The text
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens of a row; each row is read from its own beginning [default: 512, or the model's context where that is less]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Most tokens of the text
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub tokens: usize,
    /// Round what the second model's layers read to eight bits per token, as smoothquant means it
    #[arg(long)]
    pub round_activations: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}
