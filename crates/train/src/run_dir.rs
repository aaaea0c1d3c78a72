//! A run's directory: what lies where, and what must be there before the first step.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use loam_formats::atomic;
use serde_json::Value;

use crate::checkpoint::{Checkpoints, Progress};
use crate::error::{Error, Result};
use crate::metrics::{EvalRow, MetricRow, Metrics};
use crate::recipe::{Recipe, changed_keys};
use crate::system::{directory_time, timestamp};
use crate::trainer::Observer;

/// The recipe of a run with every default filled in.
const RESOLVED: &str = "resolved.toml";

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// A name for a new run below `parent`: time, stage, name.
    pub fn fresh_path(parent: &Path, stage: &str, name: &str) -> PathBuf {
        let base = format!("{}-{stage}-{name}", directory_time());
        let candidates = (1..).map(|n| parent.join(if n == 1 { base.clone() } else { format!("{base}-{n}") }));
        candidates.into_iter().find(|path| !path.exists()).unwrap_or_else(|| parent.join(&base))
    }

    /// The directory of a run. Without `resume` it must not hold a run yet.
    pub fn open(path: impl Into<PathBuf>, resume: bool) -> Result<Self> {
        let run = Self { path: path.into() };
        let holds_run = run.metrics_path().exists() || run.path.join("checkpoints").exists();
        if holds_run && !resume {
            return Err(Error::RunDir {
                path: run.path,
                problem: "already holds a run".into(),
                hint: "go on with it by --resume, or choose another --dir".into(),
            });
        }
        if run.path.is_file() {
            return Err(Error::RunDir {
                path: run.path,
                problem: "is a file, not a directory".into(),
                hint: "choose another --dir".into(),
            });
        }
        fs::create_dir_all(&run.path).map_err(|e| loam_formats::Error::io("create", &run.path, e))?;
        atomic::clean_leftovers(&run.path)?;
        run.checkpoints().clean()?;
        Ok(run)
    }

    /// Removes a directory in which nothing was done yet but a log of why not. Whatever else lies there stays.
    pub(crate) fn discard(&self) {
        let _ = fs::remove_file(self.log_path());
        let _ = fs::remove_dir(&self.path);
    }

    fn log_path(&self) -> PathBuf {
        self.path.join("log.txt")
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or directory within it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Its checkpoints.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.path.join("checkpoints"))
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The trained model in Hugging Face layout.
    pub fn model_path(&self) -> PathBuf {
        self.path.join("model")
    }

    /// The recipe that the run was started with, every default filled in; `None` before it was described.
    pub(crate) fn earlier(&self) -> Result<Option<Recipe>> {
        let path = self.path.join(RESOLVED);
        path.is_file().then(|| Recipe::open(&path, &[])).transpose()
    }

    /// Writes what describes the run, before its first step. A run that is resumed must be described the same way, but for
    /// what changes no weight: its name, and how many threads it has.
    pub fn describe(&self, recipe: &Recipe, resolved: &Recipe, environment: &Value) -> Result<()> {
        if let Some(earlier) = self.earlier()? {
            let mut changed = changed_keys(&earlier, resolved);
            changed.retain(|key| !["train.name", "train.threads"].contains(&key.as_str()));
            if !changed.is_empty() {
                let keys: Vec<String> = changed.iter().map(|key| format!("`{key}`")).collect();
                return Err(Error::RunDir {
                    path: self.path.clone(),
                    problem: format!("the run was started with another {}", keys.join(", ")),
                    hint: "resume with the same recipe and settings, or start a new run in another --dir".into(),
                });
            }
            return Ok(());
        }
        let write = |name: &str, text: &str| atomic::write_file(self.path.join(name), text.as_bytes());
        write("recipe.toml", &recipe.to_toml())?;
        write("environment.json", &format!("{environment:#}\n"))?;
        write(RESOLVED, &resolved.to_toml())?;
        Ok(())
    }

    /// Writes the samples of a step, one after the other.
    pub fn write_samples(&self, step: u64, samples: &[String]) -> Result<()> {
        let path = self.path.join("samples").join(format!("step-{step:06}.txt"));
        let text: String = samples.iter().map(|sample| format!("{sample}\n\n")).collect();
        Ok(atomic::write_file(path, text.as_bytes())?)
    }

    /// The newest samples, with their step.
    pub fn newest_samples(&self) -> Option<(u64, String)> {
        let entries = fs::read_dir(self.path.join("samples")).ok()?;
        let newest = entries.filter_map(|entry| Some(entry.ok()?.path())).max()?;
        let step = newest.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        Some((step, fs::read_to_string(&newest).ok()?))
    }

    /// Writes the evaluation of a step under `eval/`.
    pub fn write_evaluation(&self, row: &EvalRow) -> Result<()> {
        let path = self.path.join("eval").join(format!("step-{:06}.json", row.step));
        let json = serde_json::to_string_pretty(row).expect("a row is made of numbers");
        Ok(atomic::write_file(path, format!("{json}\n").as_bytes())?)
    }
}

/// What the loop writes to while it runs.
pub(crate) struct Journal<'a> {
    dir: &'a RunDir,
    pub(crate) metrics: Metrics,
}

impl<'a> Journal<'a> {
    /// Opens the files and cuts what lies after `progress`.
    pub(crate) fn open(dir: &'a RunDir, progress: &Progress) -> Result<Self> {
        let metrics = Metrics::open(&dir.metrics_path(), progress.step, progress.eval_step)?;
        Ok(Self { dir, metrics })
    }

    pub(crate) fn dir(&self) -> &'a RunDir {
        self.dir
    }
}

/// An observer that also keeps `log.txt`: evaluations and messages, each with the time.
pub struct Log<'a> {
    inner: &'a mut dyn Observer,
    file: File,
}

impl<'a> Log<'a> {
    /// Appends to the log of a run.
    pub fn open(dir: &RunDir, inner: &'a mut dyn Observer) -> Result<Self> {
        let path = dir.log_path();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self { inner, file: file.map_err(|e| loam_formats::Error::io("open", &path, e))? })
    }

    fn line(&mut self, text: &str) {
        // The log is for readers; a run does not end because it cannot be written.
        let _ = writeln!(self.file, "{} {text}", timestamp());
    }
}

impl Observer for Log<'_> {
    fn on_step(&mut self, row: &MetricRow, total_steps: u64) {
        self.inner.on_step(row, total_steps);
    }

    fn on_eval(&mut self, row: &EvalRow) {
        let bits = row.eval_bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        let more = row.measures();
        self.line(&format!(
            "step {}: evaluation loss {:.4}, perplexity {:.2}{bits}{more}",
            row.step, row.eval_loss, row.eval_perplexity
        ));
        self.inner.on_eval(row);
    }

    fn on_sample(&mut self, step: u64, samples: &[String]) {
        self.inner.on_sample(step, samples);
    }

    fn on_message(&mut self, message: &str) {
        self.line(message);
        self.inner.on_message(message);
    }
}
