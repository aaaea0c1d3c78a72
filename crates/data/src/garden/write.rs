//! The garden as files, for `loam data garden` and for anyone's eyes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use loam_formats::atomic;
use serde_json::json;

use super::settings::{QUESTIONS, TRAIN_BYTES, TRAIN_CHATS, VALID_BYTES};
use super::{Garden, Split};
use crate::Error;

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
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { train_bytes: TRAIN_BYTES, valid_bytes: VALID_BYTES, chats: TRAIN_CHATS, questions: QUESTIONS }
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
}

impl Garden {
    /// Writes `train.txt`, `valid.txt`, `chats.jsonl` and `questions.jsonl` into `dir`, each whole or not at all.
    pub fn write(&self, dir: &Path, sizes: Sizes) -> Result<Written, Error> {
        let written = Written {
            train: dir.join("train.txt"),
            valid: dir.join("valid.txt"),
            chats: dir.join("chats.jsonl"),
            questions: dir.join("questions.jsonl"),
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
        Ok(written)
    }
}

fn line(out: &mut dyn Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}
