//! `metrics.jsonl`: one row per optimizer step and one per evaluation.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What an optimizer step was like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Steps done, this one included.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Mean loss of the batch in nats per counted token.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// L2 norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Milliseconds.
    pub ms: f64,
    /// Most memory the process has had so far, in MiB; 0 where the system does not say.
    pub rss_mib: u64,
    /// What else the stage reports of a step, such as `rewards/margins`: means over what was counted.
    #[serde(flatten, default)]
    pub metrics: BTreeMap<String, f64>,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Steps done.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Mean loss: in nats per counted token, or per example.
    pub eval_loss: f64,
    /// `exp(eval_loss)`.
    pub eval_perplexity: f64,
    /// Loss in bits per byte of UTF-8, comparable between vocabularies; absent where bytes are not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_bits_per_byte: Option<f64>,
    /// Tokens or examples that were counted.
    pub eval_tokens: u64,
    /// Milliseconds.
    pub ms: f64,
    /// What else the stage measures, such as `eval_accuracy` and `eval_exact_match`: shares of what was counted.
    #[serde(flatten, default)]
    pub metrics: BTreeMap<String, f64>,
}

impl EvalRow {
    /// What the stage measures besides its loss, for a line of text: `, accuracy 93.0 %`.
    pub fn measures(&self) -> String {
        self.metrics
            .iter()
            .map(|(key, value)| format!(", {} {}", measure_name(key), measure_text(key, *value)))
            .collect()
    }
}

/// The name of a measure, for readers.
pub(crate) fn measure_name(key: &str) -> String {
    key.trim_start_matches("eval_").replace('_', " ")
}

/// The value of a measure, for readers: shares in percent.
pub(crate) fn measure_text(key: &str, value: f64) -> String {
    match ["accuracy", "accuracies", "exact_match"].iter().any(|share| key.ends_with(share)) {
        true => format!("{:.1} %", 100.0 * value),
        false => format!("{value:.4}"),
    }
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Row {
    /// A training step.
    Step(MetricRow),
    /// An evaluation.
    Eval(EvalRow),
}

/// The open file, to which rows are appended.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file and keeps the rows up to a point: training rows up to `step`, evaluations up to `eval_step`.
    /// Later ones belong to work that is done again, and a line torn by a kill is dropped.
    pub fn open(path: &Path, step: u64, eval_step: u64) -> Result<Self> {
        // Kept lines stay as they are: reading and writing a number may change its last digit.
        let is_kept = |row: &Row| match row {
            Row::Step(row) => row.step <= step,
            Row::Eval(row) => row.step <= eval_step,
        };
        let kept = read_lines(path)?.into_iter().filter(|(_, row)| is_kept(row));
        let text: String = kept.map(|(line, _)| line + "\n").collect();
        loam_formats::atomic::write_file(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| loam_formats::Error::io("open", path, e))?;
        Ok(Self { path: path.into(), file })
    }

    /// Appends a row. It is in the file as a whole once this returns.
    pub fn append(&mut self, row: Row) -> Result<()> {
        let text = line(&row);
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|e| Error::from(loam_formats::Error::io("write", &self.path, e)))
    }

    /// Forces the rows to disk, as a checkpoint that refers to them needs.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::from(loam_formats::Error::io("write", &self.path, e)))
    }
}

fn line(row: &Row) -> String {
    let json = serde_json::to_string(row).expect("a row is made of numbers");
    format!("{json}\n")
}

/// All rows of a file, up to the first line that is not whole. A file that does not exist has none.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    Ok(read_lines(path)?.into_iter().map(|(_, row)| row).collect())
}

fn read_lines(path: &Path) -> Result<Vec<(String, Row)>> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(loam_formats::Error::io("read", path, e).into()),
    };
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    Ok(whole.map_while(|line| Some((line.to_string(), serde_json::from_str(line).ok()?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step_row(step: u64) -> Row {
        let row = MetricRow {
            step,
            tokens: 10 * step,
            loss: 1.0 / 3.0,
            lr: 1e-3,
            grad_norm: 0.5,
            tokens_per_s: 1.0,
            ms: 1.0,
            rss_mib: 7,
            metrics: [("rewards/margins".to_owned(), 0.25)].into(),
        };
        Row::Step(row)
    }

    fn eval_row(step: u64) -> Row {
        let row = EvalRow {
            step,
            tokens: 10 * step,
            eval_loss: 2.5,
            eval_perplexity: 12.25,
            eval_bits_per_byte: None,
            eval_tokens: 5,
            ms: 1.0,
            metrics: [("eval_accuracy".to_owned(), 0.5)].into(),
        };
        Row::Eval(row)
    }

    #[test]
    fn rows_after_the_checkpoint_and_a_torn_line_are_cut_and_the_rest_reads_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0, 0).unwrap();
        for row in [step_row(1), step_row(2), eval_row(2), step_row(3)] {
            metrics.append(row).unwrap();
        }
        let torn = format!("{}{{\"step\":4,\"tok", std::fs::read_to_string(&path).unwrap());
        std::fs::write(&path, torn).unwrap();
        assert_eq!(read_rows(&path).unwrap(), [step_row(1), step_row(2), eval_row(2), step_row(3)]);
        let mut metrics = Metrics::open(&path, 2, 1).unwrap();
        metrics.append(step_row(3)).unwrap();
        assert_eq!(read_rows(&path).unwrap(), [step_row(1), step_row(2), step_row(3)]);
    }
}
