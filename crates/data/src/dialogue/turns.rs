//! Values of rows as turns of a conversation.

use std::borrow::Cow;

use loam_chat::{Message, Role, ToolCall};
use serde_json::Value;

use super::layout::Tags;
use crate::Result;
use crate::preference::Turns;
use crate::source::Record;

/// A value, or what is in it where it is JSON in a text (as tables have it).
pub(super) fn value_as_json(value: &Value) -> Cow<'_, Value> {
    let text = value.as_str().filter(|text| text.trim_start().starts_with(['[', '{']));
    match text.and_then(|text| serde_json::from_str(text).ok()) {
        Some(inner) => Cow::Owned(inner),
        None => Cow::Borrowed(value),
    }
}

/// A field that is a text, a message, or a list of messages, in either style; or one of these as JSON in a text.
pub(crate) fn turns_of(row: &Record, field: &str, tags: &Tags) -> Result<Turns> {
    let value = row.value(field)?;
    let is_turns = |value: &Value| match value {
        Value::Array(list) => list.first().is_none_or(Value::is_object),
        other => other.get("content").is_some() || other.get(&tags.content).is_some(),
    };
    // A text that merely looks like JSON is a text.
    let inner = value_as_json(value);
    if let (Value::String(text), true) = (value, matches!(inner, Cow::Borrowed(_)) || !is_turns(&inner)) {
        return Ok(Turns::Text(text.clone()));
    }
    let list = match inner.as_ref() {
        Value::Array(list) => list.clone(),
        object @ Value::Object(_) => vec![object.clone()],
        _ => return Err(row.refuse(format!("'{field}' should be a text or a list of messages"))),
    };
    let messages = list.iter().map(|entry| either_style(entry, tags)).collect::<Result<Vec<_>, String>>();
    messages.map(Turns::Messages).map_err(|reason| row.refuse(format!("'{field}' is no list of messages: {reason}")))
}

fn either_style(entry: &Value, tags: &Tags) -> Result<Message, String> {
    match entry.get(&tags.role).is_some() && entry.get("role").is_none() {
        true => sharegpt_message(entry, tags),
        false => serde_json::from_value(entry.clone()).map_err(|error| error.to_string()),
    }
}

/// A list of `{role, content}`.
pub(super) fn message_list(row: &Record, field: &str) -> Result<Vec<Message>> {
    let value = value_as_json(row.value(field)?);
    let read = serde_json::from_value::<Vec<Message>>(value.into_owned());
    read.map_err(|error| row.refuse(format!("'{field}' is no list of {{role, content}}: {error}")))
}

/// A list of `{from, value}`.
pub(super) fn sharegpt_list(row: &Record, field: &str, tags: &Tags) -> Result<Vec<Message>> {
    let value = value_as_json(row.value(field)?);
    let Value::Array(list) = value.as_ref() else {
        return Err(row.refuse(format!("'{field}' should be a list of {{{}, {}}}", tags.role, tags.content)));
    };
    let message = |(place, entry): (usize, &Value)| {
        sharegpt_message(entry, tags).map_err(|reason| row.refuse(format!("'{field}', turn {}: {reason}", place + 1)))
    };
    list.iter().enumerate().map(message).collect()
}

fn sharegpt_message(entry: &Value, tags: &Tags) -> Result<Message, String> {
    let text = |key: &str| match entry.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("'{key}' should be a text")),
        None => Err(format!("there is no '{key}'")),
    };
    let (speaker, said) = (text(&tags.role)?, text(&tags.content)?);
    let is = |tag: &str, others: &[&str]| speaker == tag || others.contains(&speaker);
    if is(&tags.function, &[]) {
        return call(said);
    }
    let role = if is(&tags.user, &["user"]) {
        Role::User
    } else if is(&tags.assistant, &["assistant", "chatgpt", "bing", "bard", "model"]) {
        Role::Assistant
    } else if is(&tags.observation, &["tool"]) {
        Role::Tool
    } else if is(&tags.system, &[]) {
        Role::System
    } else {
        let known = [&tags.user, &tags.assistant, &tags.system, &tags.observation, &tags.function];
        let known: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
        return Err(format!("no one is called '{speaker}' (known are {})", known.join(", ")));
    };
    Ok(Message::new(role, said))
}

/// The assistant's call of a function, or of several.
fn call(said: &str) -> Result<Message, String> {
    let value: Value = serde_json::from_str(said).map_err(|error| format!("a function call is no JSON: {error}"))?;
    let calls = match value {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    let mut message = Message { content: Vec::new(), ..Message::assistant("") };
    for (index, call) in calls.iter().enumerate() {
        let name = call.get("name").and_then(Value::as_str).ok_or("a function call has no 'name'")?;
        let arguments = call.get("arguments").cloned().unwrap_or_default();
        message.tool_calls.push(ToolCall::new(format!("call_{index}"), name, arguments));
    }
    Ok(message)
}

/// Pairs of texts: `[[question, answer], ..]`; none where the field is missing or empty.
pub(super) fn text_pairs(row: &Record, field: &str) -> Result<Vec<(String, String)>> {
    let Some(value) = row.values().get(field).filter(|value| !value.is_null() && *value != "") else {
        return Ok(Vec::new());
    };
    let pairs = serde_json::from_value(value_as_json(value).into_owned());
    pairs.map_err(|_| row.refuse(format!("'{field}' should be a list of pairs of a question and its answer")))
}
