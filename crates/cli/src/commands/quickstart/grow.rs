//! The garden as files of one line per document, conversation or question.

use super::plan::Plan;
use loam_chat::Message;
use loam_data::garden::{Garden, Question, Split};
use loam_formats::{Error, atomic};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The files, and what else is needed of the garden.
pub struct Grown {
    /// Training documents, `{"text": …}` per line.
    pub train: PathBuf,
    /// Held-out documents.
    pub valid: PathBuf,
    /// Training conversations, `{"messages": […]}` per line.
    pub chats: PathBuf,
    /// Held-out conversations.
    pub valid_chats: PathBuf,
    /// Held-out questions.
    pub questions: Vec<Question>,
    /// The first training document.
    pub first: String,
}

/// Writes a garden of the plan's size into `dir`.
pub fn grow(seed: u64, plan: &Plan, dir: &Path) -> Result<Grown, Error> {
    let garden = Garden::new(seed);
    let questions = garden.questions(Split::HeldOut, plan.questions);
    let grown = Grown {
        train: dir.join("train.jsonl"),
        valid: dir.join("valid.jsonl"),
        chats: dir.join("chats.jsonl"),
        valid_chats: dir.join("valid-chats.jsonl"),
        first: garden.documents(Split::Train, 1).next().map(|document| document.text).unwrap_or_default(),
        questions,
    };
    let text = |split, bytes| garden.documents(split, bytes).map(|document| json!({"text": document.text}));
    lines(&grown.train, text(Split::Train, plan.train_bytes))?;
    lines(&grown.valid, text(Split::HeldOut, plan.valid_bytes))?;
    let chats = |split, n| garden.chats(split, n).into_iter().map(|chat: Vec<Message>| json!({"messages": chat}));
    lines(&grown.chats, chats(Split::Train, plan.chats))?;
    lines(&grown.valid_chats, chats(Split::HeldOut, plan.valid_chats))?;
    lines(&dir.join("questions.jsonl"), grown.questions.iter())?;
    Ok(grown)
}

fn lines(path: &Path, values: impl Iterator<Item = impl Serialize>) -> Result<(), Error> {
    atomic::write_with(path, |out| {
        for value in values {
            serde_json::to_writer(&mut *out, &value)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}
