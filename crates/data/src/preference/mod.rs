//! Preferences: pairs of answers of which one is better, answers that are wanted or not, and prompts alone.
//!
//! Rows are read from tables in TRL's formats ([`read_pairs`], [`read_rated`], [`read_prompts`]), encoded with a mask of what
//! the model is to learn ([`Encoder`]), and given out in batches ([`AnswerLoader`]).

mod batch;
mod encode;

pub use batch::{AnswerBatch, AnswerLoader, Answers, Whole, micro_batches};
pub use encode::{EncodedAnswer, Encoder};

use loam_chat::{Message, Role};
use serde_json::{Map, Value};

use crate::dialogue::{Format, Table};
use crate::source::Record;
use crate::{Error, Result};

/// A text, or turns of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turns {
    /// A text as it stands.
    Text(String),
    /// Messages.
    Messages(Vec<Message>),
}

impl Turns {
    /// What is said last.
    pub fn last_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(messages) => messages.last().map(Message::text).unwrap_or_default(),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Messages(messages) => messages.is_empty(),
        }
    }
}

/// Two answers to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// What is answered.
    pub prompt: Turns,
    /// The better answer.
    pub chosen: Turns,
    /// The worse one.
    pub rejected: Turns,
    /// By how much, where that is known.
    pub margin: f32,
}

/// An answer, and whether it is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Rated {
    /// What is answered.
    pub prompt: Turns,
    /// The answer.
    pub completion: Turns,
    /// Whether it is wanted.
    pub wanted: bool,
}

/// Something to answer, with everything else that its row says (a right answer, for a scorer).
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// What is to be answered.
    pub prompt: Turns,
    /// The row.
    pub row: Map<String, Value>,
}

/// Reads `{prompt?, chosen, rejected, margin?}`, where the prompt may be in any layout. A pair without one has it in what both
/// answers begin with.
pub fn read_pairs(tables: &[Table]) -> Result<Vec<Preference>> {
    let read = |table: &Table, record: &Record| {
        let layout = table.layout();
        let (chosen, rejected) = (layout.answer(record, "chosen")?, layout.answer(record, "rejected")?);
        let margin = match record.has(layout.column("margin")) {
            true => record.number(layout.column("margin"))? as f32,
            false => 0.0,
        };
        let has_prompt = layout.format != Some(Format::PromptCompletion) || record.has(layout.column("prompt"));
        let repeats = begins_with_prompt(&chosen) && begins_with_prompt(&rejected);
        let (prompt, chosen, rejected) = match has_prompt && !repeats {
            true => (layout.prompt(record)?, chosen, rejected),
            false => implicit_prompt(&chosen, &rejected)
                .ok_or_else(|| record.refuse("one answer is a text and the other a list of messages"))?,
        };
        if [&prompt, &chosen, &rejected].iter().any(|part| part.is_empty()) {
            return Err(record.refuse("prompt, chosen and rejected need some text each"));
        }
        if chosen == rejected {
            return Err(record.refuse("chosen and rejected are the same answer"));
        }
        Ok(Preference { prompt, chosen, rejected, margin })
    };
    rows(tables, read)
}

/// Whether an answer tells what was asked before, as some data sets have it beside a prompt of its own.
fn begins_with_prompt(answer: &Turns) -> bool {
    matches!(answer, Turns::Messages(list) if list.first().is_some_and(|first| first.role != Role::Assistant))
}

fn rows<T>(tables: &[Table], read: impl Fn(&Table, &Record) -> Result<T>) -> Result<Vec<T>> {
    let of_table = |table: &Table| table.records().map(|record| read(table, &record?)).collect::<Result<Vec<T>>>();
    Ok(tables.iter().map(of_table).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Reads `{prompt, completion, label}`, where prompt and completion may be in any layout.
pub fn read_rated(tables: &[Table]) -> Result<Vec<Rated>> {
    rows(tables, |table, record| {
        let (layout, label) = (table.layout(), table.layout().column("label"));
        let wanted = match record.name(label)?.to_lowercase().as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            other => return Err(record.refuse(format!("'{label}' should be true or false but is {other}"))),
        };
        Ok(Rated { prompt: layout.prompt(record)?, completion: layout.completion(record)?, wanted })
    })
}

/// Every pair as a wanted and an unwanted answer.
pub fn unpaired(pairs: &[Preference]) -> Vec<Rated> {
    let rate = |pair: &Preference, completion: &Turns, wanted| Rated {
        prompt: pair.prompt.clone(),
        completion: completion.clone(),
        wanted,
    };
    pairs.iter().flat_map(|pair| [rate(pair, &pair.chosen, true), rate(pair, &pair.rejected, false)]).collect()
}

/// Reads `{prompt, ...}`, where the prompt may be in any layout.
pub fn read_prompts(tables: &[Table]) -> Result<Vec<Prompt>> {
    rows(tables, |table, record| Ok(Prompt { prompt: table.layout().prompt(record)?, row: record.values().clone() }))
}

/// What two answers begin with, and the rest of each: TRL's `extract_prompt`. A space belongs to what follows it. `None` where
/// they are of different kinds.
pub fn implicit_prompt(chosen: &Turns, rejected: &Turns) -> Option<(Turns, Turns, Turns)> {
    match (chosen, rejected) {
        (Turns::Text(a), Turns::Text(b)) => {
            let same = a.char_indices().zip(b.chars()).take_while(|((_, x), y)| x == y);
            let end = same.last().map_or(0, |((at, x), _)| at + x.len_utf8());
            let end = if a[..end].ends_with(' ') { end - 1 } else { end };
            let text = |text: &str| Turns::Text(text.to_owned());
            Some((text(&a[..end]), text(&a[end..]), text(&b[end..])))
        }
        (Turns::Messages(a), Turns::Messages(b)) => {
            let end = a.iter().zip(b).take_while(|(x, y)| x == y).count();
            let part = |messages: &[Message]| Turns::Messages(messages.to_vec());
            Some((part(&a[..end]), part(&a[end..]), part(&b[end..])))
        }
        _ => None,
    }
}

/// An answer that cannot be trained on.
fn refused(number: usize, problem: String, hint: &'static str) -> Error {
    Error::Answer { number: number + 1, problem, hint }
}
