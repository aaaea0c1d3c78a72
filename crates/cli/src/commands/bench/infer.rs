//! `loam bench infer`: reading a prompt, and writing one token after the other.

use super::shape::Shape;
use super::{Roof, round};
use crate::args::{BenchConfig, PrecisionArg};
use crate::commands::precision_of;
use crate::commands::quantise;
use crate::failure::Failure;
use crate::output;
use loam_models::{Forward, Input, Mix, footprint};
use loam_tensor::{DType, Precision, no_grad, with_precision};
use loam_train::peak_rss_mib;
use serde_json::json;
use std::time::Instant;

/// Prompts that are read; the fastest counts.
const PREFILLS: usize = 4;

pub fn run(
    config: BenchConfig,
    precision: PrecisionArg,
    quant: Option<Mix>,
    tokens: usize,
    json: bool,
) -> Result<(), Failure> {
    let shape = Shape::of(config);
    let precision = precision_of(precision)?;
    let model = shape.model()?;
    quantise(&model, quant)?;
    let prompt_len = shape.time.saturating_sub(tokens);
    if prompt_len == 0 {
        return Err(Failure::with_hint(
            format!("--tokens {tokens}: no position of {} is left for a prompt", shape.name),
            format!("its context has {}: ask for 1 to {} tokens", shape.time, shape.time - 1),
        ));
    }
    let prompt = shape.draw("bench prompt", prompt_len);
    let (prefill_s, decode_s) = with_precision(precision, || {
        no_grad(|| -> Result<(f64, f64), Failure> {
            let mut prefill_s = f64::INFINITY;
            let mut cache = model.new_cache();
            for _ in 0..PREFILLS {
                cache = model.new_cache();
                let start = Instant::now();
                model
                    .last_logits(&Input::rows(&prompt, 1), Forward { cache: Some(&mut cache), ..Forward::default() })?;
                prefill_s = prefill_s.min(start.elapsed().as_secs_f64());
            }
            let mut times = Vec::with_capacity(tokens);
            for token in shape.draw("bench decode", tokens) {
                let start = Instant::now();
                model.last_logits(
                    &Input::rows(&[token], 1),
                    Forward { cache: Some(&mut cache), ..Forward::default() },
                )?;
                times.push(start.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            Ok((prefill_s, times[times.len() / 2]))
        })
    })?;
    let roof = Roof::measured().of(precision);
    let footprint = footprint(model.spec());
    // Of a prompt only the last position goes through the head.
    let head = 2 * shape.head_parameters();
    let prefill_flop = (prompt_len * (footprint.forward_flop_per_token - head) + head) as f64;
    let weights = match (quant, precision) {
        (Some(_), _) => {
            let all = model.parameters();
            all.iter().map(|(_, p)| if p.dtype() == DType::F32 { 0 } else { p.bytes() }).sum()
        }
        (None, Precision::Bf16) => 2 * footprint.matmul_parameters,
        (None, Precision::F32) => 4 * footprint.matmul_parameters,
    };
    let decode_bytes = (weights + footprint.kv_bytes_per_token_f32 * (prompt_len + tokens / 2)) as f64;
    let name = quant.map_or(precision.to_string(), |mix| mix.name().to_owned());
    let of_peak = prefill_flop / prefill_s / roof.flop_per_s;
    let of_bandwidth = decode_bytes / decode_s / roof.bytes_per_s;
    if json {
        return output::json(&json!({
            "config": shape.name, "precision": name, "prompt_tokens": prompt_len, "tokens": tokens,
            "prompt_tokens_per_s": (prompt_len as f64 / prefill_s).round(),
            "prefill_gflop_per_s": round(prefill_flop / prefill_s / 1e9, 1), "prefill_of_peak": round(of_peak, 3),
            "tokens_per_s": round(1.0 / decode_s, 1), "decode_gb_per_s": round(decode_bytes / decode_s / 1e9, 1),
            "decode_of_bandwidth": round(of_bandwidth, 3),
            "peak_gflop_per_s": round(roof.flop_per_s / 1e9, 1), "read_gb_per_s": round(roof.bytes_per_s / 1e9, 1),
            "peak_rss_mib": peak_rss_mib(),
        }));
    }
    output::line(&format!(
        "{} {name}: prefill {:.0} tokens/s, {:.1} GFLOP/s, {:.0} % of the peak of {:.1}",
        shape.name,
        prompt_len as f64 / prefill_s,
        prefill_flop / prefill_s / 1e9,
        100.0 * of_peak,
        roof.flop_per_s / 1e9
    ))?;
    output::line(&format!(
        "{} {name}: decode {:.1} tokens/s, {:.1} GB/s, {:.0} % of the {:.1} that memory gives",
        shape.name,
        1.0 / decode_s,
        decode_bytes / decode_s / 1e9,
        100.0 * of_bandwidth,
        roof.bytes_per_s / 1e9
    ))
}
