//! Arguments of `loam model`, `loam generate` and `loam chat`.

use clap::{Args, Subcommand};

/// Verbs of `loam model`.
#[derive(Debug, Subcommand)]
pub enum ModelVerb {
    /// Architecture, parameters, and what it takes to run and train
    Show(ShowArgs),
    /// The logits of a row of tokens
    Logits(LogitsArgs),
}

/// Arguments of `loam model show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A Hugging Face directory, a run, or a name in the local store
    pub model: String,
    /// Every parameter with its shape
    #[arg(long)]
    pub tree: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam model logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// A Hugging Face directory, a run, or a name in the local store
    pub model: String,
    /// The tokens' ids
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    pub tokens: Vec<u32>,
    /// Only the last position's logits
    #[arg(long)]
    pub last: bool,
    /// Print one JSON value: `{"shape":[time,vocab],"logits":[[...]]}`
    #[arg(long)]
    pub json: bool,
}

/// How the next token is chosen.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Most tokens to write
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// 0 takes the most likely token every time; larger is more varied
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Only the K most likely tokens; 0 is all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Only tokens at least this fraction as likely as the most likely one
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Makes what already occurred less likely; 1 changes nothing
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The same seed gives the same text [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Arguments of `loam generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A Hugging Face directory, a run, or a name in the local store
    pub model: String,
    /// The text to continue; `-` reads standard input
    pub prompt: String,
    /// Put the prompt as a user's message through the chat template
    #[arg(long)]
    pub chat: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print one JSON value when done, instead of the text as it comes
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// A Hugging Face directory, a run, or a name in the local store
    pub model: String,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}
