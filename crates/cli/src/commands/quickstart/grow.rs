//! The garden as files of one line per document, conversation or question.
//!
//! Conversations come after the tokenizer: only those that fit into the model's context are of use, and how long one is
//! depends on the tokenizer (one made for a user's text may need several tokens for a Chinese character).

use super::plan::Plan;
use crate::failure::Failure;
use loam_chat::Message;
use loam_data::garden::{Garden, Question, Split};
use loam_formats::{Error, atomic};
use loam_tokenizer::{ChatTemplate, Tokenizer, encode_chat};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The files, and what else is needed of the garden.
pub struct Grown {
    /// Training documents, `{"text": …}` per line.
    pub train: PathBuf,
    /// Held-out documents.
    pub valid: PathBuf,
    /// Held-out questions.
    pub questions: Vec<Question>,
    /// The first training document.
    pub first: String,
}

/// Files of conversations, `{"messages": […]}` per line.
pub struct Chats {
    /// Training conversations.
    pub train: PathBuf,
    /// Held-out conversations.
    pub valid: PathBuf,
}

/// Writes the documents and questions of a garden of the plan's size into `dir`.
pub fn grow(seed: u64, plan: &Plan, dir: &Path) -> Result<Grown, Error> {
    let garden = Garden::new(seed);
    let questions = garden.questions(Split::HeldOut, plan.questions);
    let grown = Grown {
        train: dir.join("train.jsonl"),
        valid: dir.join("valid.jsonl"),
        first: garden.documents(Split::Train, 1).next().map(|document| document.text).unwrap_or_default(),
        questions,
    };
    let text = |split, bytes| garden.documents(split, bytes).map(|document| json!({"text": document.text}));
    lines(&grown.train, text(Split::Train, plan.train_bytes))?;
    lines(&grown.valid, text(Split::HeldOut, plan.valid_bytes))?;
    lines(&dir.join("questions.jsonl"), grown.questions.iter())?;
    Ok(grown)
}

/// Writes the conversations that fit into the plan's context.
pub fn chats(seed: u64, plan: &Plan, dir: &Path, tokenizer: &Tokenizer) -> Result<Chats, Failure> {
    let (garden, template) = (Garden::new(seed), ChatTemplate::chatml());
    let fits = |chat: &Vec<Message>| Ok(encode_chat(tokenizer, &template, chat, &[])?.ids.len() <= plan.context);
    let write = |name: &str, split, n| {
        let all = garden.chats(split, n);
        let fit = all.par_iter().map(fits).collect::<Result<Vec<bool>, loam_tokenizer::Error>>()?;
        let fitting = all.iter().zip(fit).filter(|(_, fit)| *fit).map(|(chat, _)| json!({"messages": chat}));
        let path = dir.join(name);
        lines(&path, fitting)?;
        Ok::<PathBuf, Failure>(path)
    };
    Ok(Chats {
        train: write("chats.jsonl", Split::Train, plan.chats)?,
        valid: write("valid-chats.jsonl", Split::HeldOut, plan.valid_chats)?,
    })
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
