//! `loam bench train`: steps of training, and where their time goes.

use super::costs::Operations;
use super::shape::Shape;
use super::{Roof, round};
use crate::args::{BenchConfig, PrecisionArg};
use crate::commands::precision_of;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{output, table};
use loam_models::{Forward, Input, StepShape, step_memory};
use loam_tensor::profile;
use loam_tensor::{pool_stats, with_precision};
use loam_train::{Optimizer, OptimizerSettings, peak_rss_mib, predicted_rss_mib};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// Steps before the clock starts: caches fill, buffers are allocated.
const WARMUP: usize = 3;
const LEARNING_RATE: f64 = 1e-3;

pub fn run(
    config: BenchConfig,
    precision: PrecisionArg,
    recompute: bool,
    profile: bool,
    json: bool,
) -> Result<(), Failure> {
    let shape = Shape::of(config);
    let precision = precision_of(precision)?;
    let model = shape.model()?;
    let tokens = shape.draw("bench tokens", shape.tokens());
    let targets: Vec<i32> = shape.draw("bench targets", shape.tokens()).into_iter().map(|id| id as i32).collect();
    let adamw = OptimizerSettings { beta2: 0.999, weight_decay: 0.01, ..OptimizerSettings::default() };
    let mut optimizer = Optimizer::new(&model.parameters(), adamw);
    let mut progress = Progress::new("steps", (WARMUP + shape.steps) as u64);
    let mut last_loss = 0.0;
    let mut step = |number: usize| -> Result<f64, Failure> {
        let start = Instant::now();
        with_precision(precision, || {
            let scale = 1.0 / shape.tokens() as f32;
            let loss = model.loss(
                &Input::rows(&tokens, shape.batch),
                &targets,
                scale,
                Forward { recompute, ..Forward::default() },
            )?;
            last_loss = loss.item();
            optimizer.begin_step();
            loss.backward_consuming(&mut |parameter| optimizer.update(parameter, LEARNING_RATE, 1.0));
            Ok::<(), loam_models::Error>(())
        })?;
        let seconds = start.elapsed().as_secs_f64();
        progress.update(number as u64 + 1, "");
        Ok(seconds)
    };
    for number in 0..WARMUP {
        step(number)?;
    }
    let mut timed = || (0..shape.steps).map(|number| step(WARMUP + number)).collect::<Result<Vec<f64>, Failure>>();
    let (times, costs) = if profile { profile::recorded(timed) } else { (timed(), BTreeMap::new()) };
    let times = times?;
    progress.finish();
    let step_s = median(&times);
    let (tokens_per_s, gflop_per_s) = (shape.tokens() as f64 / step_s, shape.flop() / step_s / 1e9);
    let peak_rss_mib = peak_rss_mib();
    let step = StepShape { tokens: shape.tokens(), precision, recompute, at_once: true, frozen: None };
    let predicted_rss_mib = predicted_rss_mib(&step_memory(model.spec(), &step));
    let mut report = json!({
        "config": shape.name, "precision": precision.to_string(),
        "step_s": round(step_s, 4), "tokens_per_s": tokens_per_s.round(), "gflop_per_s": round(gflop_per_s, 1),
        "peak_rss_mib": peak_rss_mib, "buffers_mib": pool_stats().peak_bytes >> 20, "predicted_rss_mib": predicted_rss_mib, "loss": round(f64::from(last_loss), 4),
    });
    if !json {
        output::line(&format!(
            "{} {precision}: {:.1} ms per step, {} tokens/s, {gflop_per_s:.1} GFLOP/s, {peak_rss_mib} MiB at most \
             ({predicted_rss_mib} predicted), loss {last_loss:.4}",
            shape.name,
            step_s * 1e3,
            table::grouped(tokens_per_s.round() as usize),
        ))?;
    }
    if profile {
        let roof = Roof::measured().of(precision);
        report["peak_gflop_per_s"] = json!(round(roof.flop_per_s / 1e9, 1));
        report["read_gb_per_s"] = json!(round(roof.bytes_per_s / 1e9, 1));
        let operations = Operations::of(&costs, times.len() as f64, times.iter().sum(), &roof);
        if !json {
            operations.lines().iter().try_for_each(|line| output::line(line))?;
        }
        report["operations"] = operations.rows;
    }
    if json { output::json(&report) } else { Ok(()) }
}

/// The median, as Python's statistics module takes it.
fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 }
}
