//! `loam runs`: what lies in run directories.

use crate::Outcome;
use crate::args::RunsVerb;
use crate::failure::Failure;
use crate::output::{self, Colour, paint};
use crate::table::{Table, grouped};
use loam_train::{EvalRow, MetricRow, Recipe, Row, read_rows};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

pub fn run(verb: RunsVerb) -> Result<Outcome, Failure> {
    match verb {
        RunsVerb::List { dir, json } => list(&dir, json)?,
        RunsVerb::Show { run, json } => show(&run, json)?,
        RunsVerb::Compare { runs, json } => compare(&runs, json)?,
    }
    Ok(Outcome::Done)
}

/// What a run directory says about itself.
struct Run {
    path: PathBuf,
    recipe: Recipe,
    last: Option<MetricRow>,
    evaluation: Option<EvalRow>,
    has_model: bool,
}

impl Run {
    fn open(path: &Path) -> Result<Self, Failure> {
        let resolved = path.join("resolved.toml");
        if !resolved.is_file() {
            return Err(Failure::with_hint(
                format!("{} is not a run directory", path.display()),
                "a run directory holds resolved.toml and metrics.jsonl; `loam runs list` shows those there are",
            ));
        }
        let recipe = Recipe::open(&resolved, &[])?;
        let metrics = path.join("metrics.jsonl");
        let rows = if metrics.is_file() { read_rows(&metrics)? } else { Vec::new() };
        let last = rows.iter().rev().find_map(|row| if let Row::Step(step) = row { Some(step.clone()) } else { None });
        let evaluation =
            rows.iter().rev().find_map(|row| if let Row::Eval(eval) = row { Some(eval.clone()) } else { None });
        Ok(Self {
            path: path.to_owned(),
            recipe,
            last,
            evaluation,
            has_model: path.join("model/config.json").is_file(),
        })
    }

    fn name(&self) -> String {
        let name = self.path.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
        name.unwrap_or_else(|| self.path.display().to_string())
    }

    fn steps(&self) -> u64 {
        self.recipe.train.steps.unwrap_or(0)
    }

    fn state(&self) -> &'static str {
        if self.has_model { "finished" } else { "unfinished" }
    }

    fn to_json(&self) -> Value {
        json!({
            "path": self.path,
            "stage": self.recipe.stage.name(),
            "state": self.state(),
            "steps": self.steps(),
            "last": self.last,
            "evaluation": self.evaluation,
        })
    }
}

fn list(dir: &Path, json: bool) -> Result<(), Failure> {
    let entries = fs::read_dir(dir).map_err(|e| {
        Failure::with_hint(format!("cannot list {}: {e}", dir.display()), "give the directory that holds the runs")
    })?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("resolved.toml").is_file())
        .collect();
    // Names begin with the time.
    paths.sort_by(|a, b| b.cmp(a));
    let runs: Vec<Run> = paths.iter().map(|path| Run::open(path)).collect::<Result<_, _>>()?;
    if json {
        return output::json(&runs.iter().map(Run::to_json).collect::<Vec<_>>());
    }
    if runs.is_empty() {
        output::say(&format!("there are no runs in {}", dir.display()));
        return Ok(());
    }
    let mut table = Table::new(&["run", "stage", "state", "steps", "loss", "eval loss", "bits/byte"]);
    for run in &runs {
        table.row(vec![
            run.name(),
            run.recipe.stage.name().into(),
            run.state().into(),
            format!("{}/{}", run.last.as_ref().map_or(0, |row| row.step), run.steps()),
            number(run.last.as_ref().map(|row| row.loss)),
            number(run.evaluation.as_ref().map(|row| row.eval_loss)),
            number(run.evaluation.as_ref().and_then(|row| row.eval_bits_per_byte)),
        ]);
    }
    table.lines().iter().try_for_each(|line| output::line(line))
}

fn show(path: &Path, json: bool) -> Result<(), Failure> {
    let run = Run::open(path)?;
    if json {
        return output::json(&run.to_json());
    }
    output::line(&paint(Colour::Bold, &format!("{} ({}, {})", run.name(), run.recipe.stage.name(), run.state())))?;
    for line in column(&run) {
        output::line(&format!("{:<18}{}", line.0, line.1))?;
    }
    for (name, what) in [
        ("model", "the trained model; open it with `loam chat` or `loam generate`"),
        ("report.md", "curves and numbers for reading"),
        ("resolved.toml", "the recipe with every default; it gives the same run again"),
        ("metrics.jsonl", "every step"),
    ] {
        let file = path.join(name);
        if file.exists() {
            output::line(&format!("{}  {}", file.display(), paint(Colour::Dim, what)))?;
        }
    }
    Ok(())
}

fn compare(paths: &[PathBuf], json: bool) -> Result<(), Failure> {
    let runs: Vec<Run> = paths.iter().map(|path| Run::open(path)).collect::<Result<_, _>>()?;
    if json {
        return output::json(&runs.iter().map(Run::to_json).collect::<Vec<_>>());
    }
    let names: Vec<String> = runs.iter().map(Run::name).collect();
    let headings: Vec<&str> = [""].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut table = Table::new(&headings);
    let columns: Vec<_> = runs.iter().map(column).collect();
    for (index, (name, _)) in columns[0].iter().enumerate() {
        let values = columns.iter().map(|column| column[index].1.clone());
        table.row([name.to_string()].into_iter().chain(values).collect());
    }
    table.lines().iter().try_for_each(|line| output::line(line))
}

/// What is worth knowing of a run, by name, in a fixed order.
fn column(run: &Run) -> Vec<(&'static str, String)> {
    let train = &run.recipe.train;
    vec![
        ("stage", run.recipe.stage.name().into()),
        ("steps", format!("{}/{}", run.last.as_ref().map_or(0, |row| row.step), run.steps())),
        ("tokens", run.last.as_ref().map_or("-".into(), |row| grouped(row.tokens as usize))),
        ("learning rate", train.lr.map_or("-".into(), |lr| lr.to_string())),
        ("batch", train.batch.map_or("-".into(), |batch| batch.to_string())),
        ("precision", train.precision.name().into()),
        ("seed", run.recipe.seed.to_string()),
        ("loss", number(run.last.as_ref().map(|row| row.loss))),
        ("eval loss", number(run.evaluation.as_ref().map(|row| row.eval_loss))),
        ("perplexity", number(run.evaluation.as_ref().map(|row| row.eval_perplexity))),
        ("bits/byte", number(run.evaluation.as_ref().and_then(|row| row.eval_bits_per_byte))),
        ("tokens/s", run.last.as_ref().map_or("-".into(), |row| format!("{:.0}", row.tokens_per_s))),
        ("memory (MiB)", run.last.as_ref().map_or("-".into(), |row| row.rss_mib.to_string())),
    ]
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.4}"))
}
