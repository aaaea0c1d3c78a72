//! Arguments of `loam model`, `loam generate` and `loam chat`.

use clap::{Args, Subcommand, ValueEnum};
use loam_models::Mix;
use std::path::PathBuf;

use super::plan::PlanArgs;
use super::sampling::{GrammarArgs, SamplingArgs};
use super::{ComputeArgs, JsonArgs};

/// Verbs of `loam model`.
#[derive(Debug, Subcommand)]
pub enum ModelVerb {
    /// Architecture, parameters, and what it takes to run and train
    Show(ShowArgs),
    /// The logits of a row of tokens
    Logits(LogitsArgs),
    /// Write a model as a Hugging Face directory with safetensors or as a GGUF file, in an element type of choice
    Convert(ConvertArgs),
    /// Put an adapter into the weights of its model, and report what that changes
    Merge(MergeArgs),
    /// Make one LoRA adapter of several
    Combine(CombineArgs),
    /// What a model needs and how fast it will be here, before anything is loaded
    Plan(PlanArgs),
    /// Fetch a model from a hub (HF_ENDPOINT, HF_TOKEN) into the local store; continues where it was cut
    Pull(PullArgs),
    /// The models of the local store
    List(JsonArgs),
    /// Remove a model from the local store
    Rm(RmArgs),
}

/// Arguments of `loam model pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The repository, such as Qwen/Qwen3-0.6B; its name in the local store, too
    pub repo: String,
    /// Branch, tag or commit
    #[arg(long, value_name = "REV", default_value = "main")]
    pub revision: String,
    /// Only files whose path matches, such as '*q4_k_m.gguf' [default: configuration, tokenizer, and safetensors weights
    /// where there are any]
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Not files whose path matches
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam model rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Its name in the local store
    pub name: String,
}

/// Arguments of `loam model merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// A Hugging Face directory, a run, or a name in the local store
    pub base: String,
    /// An adapter of it: a directory of PEFT, or a run
    pub adapter: PathBuf,
    /// The directory to write
    pub out: PathBuf,
    /// Compare on the lines of this file [default: on random tokens]
    #[arg(long, value_name = "FILE")]
    pub probe: Option<PathBuf>,
    /// Compare both orders of merging and of rounding the weights to fewer bits, such as q8_0 or q4_k_m
    #[arg(long, value_name = "TYPE")]
    pub quant: Option<Mix>,
    /// Replace the model that OUT holds
    #[arg(long)]
    pub force: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam model combine`.
#[derive(Debug, Args)]
pub struct CombineArgs {
    /// The model that the adapters were made for
    pub base: String,
    /// The adapter's directory to write, or a file NAME.gguf for llama.cpp
    pub out: PathBuf,
    /// Adapters with their weights: DIR or DIR=WEIGHT
    #[arg(required = true, value_name = "DIR[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// How they become one
    #[arg(long, value_enum, default_value_t = Way::Cat)]
    pub how: Way,
    /// Rank of the result of svd [default: the largest of theirs]
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// Share of the numbers that stays, in ties, dare-* and magnitude-prune
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub density: f64,
    /// Seed of what stays, in dare-*
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Replace the adapter that OUT holds
    #[arg(long)]
    pub force: bool,
}

/// Ways to make one adapter of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Weighted sums of A and of B: an approximation
    Linear,
    /// All ranks side by side: exact
    Cat,
    /// The largest singular vectors of the sum
    Svd,
    /// The largest numbers, those with the majority's sign
    Ties,
    /// Random numbers, made larger for those that are gone
    DareLinear,
    /// The same, and those with the majority's sign
    DareTies,
    /// The largest numbers
    MagnitudePrune,
}

/// Arguments of `loam model show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// Every tensor of the files with shape, element type and size, and the sum of each module
    #[arg(long)]
    pub tree: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam model convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A Hugging Face directory (safetensors or PyTorch's pytorch_model.bin), a GGUF file, a run, or a name in the local
    /// store
    pub model: String,
    /// The directory to write, or the GGUF file: a name that ends with .gguf
    pub out: PathBuf,
    /// Element type of the weights [default: that of the model's files]
    #[arg(long)]
    pub dtype: Option<FileDtype>,
    /// Round the weights of a GGUF file to fewer bits, such as q8_0, q6_k, q4_k_m or q4_0
    #[arg(long, value_name = "TYPE", conflicts_with = "dtype")]
    pub quant: Option<Mix>,
    /// Split the weights into files of at most this size, such as 2GB or 500MiB [default: one file]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_shard_size: Option<u64>,
    /// Replace the model that OUT holds
    #[arg(long)]
    pub force: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
}

/// Element types that weights are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileDtype {
    /// Four bytes
    #[value(alias = "f32")]
    Float32,
    /// Two bytes, the range of float32
    #[value(alias = "bf16")]
    Bfloat16,
    /// Two bytes, finer than bfloat16, up to 65504
    #[value(alias = "f16")]
    Float16,
}

/// `2GB`, `500MiB`, `1000000`: bytes, as Hugging Face writes them.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: Option<u64> = match unit.trim_start().to_ascii_uppercase().as_str() {
        "" | "B" => Some(1),
        "KB" => Some(1000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "KIB" => Some(1 << 10),
        "MIB" => Some(1 << 20),
        "GIB" => Some(1 << 30),
        _ => None,
    };
    let bytes = scale.and_then(|scale| number.parse::<u64>().ok()?.checked_mul(scale));
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| "expected a size such as 2GB, 500MB or 512MiB".into())
}

/// Arguments of `loam model logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// The tokens' ids
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    pub tokens: Vec<u32>,
    /// The decoder's tokens, for a model with an encoder, which then reads --tokens
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub decoder_tokens: Vec<u32>,
    /// Put this adapter into the model first: a directory of PEFT or AdapterHub, a GGUF file, or a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Round the weights to fewer bits first, such as q8_0, q6_k, q4_k_m or q4_0
    #[arg(long, value_name = "TYPE")]
    pub quant: Option<Mix>,
    /// Only the last position's logits
    #[arg(long)]
    pub last: bool,
    /// Print one JSON value: `{"shape":[time,vocab],"logits":[[...]]}`
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// The text to continue; `-` reads standard input
    pub prompt: String,
    /// Put this adapter into the model first: a directory of PEFT or AdapterHub, a GGUF file, or a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Round the weights to fewer bits first, such as q8_0, q6_k, q4_k_m or q4_0
    #[arg(long, value_name = "TYPE")]
    pub quant: Option<Mix>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Put the prompt as a user's message through the chat template
    #[arg(long)]
    pub chat: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub grammar: GrammarArgs,
    /// Follow this many texts at once and take the best, instead of drawing one
    #[arg(long, value_name = "N", conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "seed", "grammar_args"])]
    pub beams: Option<usize>,
    /// With --beams: scores are log-probabilities over the length to this power; larger prefers longer texts
    #[arg(long, value_name = "P", requires = "beams", default_value_t = 1.0, allow_negative_numbers = true)]
    pub length_penalty: f32,
    /// Print one JSON value when done, instead of the text as it comes
    #[arg(long)]
    pub json: bool,
    /// With --json: the N most likely tokens in every place, and their log-probabilities
    #[arg(long, value_name = "N", requires = "json", default_value_t = 0)]
    pub top_logprobs: usize,
}

/// Arguments of `loam eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// Pairs of source and target (.jsonl, .csv, .parquet): how often the model writes the target
    #[arg(long, value_name = "FILE", required_unless_present_any = ["questions", "answers"])]
    pub pairs: Option<PathBuf>,
    /// The garden's questions (questions.jsonl): how often the model answers right, by the garden's exact scorer
    #[arg(long, value_name = "FILE", conflicts_with = "pairs")]
    pub questions: Option<PathBuf>,
    /// Questions in any layout of conversations, with the right answer in a field of its own: how often the last number of the
    /// reply is the right one (GSM8K)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pairs", "questions"])]
    pub answers: Option<PathBuf>,
    /// What is compared instead of the last number: a regular expression, whose first group counts where it has one
    #[arg(long, value_name = "REGEX", requires = "answers")]
    pub pattern: Option<String>,
    /// Name of the field with the right answer
    #[arg(long, value_name = "FIELD", default_value = "answer")]
    pub field: String,
    /// Name of the field with the source
    #[arg(long, value_name = "FIELD", default_value = "source")]
    pub source: String,
    /// Name of the field with the target
    #[arg(long, value_name = "FIELD", default_value = "target")]
    pub target: String,
    /// Follow this many texts at once; 1 is greedy decoding
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub beams: usize,
    /// Scores are log-probabilities over the length to this power; larger prefers longer texts
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub length_penalty: f32,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_tokens: usize,
    /// Put this adapter into the model first: a directory of PEFT or AdapterHub, a GGUF file, or a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Round the weights to fewer bits first, such as q8_0, q6_k, q4_k_m or q4_0
    #[arg(long, value_name = "TYPE")]
    pub quant: Option<Mix>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Only the first N pairs
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print one JSON value instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loam chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// Put this adapter into the model first: a directory of PEFT or AdapterHub, a GGUF file, or a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Round the weights to fewer bits first, such as q8_0, q6_k, q4_k_m or q4_0
    #[arg(long, value_name = "TYPE")]
    pub quant: Option<Mix>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub grammar: GrammarArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_hugging_face_writes_them() {
        let read: Vec<Option<u64>> = ["2GB", "500 mb", "512MiB", "7", "3B"].iter().map(|t| size(t).ok()).collect();
        assert_eq!(read, [2_000_000_000, 500_000_000, 512 << 20, 7, 3].map(Some));
        for wrong in ["", "GB", "0", "0GB", "-1GB", "1.5GB", "2XB", "99999999999999999999", "18446744073709551615KB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
