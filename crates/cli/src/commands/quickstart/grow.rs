//! The garden as files of one line per document, conversation or question.
//!
//! Conversations come after the tokenizer: only those that fit into the model's context are of use, and how long one is
//! depends on the tokenizer (one made for a user's text may need several tokens for a Chinese character).

use super::align::topic_question;
use super::plan::Plan;
use crate::failure::Failure;
use loam_chat::Message;
use loam_data::garden::{Garden, Question, Split, TopicSentence};
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

/// Files of alignment, each to train on and held out.
pub struct Lessons {
    /// Two answers to a question, the better one first.
    pub pairs: (PathBuf, PathBuf),
    /// Questions with what their scorer needs.
    pub prompts: (PathBuf, PathBuf),
    /// Conversations of the second task.
    pub topics: (PathBuf, PathBuf),
    /// Held-out sentences of the second task.
    pub asked: Vec<TopicSentence>,
}

/// Writes what alignment learns from.
pub fn lessons(seed: u64, plan: &Plan, dir: &Path) -> Result<Lessons, Error> {
    let (garden, plan) = (Garden::new(seed), &plan.align);
    let files = |name: &str| (dir.join(format!("{name}.jsonl")), dir.join(format!("valid-{name}.jsonl")));
    let asked = garden.topics(Split::HeldOut, plan.valid_topics);
    let written = Lessons { pairs: files("preferences"), prompts: files("prompts"), topics: files("topics"), asked };
    let talk = |row: &TopicSentence| {
        let answer = Message::assistant(format!("{}.", row.label));
        json!({"messages": [Message::user(topic_question(row)), answer]})
    };
    for (path, split, n) in
        [(&written.pairs.0, Split::Train, plan.pairs), (&written.pairs.1, Split::HeldOut, plan.valid_pairs)]
    {
        lines(path, garden.preferences(split, n).iter())?;
    }
    for (path, split, n) in
        [(&written.prompts.0, Split::Train, plan.prompts), (&written.prompts.1, Split::HeldOut, plan.valid_prompts)]
    {
        lines(path, garden.questions(split, n).iter())?;
    }
    lines(&written.topics.0, garden.topics(Split::Train, plan.topics).iter().map(talk))?;
    lines(&written.topics.1, written.asked.iter().map(talk))?;
    Ok(written)
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
