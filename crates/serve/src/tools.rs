//! Tools: how a model is told of them, and how its calls are made to have the form that they must have.
//!
//! A call is written as Hermes and Qwen models learn it, `<tool_call>\n{"name": .., "arguments": ..}\n</tool_call>`, or,
//! where the chat template is one of Llama 3, as the bare object with `parameters`. A grammar leaves no other way: once a
//! call begins, it names one of the tools and its arguments obey the tool's schema. So reading calls is no guessing.

use loam_chat::{Message, Role};
use loam_infer::Grammar;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::Fields;
use crate::error::ApiError;
use crate::params::Wanted;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "\n</tool_call>";

/// A function that may be called.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub name: String,
    pub description: Option<String>,
    pub parameters: Value,
}

impl Tool {
    /// As chat templates see it.
    fn value(&self) -> Value {
        let mut function = json!({"name": self.name, "parameters": self.parameters});
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        json!({"type": "function", "function": function})
    }
}

/// Whether calls may or must come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Auto,
    Required,
}

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Between markers, and the template tells of the tools.
    Marked,
    /// The same, but the template knows of no tools: the system message tells.
    Told,
    /// A bare object (Llama 3).
    Bare,
}

impl Format {
    /// What a chat template was made for.
    pub fn of_template(source: &str) -> Self {
        if source.contains("<|python_tag|>") || source.contains("\"parameters\": dictionary of argument name") {
            Self::Bare
        } else if source.contains("tools") {
            Self::Marked
        } else {
            Self::Told
        }
    }

    fn arguments(self) -> &'static str {
        if self == Self::Bare { "parameters" } else { "arguments" }
    }
}

/// The tools of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tools {
    pub tools: Vec<Tool>,
    pub choice: Choice,
    pub parallel: bool,
    pub format: Format,
}

#[derive(Deserialize)]
struct GivenTool {
    r#type: String,
    function: Option<GivenFunction>,
}

#[derive(Deserialize)]
struct GivenFunction {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum GivenChoice {
    Word(String),
    Named { function: GivenName },
}

#[derive(Deserialize)]
struct GivenName {
    name: String,
}

/// What any object may be passed to.
pub(crate) fn no_parameters() -> Value {
    json!({"type": "object", "properties": {}, "additionalProperties": false})
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    pub fn take(fields: &mut Fields, format: Format) -> Result<Option<Self>, ApiError> {
        fields.refuse(&["functions", "function_call"])?;
        let given: Vec<GivenTool> = fields.take("tools")?.unwrap_or_default();
        let choice: Option<GivenChoice> = fields.take("tool_choice")?;
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        let mut tools = Vec::new();
        for (index, tool) in given.into_iter().enumerate() {
            let place = format!("tools[{index}]");
            let function = tool.function.filter(|_| tool.r#type == "function");
            let function = function
                .ok_or_else(|| ApiError::bad(format!("{place}.type"), "only tools of type `function` are known"))?;
            let parameters = function.parameters.unwrap_or_else(no_parameters);
            tools.push(Tool { name: function.name, description: function.description, parameters });
        }
        let (choice, name) = match choice {
            None => (Choice::Auto, None),
            Some(GivenChoice::Named { function }) => (Choice::Required, Some(function.name)),
            Some(GivenChoice::Word(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => (Choice::Auto, None),
                "required" => (Choice::Required, None),
                other => {
                    let message = format!("`{other}`: expected none, auto, required, or a function by name");
                    return Err(ApiError::bad("tool_choice", message));
                }
            },
        };
        Self::new(tools, choice, name.as_deref(), parallel, format)
    }

    /// Tools of which, with `name`, this one alone may be called.
    pub fn new(
        mut tools: Vec<Tool>,
        choice: Choice,
        name: Option<&str>,
        parallel: bool,
        format: Format,
    ) -> Result<Option<Self>, ApiError> {
        if tools.is_empty() {
            return match choice {
                Choice::Auto => Ok(None),
                Choice::Required => Err(ApiError::bad("tool_choice", "there are no tools to choose from")),
            };
        }
        for (index, tool) in tools.iter().enumerate() {
            let place = |part: &str| format!("tools[{index}].function.{part}");
            let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
            if tool.name.is_empty() || tool.name.len() > 128 || !tool.name.chars().all(is_plain) {
                let message = "a name has 1 to 128 letters, digits, `_`, `-`, `.`";
                return Err(ApiError::bad(place("name"), message));
            }
            if tools[..index].iter().any(|other| other.name == tool.name) {
                return Err(ApiError::bad(place("name"), format!("`{}` is there twice", tool.name)));
            }
        }
        if let Some(name) = name {
            tools.retain(|tool| tool.name == name);
            if tools.is_empty() {
                return Err(ApiError::bad("tool_choice", format!("there is no tool `{name}`")));
            }
        }
        Ok(Some(Self { tools, choice, parallel, format }))
    }

    /// The tools as the chat template is given them, and the conversation with what the template does not tell.
    pub fn tell(&self, messages: &mut Vec<Message>) -> Vec<Value> {
        let values: Vec<Value> = self.tools.iter().map(Tool::value).collect();
        if self.format != Format::Told {
            return values;
        }
        let mut text = String::from("You may call these functions:\n");
        for value in &values {
            text.push_str(&format!("{}\n", value["function"]));
        }
        text.push_str("To call one, answer with <tool_call>\n{\"name\": NAME, \"arguments\": OBJECT}\n</tool_call>");
        match messages.first_mut().filter(|message| message.role == Role::System) {
            Some(system) => system.content = vec![loam_chat::Part::text(format!("{}\n\n{text}", system.text()))],
            None => messages.insert(0, Message::system(text)),
        }
        Vec::new()
    }

    /// What leaves no other way of writing calls; text beside them, or instead, obeys `body`.
    pub fn grammar(&self, body: Option<&Wanted>) -> Result<Grammar, ApiError> {
        let mut schemas = Vec::new();
        let mut lark = String::from("%llguidance {\"no_forcing\": true}\n");
        let mut names = Vec::new();
        for (index, tool) in self.tools.iter().enumerate() {
            let head = json!({"name": tool.name}).to_string();
            let head = head.trim_end_matches('}').replace("\":\"", "\": \"");
            let head = format!("{head}, \"{}\": ", self.format.arguments());
            lark.push_str(&format!("call_{index}: {} arguments_{index} \"}}\"\n", quoted(&head)));
            schemas.push((format!("arguments_{index}"), tool.parameters.clone()));
            names.push(format!("call_{index}"));
        }
        lark.push_str(&format!("object: {}\n", names.join(" | ")));
        let (first, next) = match self.format {
            Format::Bare => ("object".to_owned(), String::new()),
            _ => {
                let inside = format!("\"\\n\" object {}", quoted(CLOSE));
                (format!("{} {inside}", quoted(OPEN)), format!("{} {inside}", quoted(&format!("\n{OPEN}"))))
            }
        };
        let calls = match (self.parallel, next.is_empty()) {
            (true, false) => format!("{first} ({next})*"),
            _ => first,
        };
        let free = match (self.choice, body, self.format) {
            (Choice::Required, ..) => String::new(),
            (Choice::Auto, None, Format::Bare) => {
                // Text that begins as a call does is a call.
                lark.push_str("TEXT: /[^{](.|\\n)*/\n");
                " | TEXT | \"\"".to_owned()
            }
            (Choice::Auto, None, _) => {
                lark.push_str(&format!("opened[lazy]: /(.|\\n)*{OPEN}/\nTEXT: /(.|\\n)*/\n"));
                let inside = format!("\"\\n\" object {}", quoted(CLOSE));
                let more = if self.parallel { format!(" ({next})*") } else { String::new() };
                lark.push_str(&format!("start: TEXT | opened {inside}{more}\n"));
                return Ok(Grammar::LarkWithJson(lark, schemas));
            }
            (Choice::Auto, Some(wanted), _) => match &wanted.grammar {
                Grammar::JsonSchema(schema) => {
                    schemas.push(("body".into(), schema.clone()));
                    " | body".to_owned()
                }
                Grammar::JsonObject => {
                    schemas.push(("body".into(), json!({"type": "object"})));
                    " | body".to_owned()
                }
                _ => {
                    let message =
                        format!("`{}` cannot be combined with tools that may or may not be called", wanted.param);
                    return Err(ApiError::bad(wanted.param.as_str(), message));
                }
            },
        };
        lark.push_str(&format!("start: {calls}{free}\n"));
        Ok(Grammar::LarkWithJson(lark, schemas))
    }
}

/// A string of Lark.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text for the reader.
    Text(String),
    /// A call begins; calls are counted from 0.
    Call { index: usize, name: String },
    /// Some more of a call's arguments, as JSON text.
    Arguments { index: usize, text: String },
}

/// Takes an answer apart as it comes. The grammar has made sure of its form.
#[derive(Debug)]
pub(crate) struct CallReader {
    format: Format,
    is_required: bool,
    held: String,
    at: At,
    calls: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum At {
    /// Before, between or after calls.
    Text,
    /// The name comes.
    Name,
    /// The arguments come.
    Arguments,
    /// After the call of a format that has no more.
    End,
}

impl CallReader {
    pub fn new(tools: &Tools) -> Self {
        let is_bare = tools.format == Format::Bare;
        let is_required = tools.choice == Choice::Required;
        Self { format: tools.format, is_required: is_required && is_bare, held: String::new(), at: At::Text, calls: 0 }
    }

    /// Whether a call has begun.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Takes new text.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.go_on(&mut pieces) {}
        pieces
    }

    /// What is left once no more text comes.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let rest = std::mem::take(&mut self.held);
        match self.at {
            At::Text => push_text(&mut pieces, rest),
            // Cut off before its end: what there is of the arguments.
            At::Arguments if !rest.is_empty() => {
                let end = self.tail();
                let text = rest.strip_suffix(end).unwrap_or(&rest).to_owned();
                pieces.push(Piece::Arguments { index: self.calls - 1, text });
            }
            _ => {}
        }
        pieces
    }

    /// What follows on the arguments of a call.
    fn tail(&self) -> &'static str {
        if self.format == Format::Bare { "}" } else { "}\n</tool_call>" }
    }

    fn go_on(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.at {
            At::Text if self.format == Format::Bare => {
                let is_call = self.held.starts_with('{') || self.is_required;
                if self.held.is_empty() {
                    return false;
                }
                self.at = if is_call { At::Name } else { At::End };
                if !is_call {
                    push_text(pieces, std::mem::take(&mut self.held));
                }
                true
            }
            At::Text => match self.held.find(OPEN) {
                Some(at) => {
                    let before = self.held[..at].trim_end_matches('\n').to_owned();
                    push_text(pieces, before);
                    self.held.drain(..at + OPEN.len());
                    self.at = At::Name;
                    true
                }
                None => {
                    // What may become a marker, and the line breaks before it, wait.
                    let keep = (1..OPEN.len()).rev().find(|n| self.held.ends_with(&OPEN[..*n])).unwrap_or(0);
                    let shown = self.held[..self.held.len() - keep].trim_end_matches('\n').len();
                    let rest = self.held.split_off(shown);
                    push_text(pieces, std::mem::replace(&mut self.held, rest));
                    false
                }
            },
            At::Name => {
                let begin = "{\"name\": \"";
                let end = format!("\", \"{}\": ", self.format.arguments());
                let Some(start) = self.held.find(begin).map(|at| at + begin.len()) else { return false };
                let Some(stop) = self.held[start..].find(&end) else { return false };
                let name = self.held[start..start + stop].to_owned();
                self.held.drain(..start + stop + end.len());
                pieces.push(Piece::Call { index: self.calls, name });
                self.calls += 1;
                self.at = At::Arguments;
                true
            }
            At::Arguments => {
                let tail = self.tail();
                // The marker ends a call; in the bare form the text's own end does.
                if self.format != Format::Bare
                    && let Some(at) = self.held.find(tail)
                {
                    let text = self.held[..at].to_owned();
                    self.held.drain(..at + tail.len());
                    self.push_arguments(pieces, text);
                    self.at = At::Text;
                    return true;
                }
                let mut shown = self.held.len().saturating_sub(tail.len());
                while !self.held.is_char_boundary(shown) {
                    shown -= 1;
                }
                let rest = self.held.split_off(shown);
                let text = std::mem::replace(&mut self.held, rest);
                self.push_arguments(pieces, text);
                false
            }
            At::End => {
                push_text(pieces, std::mem::take(&mut self.held));
                false
            }
        }
    }

    fn push_arguments(&self, pieces: &mut Vec<Piece>, text: String) {
        if !text.is_empty() {
            pieces.push(Piece::Arguments { index: self.calls - 1, text });
        }
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: String) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

/// Calls and answers of tools as text, for templates that know of none.
pub(crate) fn as_text(messages: &mut [Message]) {
    for message in messages {
        if !message.tool_calls.is_empty() {
            let mut text = message.text();
            for call in message.tool_calls.drain(..) {
                let arguments = call.parsed_arguments().unwrap_or_default();
                let name = Value::from(call.function.name.as_str());
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&format!("{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}{CLOSE}"));
            }
            message.content = vec![loam_chat::Part::text(text)];
        }
        if message.role == Role::Tool {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.text());
            message.role = Role::User;
            message.content = vec![loam_chat::Part::text(text)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(format: Format) -> Tools {
        let tool = Tool { name: "add".into(), description: None, parameters: no_parameters() };
        Tools { tools: vec![tool], choice: Choice::Auto, parallel: true, format }
    }

    /// Joins what belongs together.
    fn read(format: Format, text: &str, step: usize) -> Vec<Piece> {
        let mut reader = CallReader::new(&tools(format));
        let chars: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> = Vec::new();
        let parts: Vec<String> = chars.chunks(step).map(|part| part.iter().collect()).collect();
        let mut all: Vec<Piece> = parts.iter().flat_map(|part| reader.push(part)).collect();
        all.extend(reader.finish());
        for piece in all {
            match (pieces.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                (Some(Piece::Arguments { text: before, .. }), Piece::Arguments { text, .. }) => before.push_str(&text),
                (_, piece) => pieces.push(piece),
            }
        }
        pieces
    }

    #[test]
    fn calls_are_read_in_pieces_of_any_size() {
        let call = |index, name: &str| Piece::Call { index, name: name.into() };
        let arguments = |index, text: &str| Piece::Arguments { index, text: text.into() };
        let text = "Let me see: 1 < 2.\n\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": \"}\\n\"}}\n</tool_call>\n\
                    <tool_call>\n{\"name\": \"花\", \"arguments\": {}}\n</tool_call>";
        for step in [1, 2, 3, 7, 1000] {
            let found = read(Format::Marked, text, step);
            let expected = [
                Piece::Text("Let me see: 1 < 2.".into()),
                call(0, "add"),
                arguments(0, "{\"a\": \"}\\n\"}"),
                call(1, "花"),
                arguments(1, "{}"),
            ];
            assert_eq!(found, expected, "{step}");
            assert_eq!(read(Format::Marked, "no <tool call>\n", step), [Piece::Text("no <tool call>\n".into())]);
            let bare = "{\"name\": \"add\", \"parameters\": {\"a\": {}}}";
            assert_eq!(read(Format::Bare, bare, step), [call(0, "add"), arguments(0, "{\"a\": {}}")]);
            assert_eq!(read(Format::Bare, "plain {}", step), [Piece::Text("plain {}".into())]);
            // Cut off by the limit of tokens.
            let cut = text.find("}\\n").unwrap_or_default();
            assert_eq!(read(Format::Marked, &text[..cut], step)[2..], [arguments(0, "{\"a\": \"")]);
        }
    }

    #[test]
    fn a_template_that_knows_no_tools_reads_calls_as_text() {
        let mut messages = vec![
            Message {
                tool_calls: vec![loam_chat::ToolCall::new("c", "add", json!({"a": 1}))],
                ..Message::assistant("")
            },
            Message::tool("c", "3"),
        ];
        messages[0].content.clear();
        as_text(&mut messages);
        assert_eq!(messages[0].text(), "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\":1}}\n</tool_call>");
        assert_eq!(
            (messages[1].role, messages[1].text().as_str()),
            (Role::User, "<tool_response>\n3\n</tool_response>")
        );
    }
}
