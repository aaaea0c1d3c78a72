//! Arguments of `loam serve`.

use clap::{Args, ValueEnum};
use loam_models::{KvType, Mix};
use std::net::IpAddr;
use std::path::PathBuf;

use super::ComputeArgs;

/// Arguments of `loam serve`.
#[derive(Debug, Args)]
#[command(
    after_help = "A model is called by the last part of its path, or by NAME where NAME=MODEL was given. A key file \
    holds the SHA-256 of a key per line (`printf %s KEY | sha256sum`), then, optionally, what it is for: generate, embed, \
    metrics, admin. Ctrl-C or SIGTERM lets running answers end first."
)]
pub struct ServeArgs {
    /// GGUF files, Hugging Face or sentence-transformers directories, runs, or names in the local store; NAME=MODEL
    /// gives a name
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// The address to listen at; 0.0.0.0 is every network of this machine
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Most texts written at the same time, per model
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub max_concurrent: usize,
    /// Most requests that wait for their turn; further ones get status 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_queue: usize,
    /// Most tokens whose keys and values are held, per model [default: 4096, or the model's context where that is shorter,
    /// for each of --max-concurrent]
    #[arg(long, value_name = "N")]
    pub kv_tokens: Option<usize>,
    /// How keys and values are kept: full is the precision of activations, the others take less memory and a little quality
    #[arg(long, value_name = "TYPE", default_value = "full")]
    pub kv_type: KvType,
    /// Tokens of one pass: longer prompts are read in pieces
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub step_tokens: usize,
    /// Most tokens of an answer whose request does not say
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub default_max_tokens: usize,
    /// Largest request in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    pub max_body: usize,
    /// Guess up to so many tokens ahead of each text and check them together; texts stay the same to the bit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub speculate: usize,
    /// A smaller model with the same tokenizer that guesses; without it, what followed earlier in the text is guessed
    #[arg(long, value_name = "MODEL", requires = "speculate")]
    pub draft: Option<String>,
    /// An adapter that clients call by NAME as they do a model; DIR is its directory or that of its run. Of several models,
    /// NAME@MODEL=DIR says which one it is for
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    pub adapters: Vec<String>,
    /// Let requests load and unload adapters from this machine's directories (/v1/load_lora_adapter); with keys they need
    /// the scope admin
    #[arg(long)]
    pub allow_adapter_loading: bool,
    /// Speak TLS with this certificate (PEM, the chain included)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let in only who has a key of this file
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Seconds that running answers have once the server is to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub shutdown_timeout: u64,
    /// Round the weights first: q8_0, q4_k_m, ...
    #[arg(long, value_name = "MIX")]
    pub quant: Option<Mix>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What the log tells
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
}

/// Forms of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line to read
    Text,
    /// A JSON object per line
    Json,
}

/// How much a log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What failed
    Error,
    /// What should not happen, too
    Warn,
    /// Every request, too
    Info,
    /// What libraries say, too
    Debug,
}
