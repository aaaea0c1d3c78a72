//! Preferences: pairs of answers of which one is better, answers that are wanted or not, and prompts alone.
//!
//! Rows are read from tables in TRL's formats ([`read_pairs`], [`read_rated`], [`read_prompts`]), encoded with a mask of what
//! the model is to learn ([`Encoder`]), and given out in batches ([`AnswerLoader`]).

mod batch;
mod encode;

pub use batch::{AnswerBatch, AnswerLoader, Answers, Whole, micro_batches};
pub use encode::{EncodedAnswer, Encoder};

use loam_chat::Message;
use serde_json::{Map, Value};

use crate::source::{Record, Source};
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

/// The names of a table's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceFields {
    /// What is answered; a pair without it has its prompt in what both answers begin with.
    pub prompt: String,
    /// The better answer.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
    /// By how much, which may be missing.
    pub margin: String,
    /// A single answer.
    pub completion: String,
    /// Whether that is wanted: true or false, 1 or 0.
    pub label: String,
}

impl Default for PreferenceFields {
    fn default() -> Self {
        let name = |name: &str| name.to_string();
        Self {
            prompt: name("prompt"),
            chosen: name("chosen"),
            rejected: name("rejected"),
            margin: name("margin"),
            completion: name("completion"),
            label: name("label"),
        }
    }
}

/// Reads `{prompt?, chosen, rejected, margin?}`.
pub fn read_pairs(sources: &[Source], fields: &PreferenceFields) -> Result<Vec<Preference>> {
    let mut pairs = Vec::new();
    for record in sources.iter().flat_map(Source::records) {
        let record = record?;
        let (chosen, rejected) = (turns(&record, &fields.chosen)?, turns(&record, &fields.rejected)?);
        let margin = match record.has(&fields.margin) {
            true => record.number(&fields.margin)? as f32,
            false => 0.0,
        };
        let (prompt, chosen, rejected) = match record.has(&fields.prompt) {
            true => (turns(&record, &fields.prompt)?, chosen, rejected),
            false => implicit_prompt(&chosen, &rejected)
                .ok_or_else(|| record.refuse("one answer is a text and the other a list of messages"))?,
        };
        if [&prompt, &chosen, &rejected].iter().any(|part| part.is_empty()) {
            return Err(record.refuse("prompt, chosen and rejected need some text each"));
        }
        if chosen == rejected {
            return Err(record.refuse("chosen and rejected are the same answer"));
        }
        pairs.push(Preference { prompt, chosen, rejected, margin });
    }
    Ok(pairs)
}

/// Reads `{prompt, completion, label}`.
pub fn read_rated(sources: &[Source], fields: &PreferenceFields) -> Result<Vec<Rated>> {
    let mut rated = Vec::new();
    for record in sources.iter().flat_map(Source::records) {
        let record = record?;
        let wanted = match record.name(&fields.label)?.to_lowercase().as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            other => return Err(record.refuse(format!("'{}' should be true or false but is {other}", fields.label))),
        };
        let (prompt, completion) = (turns(&record, &fields.prompt)?, turns(&record, &fields.completion)?);
        rated.push(Rated { prompt, completion, wanted });
    }
    Ok(rated)
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

/// Reads `{prompt, ...}`.
pub fn read_prompts(sources: &[Source], fields: &PreferenceFields) -> Result<Vec<Prompt>> {
    let read = |record: Result<Record>| {
        let record = record?;
        Ok(Prompt { prompt: turns(&record, &fields.prompt)?, row: record.values().clone() })
    };
    sources.iter().flat_map(Source::records).map(read).collect()
}

/// A field that is a text, a list of messages, or such a list as JSON in a text (as tables have it).
fn turns(record: &Record, field: &str) -> Result<Turns> {
    let messages = |value: &Value| serde_json::from_value::<Vec<Message>>(value.clone());
    match record.value(field)? {
        value @ Value::Array(_) => match messages(value) {
            Ok(list) => Ok(Turns::Messages(list)),
            Err(error) => Err(record.refuse(format!("'{field}' is no list of messages: {error}"))),
        },
        Value::String(text) => {
            let list = text.starts_with("[{").then(|| serde_json::from_str::<Vec<Message>>(text).ok()).flatten();
            Ok(list.map_or_else(|| Turns::Text(text.clone()), Turns::Messages))
        }
        _ => Err(record.refuse(format!("'{field}' should be a text or a list of messages"))),
    }
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
