//! `--verify`: every row in a process of its own, predicted beside measured.

use super::pace::{Asked, Bench, Pace};
use super::probe::Probe;
use super::{Plan, Row};
use crate::Outcome;
use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use crate::table::{Table, bytes};
use loam_models::{GgufSettings, LanguageModel, RunShape};
use loam_tensor::precision;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How far a prediction may be off: memory, speed.
const MEMORY: f64 = 0.05;
const SPEED: f64 = 0.20;

/// What a probe found.
struct Measured {
    peak: f64,
    prefill: f64,
    decode: f64,
}

pub fn run(plan: &Plan, rows: &[Row], args: &PlanArgs) -> Result<Outcome, Failure> {
    let scratch = tempfile::tempdir().map_err(|e| Failure::io("cannot make a temporary directory", &e))?;
    let mut files: HashMap<usize, PathBuf> = HashMap::new();
    let (mut table, mut list, mut is_good) = (Table::new(&HEADINGS), Vec::new(), true);
    let rows: Vec<&Row> = rows.iter().filter(|row| plan.fits(&row.memory)).collect();
    if rows.is_empty() {
        return Err(Failure::with_hint("no row of the plan can be run here", "plan for what fits into memory"));
    }
    let mut progress = Progress::new("verifying", rows.len() as u64);
    for (index, row) in rows.iter().enumerate() {
        progress.update(index as u64, &plan.label(row));
        let file = match files.get(&row.weights) {
            Some(file) => file.clone(),
            None => {
                let file = written(plan, row.weights, scratch.path())?;
                files.insert(row.weights, file.clone());
                file
            }
        };
        let pace = calibrated(plan, row)?;
        let measured = probe(&file, row, args)?;
        let pairs = [
            ("peak", plan.peak(&row.memory) as f64, measured.peak, MEMORY),
            ("prefill", pace.prefill_tokens_per_s, measured.prefill, SPEED),
            ("decode", pace.decode_tokens_per_s, measured.decode, SPEED),
        ];
        let mut cells = vec![plan.label(row)];
        for (name, predicted, measured, allowed) in pairs {
            let off = predicted / measured - 1.0;
            is_good &= off.abs() <= allowed;
            let say = |x: f64| if name == "peak" { bytes(x as usize) } else { format!("{x:.1}") };
            cells.extend([say(predicted), say(measured), format!("{:+.1} %", 100.0 * off)]);
        }
        list.push(as_json(plan, row, &pairs));
        table.row(cells);
    }
    progress.finish();
    if args.json {
        output::json(&json!({"model": plan.path, "rows": list, "within_limits": is_good}))?;
    } else {
        table.lines().iter().try_for_each(|line| output::line(line))?;
        output::line(&format!(
            "{}: memory within {:.0} %, speed within {:.0} %",
            if is_good { "all" } else { "not all" },
            100.0 * MEMORY,
            100.0 * SPEED
        ))?;
    }
    Ok(if is_good { Outcome::Done } else { Outcome::Negative })
}

const HEADINGS: [&str; 10] = [
    "predicted and measured",
    "peak",
    "measured",
    "off",
    "prefill t/s",
    "measured",
    "off",
    "decode t/s",
    "measured",
    "off",
];

fn as_json(plan: &Plan, row: &Row, pairs: &[(&str, f64, f64, f64); 3]) -> Value {
    let mut value = json!({
        "quant": plan.weights[row.weights].name, "kv": row.shape.kv.name(), "context": row.shape.context, "sequences": row.shape.sequences,
    });
    for (name, predicted, measured, _) in pairs {
        value[*name] = json!({"predicted": predicted, "measured": measured});
    }
    value
}

/// What a plan for this row alone would predict.
fn calibrated(plan: &Plan, row: &Row) -> Result<Pace, Failure> {
    let RunShape { context, sequences, chunk, kv, .. } = row.shape;
    let bench = Bench::new(&plan.outline, &plan.weights[row.weights].types, plan.available)?;
    Ok(bench.measure(Asked { kv, sequences, context, chunk }, 1)?.pace(&row.shape))
}

/// The file that a row is about: the model itself, or a GGUF file of its weights in other types.
fn written(plan: &Plan, weights: usize, scratch: &Path) -> Result<PathBuf, Failure> {
    let Some(mix) = plan.weights[weights].mix else { return Ok(plan.path.clone()) };
    let file = scratch.join(format!("{}.gguf", mix.name()));
    let model = LanguageModel::open(&plan.path)?;
    model.save_gguf(&file, GgufSettings { mix: Some(mix), ..GgufSettings::default() })?;
    Ok(file)
}

fn probe(file: &Path, row: &Row, args: &PlanArgs) -> Result<Measured, Failure> {
    let shape = &row.shape;
    let program = std::env::current_exe().map_err(|e| Failure::io("cannot find this program", &e))?;
    let asked = Probe { context: shape.context, sequences: shape.sequences, chunk: args.chunk, kv: shape.kv };
    let run = Command::new(program)
        .args(["--threads", &shape.threads.to_string(), "model", "plan"])
        .arg(file)
        .args(["--probe", &asked.to_string(), "--precision", &precision().to_string()])
        .output()
        .map_err(|e| Failure::io("cannot start a probe", &e))?;
    if !run.status.success() {
        return Err(Failure::new(format!("the probe failed: {}", String::from_utf8_lossy(&run.stderr).trim())));
    }
    let value: Value = serde_json::from_slice(&run.stdout)?;
    let number = |key: &str| value[key].as_f64().unwrap_or(f64::NAN);
    Ok(Measured {
        peak: number("peak_rss_bytes"),
        prefill: number("prefill_tokens_per_s"),
        decode: number("decode_tokens_per_s"),
    })
}
