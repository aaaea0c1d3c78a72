//! `loam bench`.

use clap::{Subcommand, ValueEnum};
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
    /// Prefill and single-stream decoding of a GPT-2-style model on random tokens
    Infer {
        /// The shape
        #[arg(long, value_enum, default_value = "gpt2")]
        config: BenchConfig,
        /// Element type of the matrix products
        #[arg(long, value_enum, default_value = "auto")]
        precision: PrecisionArg,
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
