//! Arguments of `loam serve`.

use clap::{Args, ValueEnum};
use loam_models::Mix;
use std::net::IpAddr;
use std::path::PathBuf;

/// Arguments of `loam serve`.
#[derive(Debug, Args)]
#[command(
    after_help = "A model is called by the last part of its path, or by NAME where NAME=MODEL was given. A key file \
    holds the SHA-256 of a key per line (`printf %s KEY | sha256sum`), then, optionally, what it is for: generate, embed, \
    metrics. Ctrl-C or SIGTERM lets running answers end first."
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
    /// Tokens of one pass: longer prompts are read in pieces
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub step_tokens: usize,
    /// Most tokens of an answer whose request does not say
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub default_max_tokens: usize,
    /// Largest request in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    pub max_body: usize,
    /// Let in only who has a key of this file
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Seconds that running answers have once the server is to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub shutdown_timeout: u64,
    /// Round the weights first: q8_0, q4_k_m, ...
    #[arg(long, value_name = "MIX")]
    pub quant: Option<Mix>,
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
