//! Arguments of `loam model plan`.

use super::ComputeArgs;
use crate::commands::plan::Probe;
use clap::Args;
use loam_models::{KvType, Mix};

/// Arguments of `loam model plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A Hugging Face directory, a GGUF file, a run, or a name in the local store
    pub model: String,
    /// Element types of the weights to plan for [default: the model's own; of a directory also q8_0, q6_k, q4_k_m, q4_0]
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub quant: Vec<Mix>,
    /// Types of keys and values: full, f16, bf16, q8_0, q4_0
    #[arg(long, value_name = "TYPES", value_delimiter = ',', default_value = "full")]
    pub kv: Vec<KvType>,
    /// Positions that each sequence has room for [default: 2048, or the model's context where that is less]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub context: Vec<usize>,
    /// Sequences at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub sequences: Vec<usize>,
    /// Tokens of a prompt that are read at once
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub chunk: usize,
    /// Memory that may be used, in MiB [default: what the system has available]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<usize>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Print the formulas with their numbers
    #[arg(long)]
    pub explain: bool,
    /// Run every row of the plan in a process of its own and print predicted and measured side by side
    #[arg(long, conflicts_with = "no_speed")]
    pub verify: bool,
    /// Leave out the calibration, about two seconds for each kind of weights, and speeds
    #[arg(long)]
    pub no_speed: bool,
    /// Print one JSON value
    #[arg(long)]
    pub json: bool,
    /// Run one row and print what it took, for --verify
    #[arg(long, hide = true, value_name = "CONTEXT,SEQUENCES,CHUNK,KV")]
    pub probe: Option<Probe>,
}
