//! How the rows of a table are to be read, and how that is found out.

use std::collections::BTreeMap;

use loam_chat::{Message, Role};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Dialogue;
use super::turns::{message_list, sharegpt_list, text_pairs, turns_of, value_as_json};
use crate::Result;
use crate::preference::Turns;
use crate::source::Record;

/// What a row looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `messages`: a list of `{role, content}`, as in the API of OpenAI, and `tools` beside it.
    Messages,
    /// `conversations`: a list of `{from, value}`, with `system` and `tools` beside it.
    Sharegpt,
    /// `instruction`, `input`, `output`, with `system` and `history`.
    Alpaca,
    /// `prompt` with `completion`: texts, or lists of messages.
    PromptCompletion,
}

impl Format {
    /// The name that recipes use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Sharegpt => "sharegpt",
            Self::Alpaca => "alpaca",
            Self::PromptCompletion => "prompt_completion",
        }
    }
}

/// How a list in ShareGPT's style names keys and speakers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    /// The key of the speaker.
    pub role: String,
    /// The key of what is said.
    pub content: String,
    /// The user's name.
    pub user: String,
    /// The assistant's.
    pub assistant: String,
    /// A tool's.
    pub observation: String,
    /// The assistant's, where it calls a function.
    pub function: String,
    /// The system's.
    pub system: String,
}

impl Default for Tags {
    fn default() -> Self {
        let name = |name: &str| name.to_string();
        Self {
            role: name("from"),
            content: name("value"),
            user: name("human"),
            assistant: name("gpt"),
            observation: name("observation"),
            function: name("function_call"),
            system: name("system"),
        }
    }
}

/// How rows are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// What they look like; `None` is found out from the first row of a file.
    pub format: Option<Format>,
    /// Names of fields where they differ from the format's own.
    pub columns: BTreeMap<String, String>,
    /// Names of keys and speakers in ShareGPT's style.
    pub tags: Tags,
}

impl Layout {
    /// The field that is called `name` in its format.
    pub fn column<'a>(&'a self, name: &'a str) -> &'a str {
        self.columns.get(name).map_or(name, String::as_str)
    }

    /// The same, with one field renamed.
    #[must_use]
    pub fn with(mut self, name: &str, column: &str) -> Self {
        self.columns.insert(name.into(), column.into());
        self
    }

    /// The value of a field that may be missing, empty or null.
    fn optional<'a>(&self, row: &'a Record, name: &str) -> Option<&'a Value> {
        let value = row.values().get(self.column(name))?;
        let is_empty = value.is_null() || value.as_str().is_some_and(str::is_empty);
        (!is_empty).then_some(value)
    }

    /// The layout with a format: the one it has, or the one that the fields of a row fit.
    pub fn detected(&self, row: &Record) -> Result<Self> {
        let has = |name: &str| row.has(self.column(name));
        let is_set = |name: &str| self.columns.contains_key(name);
        if self.format.is_some() {
            return Ok(self.clone());
        }
        let found = |format| Ok(Self { format: Some(format), ..self.clone() });
        // A list says by its own keys what it is, whatever it is called.
        for name in ["messages", "conversations"] {
            if let Some(list) = row.values().get(self.column(name)) {
                let list = value_as_json(list);
                let is_openai = list.get(0).is_some_and(|first| first.get("role").is_some());
                let own = if is_openai { "messages" } else { "conversations" };
                let layout = self.clone().with(own, self.column(name));
                let format = if is_openai { Format::Messages } else { Format::Sharegpt };
                return Ok(Self { format: Some(format), ..layout });
            }
        }
        if has("instruction") {
            return found(Format::Alpaca);
        }
        if has("prompt") || (has("chosen") && has("rejected")) {
            return found(Format::PromptCompletion);
        }
        if !is_set("prompt") && row.has("question") && row.has("answer") {
            let layout = self.clone().with("prompt", "question");
            let layout = if is_set("completion") { layout } else { layout.with("completion", "answer") };
            return Ok(Self { format: Some(Format::PromptCompletion), ..layout });
        }
        let names: Vec<&str> = row.values().keys().map(String::as_str).collect();
        Err(row.refuse(format!(
            "the fields {} fit no known format: `messages`, `conversations` (ShareGPT), `instruction` with `output` (Alpaca), \
             `prompt` with `completion`, `chosen` with `rejected`; say which field is which in data.fields",
            names.join(", ")
        )))
    }

    /// A row as a conversation to learn from.
    pub fn dialogue(&self, row: &Record) -> Result<Dialogue> {
        let tools = self.tools(row)?;
        let (prompt, answer) = match self.format {
            Some(Format::PromptCompletion) | None => (self.prompt(row)?, self.completion(row)?),
            Some(Format::Alpaca) => {
                let mut messages = self.alpaca(row)?;
                messages.push(self.alpaca_output(row)?);
                (Turns::Messages(Vec::new()), Turns::Messages(messages))
            }
            Some(Format::Messages | Format::Sharegpt) => {
                (Turns::Messages(Vec::new()), Turns::Messages(self.list(row)?))
            }
        };
        Ok(Dialogue { prompt, answer, tools })
    }

    /// What is to be answered: everything before the last turn of the assistant.
    pub fn prompt(&self, row: &Record) -> Result<Turns> {
        let messages = match self.format {
            Some(Format::PromptCompletion) | None => return turns_of(row, self.column("prompt"), &self.tags),
            Some(Format::Alpaca) => self.alpaca(row)?,
            Some(Format::Messages | Format::Sharegpt) => {
                let mut messages = self.list(row)?;
                messages.truncate(last_answer(&messages));
                messages
            }
        };
        Ok(Turns::Messages(messages))
    }

    /// What follows [`Layout::prompt`].
    pub fn completion(&self, row: &Record) -> Result<Turns> {
        Ok(match self.format {
            Some(Format::PromptCompletion) | None => self.answer(row, "completion")?,
            Some(Format::Alpaca) => Turns::Messages(vec![self.alpaca_output(row)?]),
            Some(Format::Messages | Format::Sharegpt) => {
                let mut messages = self.list(row)?;
                Turns::Messages(messages.split_off(last_answer(&messages)))
            }
        })
    }

    /// An answer: a text, a message, or a list of messages.
    pub fn answer(&self, row: &Record, name: &str) -> Result<Turns> {
        let answer = turns_of(row, self.column(name), &self.tags)?;
        // Beside messages a text is what the assistant says.
        Ok(match (self.format, answer) {
            (Some(Format::PromptCompletion) | None, answer) | (_, answer @ Turns::Messages(_)) => answer,
            (_, Turns::Text(text)) => Turns::Messages(vec![Message::assistant(text)]),
        })
    }

    fn list(&self, row: &Record) -> Result<Vec<Message>> {
        let mut messages = match self.format {
            Some(Format::Messages) => message_list(row, self.column("messages"))?,
            _ => sharegpt_list(row, self.column("conversations"), &self.tags)?,
        };
        let begins = messages.first().is_some_and(|first| first.role == Role::System);
        if let Some(system) = self.optional(row, "system").and_then(Value::as_str).filter(|_| !begins) {
            messages.insert(0, Message::system(system));
        }
        Ok(messages)
    }

    /// Everything before the answer. The input stands below the instruction.
    fn alpaca(&self, row: &Record) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        if let Some(system) = self.optional(row, "system").and_then(Value::as_str) {
            messages.push(Message::system(system));
        }
        for (question, answer) in text_pairs(row, self.column("history"))? {
            messages.extend([Message::user(question), Message::assistant(answer)]);
        }
        let instruction = row.text(self.column("instruction"))?;
        let said = match self.optional(row, "input").and_then(Value::as_str) {
            Some(input) => format!("{instruction}\n{input}"),
            None => instruction,
        };
        messages.push(Message::user(said));
        Ok(messages)
    }

    fn alpaca_output(&self, row: &Record) -> Result<Message> {
        Ok(Message::assistant(row.text(self.column("output"))?))
    }

    fn tools(&self, row: &Record) -> Result<Vec<Value>> {
        let Some(value) = self.optional(row, "tools") else { return Ok(Vec::new()) };
        match value_as_json(value).into_owned() {
            Value::Array(tools) => Ok(tools),
            _ => Err(row.refuse(format!("'{}' should be a list of functions", self.column("tools")))),
        }
    }
}

/// Where the assistant's turns at the end begin.
fn last_answer(messages: &[Message]) -> usize {
    messages.iter().rposition(|message| message.role != Role::Assistant).map_or(0, |last| last + 1)
}
