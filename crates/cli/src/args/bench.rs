//! `loam bench`.

use clap::{Args, Subcommand, ValueEnum};
use loam_models::Mix;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What is measured.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Timings on a shared machine drift by a factor of two within an hour: compare what was measured in one run.\n\
    `bench/peers/compare.py` alternates Loam and PyTorch and prints the median ratio."
)]
pub enum BenchVerb {
    /// Training steps of a GPT-2-style model on random tokens
    Train {
        /// The shape
        #[arg(long, value_enum, default_value = "small")]
        config: BenchConfig,
        /// Element type of the matrix products
        #[arg(long, value_enum, default_value = "auto")]
        precision: PrecisionArg,
        /// Compute each block's activations again in backward instead of keeping them
        #[arg(long)]
        recompute: bool,
        /// Also say where the time goes, operation by operation, beside what the machine could do
        #[arg(long)]
        profile: bool,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
    /// Prefill and single-stream decoding: of a model on disk, as llama-bench does it, or of a GPT-2-style shape
    Infer {
        /// A GGUF file, or the directory of a model or of a run; its weights stay in the types that they have there
        #[arg(conflicts_with_all = ["config", "quant", "tokens"])]
        model: Option<String>,
        #[command(flatten)]
        bench: ModelBench,
        /// Without MODEL: the shape
        #[arg(long, value_enum, default_value = "gpt2")]
        config: BenchConfig,
        /// Element type of the matrix products [default: f32 of a MODEL, auto of a shape]
        #[arg(long, value_enum)]
        precision: Option<PrecisionArg>,
        /// Round the weights to fewer bits first, such as q8_0, q4_k_m or q4_0
        #[arg(long, value_name = "TYPE")]
        quant: Option<Mix>,
        /// Tokens that are decoded one after the other
        #[arg(long, default_value = "32", value_name = "N")]
        tokens: NonZeroUsize,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
    /// Single operations at the shapes of training and decoding, beside what the machine could do
    Kernels {
        /// Only operations whose name contains this
        #[arg(long, value_name = "TEXT", default_value = "")]
        only: String,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
    /// Training a tokenizer on a file and encoding it
    Tokenizer {
        /// A text file
        file: PathBuf,
        /// Tokens in the vocabulary
        #[arg(long, default_value_t = 4096, value_name = "N")]
        vocab_size: usize,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
}

/// What of a MODEL is measured: the letters are llama-bench's.
#[derive(Debug, clap::Args)]
pub struct ModelBench {
    /// Tokens of the prompt; 0 for none
    #[arg(short = 'p', long, default_value_t = 512, value_name = "N", requires = "model")]
    pub n_prompt: usize,
    /// Tokens that are decoded; 0 for none
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N", requires = "model")]
    pub n_gen: usize,
    /// Tokens that are in the cache before either begins
    #[arg(short = 'd', long, default_value_t = 0, value_name = "N", requires = "model")]
    pub n_depth: usize,
    /// Times that each is measured, after one to warm up where there is more than one
    #[arg(short, long, default_value = "5", value_name = "N", requires = "model")]
    pub repetitions: NonZeroUsize,
    /// Leave out what the memory could do, which takes a second and a buffer of 256 MiB
    #[arg(long, requires = "model")]
    pub no_roof: bool,
}

/// Shapes that training is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchConfig {
    /// 0.8M parameters, 12 rows of 64 tokens
    Small,
    /// 10.8M parameters, 16 rows of 256 tokens
    Baby,
    /// 124M parameters, 4 rows of 256 tokens
    Gpt2,
}

/// How a model computes.
#[derive(Debug, Clone, Copy, Args)]
pub struct ComputeArgs {
    /// Element type of the matrix products. With bf16 matrices of halves or more are rounded to bf16, and so is what they are
    /// multiplied with: faster where the processor multiplies bf16; weights of fewer bits are not touched
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: PrecisionArg,
}

/// Element type of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// bf16 where the processor multiplies it
    Auto,
    /// f32
    F32,
    /// bf16
    Bf16,
}
