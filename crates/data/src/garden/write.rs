//! The garden as files, for `loam data garden` and for anyone's eyes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use loam_formats::atomic;
use serde_json::{Value, json};

use super::settings::{QUESTIONS, TASK_EXAMPLES, TASK_HELD_OUT, TRAIN_BYTES, TRAIN_CHATS, VALID_BYTES};
use super::{Garden, Split};
use crate::Error;
use crate::labelled::qa::QaRow;

/// The labelled tasks, by the names of their files.
const TASKS: [&str; 6] = ["reading", "topics", "entities", "paraphrases", "preferences", "prompts"];

/// How much to write.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of `train.txt`.
    pub train_bytes: usize,
    /// Bytes of `valid.txt`.
    pub valid_bytes: usize,
    /// Conversations in `chats.jsonl`.
    pub chats: usize,
    /// Lines of `questions.jsonl`.
    pub questions: usize,
    /// Lines of each labelled task's training file.
    pub tasks: usize,
    /// Lines of each labelled task's held-out file.
    pub tasks_held_out: usize,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            train_bytes: TRAIN_BYTES,
            valid_bytes: VALID_BYTES,
            chats: TRAIN_CHATS,
            questions: QUESTIONS,
            tasks: TASK_EXAMPLES,
            tasks_held_out: TASK_HELD_OUT,
        }
    }
}

/// The files that [`Garden::write`] made.
#[derive(Debug, Clone)]
pub struct Written {
    /// Training documents, separated by empty lines.
    pub train: PathBuf,
    /// Held-out documents, separated by empty lines.
    pub valid: PathBuf,
    /// Training conversations, `{"messages":[…]}` per line.
    pub chats: PathBuf,
    /// Held-out questions, a [`super::Question`] per line.
    pub questions: PathBuf,
    /// For each labelled task its name, its training file and its held-out file.
    ///
    /// - `reading`: `{"context","question","answers"}` as in SQuAD, and the same as `{"source","target"}` texts.
    /// - `topics`: `{"text","label"}`.
    /// - `entities`: `{"tokens","tags"}`.
    /// - `paraphrases`: `{"anchor","positive","negative"}`.
    /// - `preferences`: `{"prompt","chosen","rejected","flaw"}`, the first three as lists of messages.
    /// - `prompts`: `{"prompt","answer","category","lang","rivals"}`, questions with what their scorer needs.
    pub tasks: Vec<(&'static str, PathBuf, PathBuf)>,
}

impl Garden {
    /// Writes `train.txt`, `valid.txt`, `chats.jsonl`, `questions.jsonl` and two files per labelled task into `dir`, each
    /// whole or not at all.
    pub fn write(&self, dir: &Path, sizes: Sizes) -> Result<Written, Error> {
        let written = Written {
            train: dir.join("train.txt"),
            valid: dir.join("valid.txt"),
            chats: dir.join("chats.jsonl"),
            questions: dir.join("questions.jsonl"),
            tasks: TASKS
                .map(|task| (task, dir.join(format!("{task}-train.jsonl")), dir.join(format!("{task}-valid.jsonl"))))
                .to_vec(),
        };
        let texts =
            [(&written.train, Split::Train, sizes.train_bytes), (&written.valid, Split::HeldOut, sizes.valid_bytes)];
        for (path, split, bytes) in texts {
            atomic::write_with(path, |out| {
                self.documents(split, bytes).try_for_each(|document| write!(out, "{}\n\n", document.text))
            })?;
        }
        atomic::write_with(&written.chats, |out| {
            self.chats(Split::Train, sizes.chats).iter().try_for_each(|chat| line(out, &json!({ "messages": chat })))
        })?;
        atomic::write_with(&written.questions, |out| {
            self.questions(Split::HeldOut, sizes.questions).iter().try_for_each(|question| line(out, question))
        })?;
        for (task, train, held_out) in &written.tasks {
            for (path, split, n) in
                [(train, Split::Train, sizes.tasks), (held_out, Split::HeldOut, sizes.tasks_held_out)]
            {
                let rows = self.task(task, split, n);
                atomic::write_with(path, |out| rows.iter().try_for_each(|row| line(out, row)))?;
            }
        }
        Ok(written)
    }

    /// The rows of one of [`TASKS`].
    fn task(&self, task: &str, split: Split, n: usize) -> Vec<Value> {
        match task {
            "reading" => self.readings(split, n).iter().map(reading).collect(),
            "topics" => self.topics(split, n).iter().map(|row| json!(row)).collect(),
            "preferences" => self.preferences(split, n).iter().map(|row| json!(row)).collect(),
            "prompts" => self.questions(split, n).iter().map(|row| json!(row)).collect(),
            "entities" => self.tagged(split, n).iter().map(|row| json!(row)).collect(),
            _ => self.paraphrases(split, n).iter().map(|row| json!(row)).collect(),
        }
    }
}

/// A question about a passage for both ways of answering: by pointing and by writing.
fn reading(row: &QaRow) -> Value {
    let source = format!("{} {}", row.question, row.context);
    json!({
        "context": row.context, "question": row.question, "answers": row.answers, "source": source,
        "target": row.answers.text.first(),
    })
}

fn line(out: &mut dyn Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}
