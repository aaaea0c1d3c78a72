//! `loam bench`: how fast this machine is at what Loam does.

use crate::args::{BenchConfig, BenchVerb, PrecisionArg};
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use crate::{Outcome, table};
use loam_kernels::rng::Rng;
use loam_models::{Forward, Input, LanguageModel};
use loam_tensor::{Precision, with_precision};
use loam_tokenizer::{Special, TrainConfig, TrainKind, train_files};
use loam_train::{AdamW, Betas, peak_rss_mib};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

pub fn run(verb: BenchVerb) -> Result<Outcome, Failure> {
    match verb {
        BenchVerb::Train { config, precision, json } => train(config, precision, json)?,
        BenchVerb::Tokenizer { file, vocab_size, json } => tokenizer(&file, vocab_size, json)?,
    }
    Ok(Outcome::Done)
}

/// A shape that PyTorch was measured on, too (`shared/bench/gpt_torch.py`).
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    vocab: usize,
    width: usize,
    layers: usize,
    heads: usize,
    time: usize,
    batch: usize,
    steps: usize,
}

impl Shape {
    fn of(config: BenchConfig) -> Self {
        let shape = |name, vocab, width, layers, heads, time, batch, steps| Self {
            name,
            vocab,
            width,
            layers,
            heads,
            time,
            batch,
            steps,
        };
        match config {
            BenchConfig::Small => shape("small", 65, 128, 4, 4, 64, 12, 60),
            BenchConfig::Baby => shape("baby", 65, 384, 6, 6, 256, 16, 10),
            BenchConfig::Gpt2 => shape("gpt2", 50_304, 768, 12, 12, 256, 4, 5),
        }
    }

    fn tokens(&self) -> usize {
        self.batch * self.time
    }

    /// Six per parameter of the matrix products and token, and the two products of causal attention.
    fn flop(&self) -> f64 {
        let (c, l, tokens) = (self.width as f64, self.layers as f64, self.tokens() as f64);
        let matmul = l * 12.0 * c * c + self.vocab as f64 * c;
        6.0 * matmul * tokens + 6.0 * l * c * self.time as f64 * tokens
    }
}

/// Steps before the clock starts: caches fill, buffers are allocated.
const WARMUP: usize = 3;
const LEARNING_RATE: f64 = 1e-3;

fn train(config: BenchConfig, precision: PrecisionArg, json: bool) -> Result<(), Failure> {
    let shape = Shape::of(config);
    let name = match precision {
        PrecisionArg::Auto => "auto",
        PrecisionArg::F32 => "f32",
        PrecisionArg::Bf16 => "bf16",
    };
    let precision: Precision = name.parse().map_err(Failure::new)?;
    let model = LanguageModel::new(
        &json!({
            "model_type": "gpt2", "vocab_size": shape.vocab, "n_embd": shape.width, "n_layer": shape.layers,
            "n_head": shape.heads, "n_positions": shape.time, "tie_word_embeddings": false,
        }),
        0,
    )?;
    let draw = |purpose: &str| -> Vec<u32> {
        let rng = Rng::new(0, purpose, 0);
        (0..shape.tokens()).map(|i| rng.below(i as u64, shape.vocab as u64) as u32).collect()
    };
    let tokens = draw("bench tokens");
    let targets: Vec<i32> = draw("bench targets").into_iter().map(|id| id as i32).collect();
    let betas = Betas { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut optimizer = AdamW::new(&model.parameters(), betas);
    let mut progress = Progress::new("steps", (WARMUP + shape.steps) as u64);
    let mut times = Vec::with_capacity(shape.steps);
    let mut last_loss = 0.0;
    for step in 0..WARMUP + shape.steps {
        let start = Instant::now();
        let loss = with_precision(precision, || {
            let scale = 1.0 / shape.tokens() as f32;
            let loss = model.loss(&Input::rows(&tokens, shape.batch), &targets, scale, Forward::default())?;
            last_loss = loss.item();
            loss.backward();
            optimizer.step(LEARNING_RATE, 1.0);
            Ok::<(), loam_models::Error>(())
        });
        loss?;
        model.parameters().iter().for_each(|(_, parameter)| parameter.clear_grad());
        if step >= WARMUP {
            times.push(start.elapsed().as_secs_f64());
        }
        progress.update(step as u64 + 1, "");
    }
    progress.finish();
    times.sort_by(f64::total_cmp);
    // The median, as Python's statistics module takes it.
    let middle = times.len() / 2;
    let step_s = if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 };
    let (tokens_per_s, gflop_per_s) = (shape.tokens() as f64 / step_s, shape.flop() / step_s / 1e9);
    if json {
        return output::json(&json!({
            "config": shape.name, "precision": precision.to_string(),
            "step_s": round(step_s, 4), "tokens_per_s": tokens_per_s.round(), "gflop_per_s": round(gflop_per_s, 1),
            "peak_rss_mib": peak_rss_mib(), "loss": round(f64::from(last_loss), 4),
        }));
    }
    output::line(&format!(
        "{} {precision}: {:.1} ms per step, {} tokens/s, {gflop_per_s:.1} GFLOP/s, {} MiB at most, loss {last_loss:.4}",
        shape.name,
        step_s * 1e3,
        table::grouped(tokens_per_s.round() as usize),
        peak_rss_mib()
    ))
}

fn tokenizer(file: &Path, vocab_size: usize, json: bool) -> Result<(), Failure> {
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

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
