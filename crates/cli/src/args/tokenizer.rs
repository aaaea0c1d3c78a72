//! Arguments of `loam tokenizer`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Verbs of `loam tokenizer`.
#[derive(Debug, Subcommand)]
pub enum TokenizerVerb {
    /// Learn a vocabulary from text files
    Train(TokenizerTrainArgs),
    /// Text to ids: one line of ids per input line
    Encode(EncodeArgs),
    /// Ids to text: one line of text per line of ids
    Decode(DecodeArgs),
    /// Vocabulary, merges, special tokens, and how a text is split
    Show(TokenizerShowArgs),
}

/// How a tokenizer is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AlgorithmArg {
    /// Byte-level byte-pair encoding (GPT-2)
    Bpe,
    /// WordPiece (BERT)
    Wordpiece,
    /// Unigram (SentencePiece)
    Unigram,
    /// One id per character
    Char,
}

/// Arguments of `loam tokenizer train`.
#[derive(Debug, Args)]
pub struct TokenizerTrainArgs {
    /// Text files, patterns such as 'corpus/*.txt', or .jsonl, .csv, .parquet
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// The file to write (tokenizer.json), or a directory that gets tokenizer.json and tokenizer_config.json
    #[arg(short, long, value_name = "PATH")]
    pub out: PathBuf,
    /// How it is learned
    #[arg(long, value_enum, default_value = "bpe")]
    pub algorithm: AlgorithmArg,
    /// Tokens in the vocabulary, special ones included
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub vocab_size: usize,
    /// Special tokens; the first ends a text [default: <|endoftext|>]
    #[arg(long, value_name = "TOKEN")]
    pub special: Vec<String>,
    /// The text's column in .jsonl, .csv and .parquet
    #[arg(long, default_value = "text", value_name = "NAME")]
    pub column: String,
}

/// Arguments of `loam tokenizer encode`.
#[derive(Debug, Args)]
pub struct EncodeArgs {
    /// A tokenizer.json, or a model
    #[arg(value_name = "TOKENIZER_OR_MODEL")]
    pub tokenizer: String,
    /// Read this file instead of standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Add no start or end tokens
    #[arg(long)]
    pub no_special: bool,
    /// One JSON array per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam tokenizer decode`.
#[derive(Debug, Args)]
pub struct DecodeArgs {
    /// A tokenizer.json, or a model
    #[arg(value_name = "TOKENIZER_OR_MODEL")]
    pub tokenizer: String,
    /// Read this file instead of standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Leave special tokens out of the text
    #[arg(long)]
    pub no_special: bool,
    /// One JSON string per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam tokenizer show`.
#[derive(Debug, Args)]
pub struct TokenizerShowArgs {
    /// A tokenizer.json, or a model
    #[arg(value_name = "TOKENIZER_OR_MODEL")]
    pub tokenizer: String,
    /// Show how this text is split
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,
    /// List this many tokens of the vocabulary
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub tokens: usize,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}
