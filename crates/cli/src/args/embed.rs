//! Arguments of `loam embed`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `loam embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// A Hugging Face or sentence-transformers directory, a run, or a name in the local store
    pub model: String,
    /// Texts
    #[arg(value_name = "TEXT", required_unless_present = "file", conflicts_with = "file")]
    pub texts: Vec<String>,
    /// A file with a text per line, an empty line is an empty text; `-` reads standard input
    #[arg(long, value_name = "LINES")]
    pub file: Option<PathBuf>,
    /// How the vectors of the tokens become one; several, separated by commas, stand side by side
    /// [default: what the model's 1_Pooling says, else mean]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "POOLING")]
    pub pooling: Vec<PoolingArg>,
    /// Leave vectors as long as they are [default: what the model's modules.json says, else length 1]
    #[arg(long)]
    pub no_normalize: bool,
    /// Tokens of a text that are read, the rest is cut off [default: what the model's files say]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Print one JSON object with `index` and `embedding` per text
    #[arg(long)]
    pub json: bool,
}

/// Ways to make one vector of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolingArg {
    /// The first token's vector
    Cls,
    /// The largest value of each feature
    Max,
    /// The mean
    Mean,
    /// The sum over the root of the number of tokens
    MeanSqrtLen,
    /// The mean weighted by position, later tokens more
    Weightedmean,
    /// The last token's vector: for causal models
    Lasttoken,
}
