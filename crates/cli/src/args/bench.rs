//! Arguments of `loam bench`.

use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;

/// Verbs of `loam bench`.
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// Training steps of a GPT-2-style model on random tokens
    Train {
        /// The shape
        #[arg(long, value_enum, default_value = "small")]
        config: BenchConfig,
        /// Element type of the matrix products
        #[arg(long, value_enum, default_value = "auto")]
        precision: PrecisionArg,
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
