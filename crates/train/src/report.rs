//! What a run leaves for readers: `report.md`, `report.html`, `loss.svg`, and `trainer_state.json` for other tools.

use std::fmt::Write;

use loam_formats::atomic;
use serde_json::{Value, json};

use crate::error::Result;
use crate::metrics::{EvalRow, MetricRow, Row, measure_name, measure_text, read_rows};
use crate::plot::loss_svg;
use crate::recipe::Recipe;
use crate::run_dir::RunDir;
use crate::trainer::{Ending, Summary};

/// What the report says besides what the run directory holds.
pub struct Facts<'a> {
    /// The resolved recipe.
    pub recipe: &'a Recipe,
    /// The model in one line.
    pub model: &'a str,
    /// Its parameters.
    pub parameters: usize,
    /// How the run ended.
    pub summary: &'a Summary,
}

/// Writes all reports of a run.
pub fn write_reports(dir: &RunDir, facts: &Facts<'_>) -> Result<()> {
    let rows = read_rows(&dir.metrics_path())?;
    let svg = loss_svg(&rows);
    let sections = sections(dir, facts, &rows);
    let write = |name: &str, text: &str| atomic::write_file(dir.join(name), text.as_bytes());
    write("loss.svg", &svg)?;
    write("report.md", &markdown(&sections))?;
    write("report.html", &html(&sections, &svg))?;
    let state = trainer_state(facts.recipe, &rows);
    write("trainer_state.json", &format!("{state:#}\n"))?;
    Ok(())
}

/// Training and evaluation rows apart.
fn split(rows: &[Row]) -> (Vec<MetricRow>, Vec<EvalRow>) {
    let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
    for row in rows {
        match row {
            Row::Step(row) => steps.push(row.clone()),
            Row::Eval(row) => evaluations.push(row.clone()),
        }
    }
    (steps, evaluations)
}

enum Block {
    Table(Vec<Vec<String>>),
    Plot,
    Code(String),
}

struct Section {
    title: String,
    block: Block,
}

fn sections(dir: &RunDir, facts: &Facts<'_>, rows: &[Row]) -> Vec<Section> {
    let (steps, evaluations) = split(rows);
    let section = |title: &str, block: Block| Section { title: title.into(), block };
    let mut list = vec![section("Result", Block::Table(result_table(facts, &steps, &evaluations)))];
    list.push(section("Loss", Block::Plot));
    if !evaluations.is_empty() {
        list.push(section("Evaluations", Block::Table(evaluation_table(&evaluations))));
    }
    if let Some((step, samples)) = dir.newest_samples() {
        list.push(section(&format!("Samples at step {step}"), Block::Code(samples)));
    }
    list.push(section("Recipe", Block::Code(facts.recipe.to_toml())));
    if let Ok(environment) = std::fs::read_to_string(dir.join("environment.json")) {
        list.push(section("Environment", Block::Code(environment)));
    }
    list
}

fn result_table(facts: &Facts<'_>, steps: &[MetricRow], evaluations: &[EvalRow]) -> Vec<Vec<String>> {
    let ending = match facts.summary.ending {
        Ending::Finished => "finished",
        Ending::StoppedEarly => "stopped early",
        Ending::Interrupted => "interrupted; it can be resumed",
    };
    let tail = &steps[steps.len().saturating_sub(50)..];
    let mean = |value: fn(&MetricRow) -> f64| tail.iter().map(value).sum::<f64>() / tail.len().max(1) as f64;
    let seconds = steps.iter().map(|row| row.ms).sum::<f64>() / 1e3;
    let mut table = vec![
        vec!["stage".into(), facts.recipe.stage.name().into()],
        vec!["model".into(), facts.model.into()],
        vec!["parameters".into(), facts.parameters.to_string()],
        vec!["ended".into(), ending.into()],
        vec!["steps".into(), facts.summary.progress.step.to_string()],
        vec!["tokens".into(), facts.summary.progress.tokens.to_string()],
        vec!["time in steps".into(), format!("{seconds:.1} s")],
    ];
    if let Some(last) = tail.last() {
        table.push(vec!["training loss (mean of the last 50 steps)".into(), format!("{:.4}", mean(|row| row.loss))]);
        table.push(vec!["tokens per second (same)".into(), format!("{:.0}", mean(|row| row.tokens_per_s))]);
        table.push(vec!["peak memory".into(), format!("{} MiB", last.rss_mib)]);
    }
    if let Some(row) = evaluations.last() {
        table.push(vec!["held-out loss".into(), format!("{:.4} nats per token", row.eval_loss)]);
        table.push(vec!["held-out perplexity".into(), format!("{:.3}", row.eval_perplexity)]);
        if let Some(bits) = row.eval_bits_per_byte {
            table.push(vec!["held-out bits per byte".into(), format!("{bits:.4}")]);
        }
        table.extend(
            row.metrics
                .iter()
                .map(|(name, value)| vec![format!("held-out {}", measure_name(name)), measure_text(name, *value)]),
        );
    }
    table
}

fn evaluation_table(evaluations: &[EvalRow]) -> Vec<Vec<String>> {
    let head = ["step", "loss", "perplexity", "bits per byte", "tokens"].map(String::from).to_vec();
    let row = |row: &EvalRow| {
        let bits = row.eval_bits_per_byte.map_or("".into(), |bits| format!("{bits:.4}"));
        let numbers = [format!("{:.4}", row.eval_loss), format!("{:.3}", row.eval_perplexity), bits];
        [vec![row.step.to_string()], numbers.to_vec(), vec![row.eval_tokens.to_string()]].concat()
    };
    std::iter::once(head).chain(evaluations.iter().map(row)).collect()
}

fn markdown(sections: &[Section]) -> String {
    let mut text = String::from("# Training report\n");
    for section in sections {
        let _ = write!(text, "\n## {}\n\n", section.title);
        match &section.block {
            Block::Plot => text.push_str("![loss](loss.svg)\n"),
            // Four spaces, since a sample may hold any kind of fence.
            Block::Code(code) => text.extend(code.trim_end().lines().map(|line| format!("    {line}\n"))),
            Block::Table(rows) => {
                for (index, row) in rows.iter().enumerate() {
                    let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                    let _ = writeln!(text, "| {} |", cells.join(" | "));
                    if index == 0 {
                        let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
                    }
                }
            }
        }
    }
    text
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}\
    table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.25rem .75rem;text-align:left}\
    pre{background:#f6f6f6;padding:1rem;overflow-x:auto;white-space:pre-wrap}svg{max-width:100%;height:auto}";

fn html(sections: &[Section], svg: &str) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Training report</title>\
         <style>{STYLE}</style></head><body>\n<h1>Training report</h1>\n"
    );
    for section in sections {
        let _ = writeln!(text, "<h2>{}</h2>", escape(&section.title));
        match &section.block {
            Block::Plot => text.push_str(svg),
            Block::Code(code) => {
                let _ = writeln!(text, "<pre>{}</pre>", escape(code));
            }
            Block::Table(rows) => {
                text.push_str("<table>\n");
                for row in rows {
                    let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
                    let _ = writeln!(text, "<tr>{cells}</tr>");
                }
                text.push_str("</table>\n");
            }
        }
    }
    text.push_str("</body></html>\n");
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The log of a run in the layout of transformers' Trainer.
fn trainer_state(recipe: &Recipe, rows: &[Row]) -> Value {
    let (steps, evaluations) = split(rows);
    let last = steps.last().map_or(0, |row| row.step);
    let best = evaluations.iter().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss));
    let total = recipe.train.steps.unwrap_or(last);
    let epoch = |step: u64| step as f64 / total.max(1) as f64;
    let history = rows.iter().map(|row| match row {
        Row::Step(row) => json!({
            "epoch": epoch(row.step), "grad_norm": row.grad_norm, "learning_rate": row.lr, "loss": row.loss,
            "step": row.step,
        }),
        Row::Eval(row) => json!({
            "epoch": epoch(row.step), "eval_loss": row.eval_loss, "eval_runtime": row.ms / 1e3, "step": row.step,
        }),
    });
    json!({
        "best_global_step": best.map(|row| row.step),
        "best_metric": best.map(|row| row.eval_loss),
        "best_model_checkpoint": null,
        "epoch": epoch(last),
        "eval_steps": recipe.train.eval_every,
        "global_step": last,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": history.collect::<Vec<_>>(),
        "logging_steps": 1,
        "max_steps": total,
        "num_input_tokens_seen": steps.last().map_or(0, |row| row.tokens),
        "num_train_epochs": 1,
        "save_steps": recipe.train.checkpoint_every,
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": recipe.train.micro_batch,
        "trial_name": null,
        "trial_params": null,
    })
}
