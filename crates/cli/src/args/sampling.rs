//! Arguments that say how tokens are chosen.

use clap::Args;
use loam_chat::{SamplerPreset, SamplerStep};
use std::path::PathBuf;

/// How the next token is chosen.
#[derive(Debug, Args)]
#[command(next_help_heading = "How tokens are chosen")]
pub struct SamplingArgs {
    /// Most tokens to write
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// No end before this many tokens
    #[arg(long, value_name = "N")]
    pub min_tokens: Option<usize>,
    /// Text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The same seed gives the same text [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Whose order of steps and edge cases apply: hf (transformers), openai (vLLM) or llamacpp [default: hf]
    #[arg(long, value_name = "NAME")]
    pub sampler_preset: Option<SamplerPreset>,
    /// The steps in an order of your own, such as penalties,top_k,temperature
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    pub samplers: Option<Vec<SamplerStep>>,
    /// 0 takes the most likely token every time; larger is more varied
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Lets the temperature follow the entropy, up to this far above and below
    #[arg(long, value_name = "X")]
    pub dynatemp_range: Option<f32>,
    /// Power of the entropy's share from which the temperature follows [default: 1]
    #[arg(long, value_name = "X")]
    pub dynatemp_exponent: Option<f32>,
    /// Only the K most likely tokens; 0 is all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Only tokens at least this fraction as likely as the most likely one
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Only tokens about as surprising as the distribution is, up to this sum
    #[arg(long, value_name = "P")]
    pub typical_p: Option<f32>,
    /// Only logits at most N standard deviations below the largest
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_n_sigma: Option<f32>,
    /// How often all likely tokens but the least likely of them are dropped (XTC)
    #[arg(long, value_name = "P")]
    pub xtc_probability: Option<f32>,
    /// From which probability on a token is likely for that [default: 0.1]
    #[arg(long, value_name = "P")]
    pub xtc_threshold: Option<f32>,
    /// Makes what already occurred less likely; 1 changes nothing
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Taken from a token's logit for each time that it occurred
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Taken from the logit of a token that occurred at all
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// How many of the last tokens these three look at; -1 is all [default: the preset's]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub penalty_last_n: Option<i32>,
    /// Strength of the penalty on repeating a passage (DRY); 0 is none
    #[arg(long, value_name = "X")]
    pub dry_multiplier: Option<f32>,
    /// Base of its growth with the passage's length [default: 1.75]
    #[arg(long, value_name = "X")]
    pub dry_base: Option<f32>,
    /// Passages up to this many tokens may be repeated [default: 2]
    #[arg(long, value_name = "N")]
    pub dry_allowed_length: Option<usize>,
    /// How many of the last tokens it looks at; -1 is all [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<i32>,
    /// Text that no repeated passage reaches across, instead of the usual ones; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub dry_sequence_breaker: Vec<String>,
    /// 1 or 2: mirostat instead of everything that cuts
    #[arg(long, value_name = "VERSION")]
    pub mirostat: Option<u8>,
    /// Its target surprise in bits per token [default: 5]
    #[arg(long, value_name = "BITS")]
    pub mirostat_tau: Option<f32>,
    /// How fast it learns [default: 0.1]
    #[arg(long, value_name = "X")]
    pub mirostat_eta: Option<f32>,
    /// Added to the logit of a token, such as 17=-2.5 or 17=-inf; may be given several times
    #[arg(long, value_name = "ID=X", value_parser = bias)]
    pub logit_bias: Vec<(u32, f32)>,
}

/// What the text must look like; one of them.
#[derive(Debug, Args)]
#[group(id = "grammar_args", multiple = false)]
#[command(next_help_heading = "What the text must look like")]
pub struct GrammarArgs {
    /// JSON that is valid under the schema in this file
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// Any JSON object
    #[arg(long)]
    pub json_object: bool,
    /// A whole match of this regular expression
    #[arg(long, value_name = "REGEX")]
    pub regex: Option<String>,
    /// A grammar: Lark in a .lark file, GBNF as llama.cpp writes it in any other
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let pair = text.split_once('=').and_then(|(id, x)| Some((id.parse().ok()?, x.parse().ok()?)));
    pair.ok_or_else(|| "expected a token's id, =, and a number".into())
}
