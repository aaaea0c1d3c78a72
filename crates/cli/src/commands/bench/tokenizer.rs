//! `loam bench tokenizer`.

use super::round;
use crate::failure::Failure;
use crate::{output, table};
use loam_tokenizer::{Special, TrainConfig, TrainKind, train_files};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

pub fn run(file: &Path, vocab_size: usize, json: bool) -> Result<(), Failure> {
    let text =
        std::fs::read_to_string(file).map_err(|e| Failure::io(&format!("cannot read {}", file.display()), &e))?;
    let megabytes = text.len() as f64 / 1e6;
    output::say(&format!("{megabytes:.1} MB of text"));
    let start = Instant::now();
    let config = TrainConfig { vocab_size, ..TrainConfig::new(TrainKind::ByteBpe) };
    let tokenizer = train_files(&[file], &config, &mut |_| {})?;
    let train_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let tokens = tokenizer.encode(&text, Special::Parse)?.len();
    let encode_s = start.elapsed().as_secs_f64();
    if json {
        return output::json(&json!({
            "bytes": text.len(), "vocab_size": tokenizer.vocab_size(),
            "train_s": round(train_s, 3), "train_mb_per_s": round(megabytes / train_s, 2),
            "encode_s": round(encode_s, 3), "encode_mb_per_s": round(megabytes / encode_s, 2), "tokens": tokens,
        }));
    }
    output::line(&format!("train   {:.2} s  {:.1} MB/s", train_s, megabytes / train_s))?;
    output::line(&format!(
        "encode  {:.2} s  {:.1} MB/s  {} tokens",
        encode_s,
        megabytes / encode_s,
        table::grouped(tokens)
    ))
}
