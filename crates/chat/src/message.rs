//! Messages of a conversation, in the JSON of the OpenAI API.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation. The newer name `developer` is read as this one.
    #[serde(alias = "developer")]
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The answer of a tool that the model called.
    Tool,
}

impl Role {
    /// The name used in JSON and in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A piece of a message's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Text.
    Text {
        /// The text itself.
        text: String,
    },
    /// An image by reference.
    #[serde(rename = "image_url")]
    Image {
        /// Where the image is.
        image_url: ImageUrl,
    },
}

/// Where an image is: a web address, a file, or a `data:` address that contains it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUrl {
    /// The address.
    pub url: String,
}

impl Part {
    /// A piece of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

/// The model's wish to have a function called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Ties the tool's answer to the call.
    #[serde(default)]
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function and what it is called with.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".into()
}

/// A function's name and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function.
    pub name: String,
    /// The arguments: JSON in a string, as the API sends it, or the object itself, as training data has it. Kept as
    /// it came, because chat templates print it.
    #[serde(default)]
    pub arguments: Value,
}

impl ToolCall {
    /// A call with arguments as a JSON value.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: Value) -> Self {
        Self { id: id.into(), kind: function(), function: FunctionCall { name: name.into(), arguments } }
    }

    /// The arguments as a JSON value, whichever of the two forms they came in; `None` if the string is no JSON.
    pub fn parsed_arguments(&self) -> Option<Value> {
        match &self.function.arguments {
            Value::String(text) => serde_json::from_str(text).ok(),
            value => Some(value.clone()),
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. In JSON a string, `null`, or a list of parts; content that is one text is written as a string.
    #[serde(default, deserialize_with = "read_content", serialize_with = "write_content")]
    pub content: Vec<Part>,
    /// The calls that an assistant makes.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "read_or_null")]
    pub tool_calls: Vec<ToolCall>,
    /// For a tool's answer: the call it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// A name for the speaker or the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message of one text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, content: vec![Part::text(text)], tool_calls: Vec::new(), tool_call_id: None, name: None }
    }

    /// A system message.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// A user's message.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// An assistant's message.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text)
    }

    /// A tool's answer to a call.
    pub fn tool(call_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { tool_call_id: Some(call_id.into()), ..Self::new(Role::Tool, text) }
    }

    /// All text of the message; images are left out.
    pub fn text(&self) -> String {
        let texts = self.content.iter().map(|part| if let Part::Text { text } = part { text.as_str() } else { "" });
        texts.collect()
    }
}

/// Two answers to the same conversation, one better than the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preference {
    /// The conversation so far; in JSON also a plain string, which is a user's message.
    #[serde(deserialize_with = "read_prompt")]
    pub prompt: Vec<Message>,
    /// The better continuation; in JSON also a plain string, which is an assistant's message.
    #[serde(deserialize_with = "read_answer")]
    pub chosen: Vec<Message>,
    /// The worse continuation.
    #[serde(deserialize_with = "read_answer")]
    pub rejected: Vec<Message>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOr<T> {
    Text(String),
    List(Vec<T>),
}

fn read_content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Part>, D::Error> {
    Ok(match Option::<TextOr<Part>>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(TextOr::Text(text)) => vec![Part::text(text)],
        Some(TextOr::List(parts)) => parts,
    })
}

fn write_content<S: Serializer>(content: &[Part], serializer: S) -> Result<S::Ok, S::Error> {
    match content {
        [] => serializer.serialize_none(),
        [Part::Text { text }] => serializer.serialize_str(text),
        parts => parts.serialize(serializer),
    }
}

fn read_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ToolCall>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn read_messages<'de, D: Deserializer<'de>>(deserializer: D, role: Role) -> Result<Vec<Message>, D::Error> {
    Ok(match TextOr::<Message>::deserialize(deserializer)? {
        TextOr::Text(text) => vec![Message::new(role, text)],
        TextOr::List(messages) => messages,
    })
}

fn read_prompt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Message>, D::Error> {
    read_messages(deserializer, Role::User)
}

fn read_answer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Message>, D::Error> {
    read_messages(deserializer, Role::Assistant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn content_may_be_a_string_a_list_or_null() {
        let message = |content: Value| from_value::<Message>(json!({"role": "user", "content": content})).unwrap();
        assert_eq!(message(json!("hi")), Message::user("hi"));
        assert_eq!(message(json!([{"type": "text", "text": "hi"}])), Message::user("hi"));
        assert!(message(Value::Null).content.is_empty());
        let mixed = message(json!([
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "x.png"}},
            {"type": "text", "text": "b"}
        ]));
        assert_eq!((mixed.content.len(), mixed.text()), (3, "ab".to_owned()));
        assert_eq!(from_value::<Message>(to_value(&mixed).unwrap()).unwrap(), mixed);
    }

    #[test]
    fn a_plain_message_is_written_the_way_the_api_writes_it() {
        assert_eq!(to_value(Message::system("s")).unwrap(), json!({"role": "system", "content": "s"}));
    }

    #[test]
    fn a_tool_call_and_its_answer_survive_a_round_trip() {
        let call = json!({
            "role": "assistant", "content": null,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}}]
        });
        let message: Message = from_value(call.clone()).unwrap();
        assert_eq!(message.tool_calls[0].parsed_arguments(), Some(json!({"a": 1})));
        assert_eq!(to_value(&message).unwrap(), call);
        let direct = ToolCall::new("c1", "add", json!({"a": 1}));
        assert_eq!(direct.parsed_arguments(), message.tool_calls[0].parsed_arguments());
        let answer = Message::tool("c1", "3");
        assert_eq!(to_value(&answer).unwrap(), json!({"role": "tool", "content": "3", "tool_call_id": "c1"}));
    }

    #[test]
    fn unknown_roles_are_refused_and_developer_means_system() {
        assert!(from_value::<Role>(json!("robot")).is_err());
        assert_eq!(from_value::<Role>(json!("developer")).unwrap(), Role::System);
    }

    #[test]
    fn a_preference_reads_strings_and_message_lists() {
        let plain: Preference = from_value(json!({"prompt": "q", "chosen": "good", "rejected": "bad"})).unwrap();
        let listed: Preference = from_value(json!({
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}]
        }))
        .unwrap();
        assert_eq!(plain, listed);
    }
}
