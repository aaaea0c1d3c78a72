//! Arguments of `loam data`.

use super::ComputeArgs;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Which documents count as repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DedupArg {
    /// None
    None,
    /// Equal ones
    Exact,
    /// Equal ones and those that share most of their word sequences (MinHash)
    Near,
}

/// How plain text files become documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// A file is one document
    File,
    /// Empty lines separate documents
    EmptyLine,
    /// The mark <|endoftext|> separates documents
    EndOfText,
}

/// Verbs of `loam data`.
#[derive(Debug, Subcommand)]
pub enum DataVerb {
    /// Turn text files into memory-mapped token shards; a second run with the same input is instant
    Prepare(PrepareArgs),
    /// Look into prepared shards, into text files, or into conversations and preferences as a model is trained on them
    Inspect {
        /// A directory that `prepare` made, or text files
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
        /// Show the beginning of shards as text, or a record of conversations, preferences or prompts token by token with
        /// what is trained, by this tokenizer.json or model
        #[arg(short, long, value_name = "TOKENIZER_OR_MODEL")]
        tokenizer: Option<String>,
        /// Which record to show
        #[arg(long, default_value_t = 1, value_name = "N", requires = "tokenizer")]
        record: usize,
        /// Print one JSON value
        #[arg(long)]
        json: bool,
    },
    /// Remove equal and nearly equal documents
    Dedup(DedupArgs),
    /// Let a model answer prompts, several times each, and write pairs of its answers of which a reward says the first is better
    Prefer(PreferArgs),
    /// Write the built-in corpus as files
    Garden(GardenArgs),
}

/// What gives rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RewardArg {
    /// The garden's own scorer, for the prompts that `loam data garden` writes
    Garden,
    /// Whether the last match of --pattern in an answer equals that in the row's field
    Match,
    /// The reward model --reward-model
    Model,
    /// The program --reward-program
    Program,
}

/// Arguments of `loam data prepare`.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Text files, patterns, or .jsonl(.gz|.zst), .csv, .parquet
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// A tokenizer.json, or a model
    #[arg(short, long, value_name = "TOKENIZER_OR_MODEL")]
    pub tokenizer: String,
    /// The directory that holds the shards, each set under the hash of its content
    #[arg(short, long, value_name = "DIR", default_value = "data")]
    pub out: PathBuf,
    /// The text's column in .jsonl, .csv and .parquet
    #[arg(long, default_value = "text", value_name = "NAME")]
    pub column: String,
    /// Share of the documents that goes to validation
    #[arg(long, default_value_t = 0.0, value_name = "FRACTION")]
    pub validation: f64,
    /// Which repeated documents to leave out
    #[arg(long, value_enum, default_value = "none")]
    pub dedup: DedupArg,
    /// How plain text files become documents
    #[arg(long, value_enum, default_value = "file")]
    pub split: SplitArg,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam data dedup`.
#[derive(Debug, Args)]
pub struct DedupArgs {
    /// Text files, patterns, or .jsonl(.gz|.zst), .csv, .parquet
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// Write the documents that stay, as .jsonl; without it, only the count is printed
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The text's column in .jsonl, .csv and .parquet
    #[arg(long, default_value = "text", value_name = "NAME")]
    pub column: String,
    /// Which documents count as repeated
    #[arg(long, value_enum, default_value = "near")]
    pub dedup: DedupArg,
    /// How plain text files become documents
    #[arg(long, value_enum, default_value = "empty-line")]
    pub split: SplitArg,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam data prefer`.
#[derive(Debug, Args)]
pub struct PreferArgs {
    /// The model that answers
    pub model: String,
    /// Files with prompts, as `loam train` reads them for reinforcement learning
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// The .jsonl file to write: {prompt, chosen, rejected, score_chosen, score_rejected}
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// What says which answer is better
    #[arg(long, value_enum)]
    pub reward: RewardArg,
    /// Directory of a model that the stage `reward` made
    #[arg(long, value_name = "DIR")]
    pub reward_model: Option<String>,
    /// A program, with its arguments, that reads {"prompt","completion","row"} lines and writes {"reward": number} lines
    #[arg(long, value_name = "COMMAND")]
    pub reward_program: Option<String>,
    /// With --reward match: a regular expression, the first group of which counts [default: the last number]
    #[arg(long, value_name = "REGEX")]
    pub pattern: Option<String>,
    /// With --reward match: the field of a row that has the right answer
    #[arg(long, value_name = "NAME", default_value = "answer")]
    pub field: String,
    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub samples: usize,
    /// Most pairs of a prompt; those whose rewards are furthest apart come first
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pairs: usize,
    /// Most prompts
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Temperature of the draw
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// Most tokens of an answer; one that does not end by then is left out
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam data garden`.
#[derive(Debug, Args)]
pub struct GardenArgs {
    /// The directory to write into
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Seed of the world
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Bytes of training text
    #[arg(long, value_name = "BYTES")]
    pub train_bytes: Option<usize>,
    /// Training conversations
    #[arg(long, value_name = "N")]
    pub chats: Option<usize>,
    /// Held-out questions
    #[arg(long, value_name = "N")]
    pub questions: Option<usize>,
    /// Training examples of each labelled task (reading, topics, entities, paraphrases)
    #[arg(long, value_name = "N")]
    pub examples: Option<usize>,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}
