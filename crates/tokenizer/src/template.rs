//! Chat templates: a conversation as the text that a model was trained on.
//!
//! Templates are Jinja, written for the Python library; the differences that templates in use depend on are bridged
//! here: Python's methods of strings and lists, its way to print values and JSON, the functions that `transformers`
//! adds, and its `generation` blocks.

use crate::{Error, Result};
use loam_chat::{Message, Role};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value as Jinja, context};
use serde_json::Value;
use std::fmt::Write;
use std::ops::Range;

/// The template of models that Loam trains: ChatML.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
                          + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
                          '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts that it may print for the tokens that start and end a text.
    pub fn new(source: impl Into<String>, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let source = source.into();
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| template_error(&e))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let compiled = environment.add_template_owned(NAME, without_generation_blocks(&source));
        compiled.map_err(|e| template_error(&e))?;
        let text = |token: Option<&str>| token.unwrap_or_default().to_owned();
        Ok(Self { source, environment, bos: text(bos), eos: text(eos) })
    }

    /// The built-in template, ChatML.
    pub fn chatml() -> Self {
        Self::new(CHATML, None, None).expect("the built-in template is valid")
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation. `tools` are function descriptions as JSON schema. With `add_generation_prompt` the
    /// text ends where the assistant's next turn begins.
    pub fn render(&self, messages: &[Message], tools: &[Value], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(message_value).collect();
        let tools = if tools.is_empty() { Jinja::from(()) } else { Jinja::from(Serde(tools)) };
        let template = self.environment.get_template(NAME).map_err(|e| template_error(&e))?;
        let context = context! {
            messages => Jinja::from(Serde(messages)),
            tools => tools,
            documents => Jinja::from(()),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos.clone(),
            eos_token => self.eos.clone(),
        };
        template.render(context).map_err(|e| template_error(&e))
    }

    /// The text of a conversation, and the byte range of each assistant turn: its content with the token that ends it,
    /// which is what a model must learn to write.
    ///
    /// The ranges come from rendering the conversation's beginnings: a turn starts where the text up to it with the
    /// generation prompt ends. A template that rewrites earlier turns once others follow has no such place and is
    /// refused.
    pub fn render_spans(&self, messages: &[Message], tools: &[Value]) -> Result<(String, Vec<Range<usize>>)> {
        let text = self.render(messages, tools, false)?;
        let mut spans = Vec::new();
        for (index, message) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            let before = self.render(&messages[..index], tools, true)?;
            let through = self.render(&messages[..=index], tools, false)?;
            if !(text.starts_with(&through) && through.starts_with(&before)) {
                return Err(Error::UnstableTemplate { index });
            }
            let turn = &through[before.len()..];
            spans.push(before.len()..before.len() + turn_length(turn, &message.text()));
        }
        Ok((text, spans))
    }
}

/// A message as templates see it. A missing text is `none` only where calls of tools stand in its place.
fn message_value(message: &Message) -> Value {
    let mut value = serde_json::to_value(message).expect("a message is plain data");
    if message.content.is_empty() && message.tool_calls.is_empty() {
        value["content"] = "".into();
    }
    value
}

/// The length of a rendered turn without the white space that only sets it apart from the next one. White space that
/// directly follows the content is what ends the turn, and stays.
fn turn_length(turn: &str, content: &str) -> usize {
    let trimmed = turn.trim_end().len();
    let content = content.trim();
    let content_end = turn.find(content).map_or(0, |at| at + content.len());
    if trimmed > content_end { trimmed } else { turn.len() }
}

/// `transformers` marks what a model generates with a block of its own; for rendering it is no more than its content.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, tail) = tag.split_at(end + 2);
        match tag[2..end].trim_matches(['-', '+', ' ', '\n', '\t', '\r']) {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn template_error(error: &minijinja::Error) -> Error {
    let mut reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        let _ = write!(reason, " (line {line})");
    }
    Error::Template(reason)
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
        .map_err(|e| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, e.to_string()))
}

/// The filter `tojson` of `transformers`: Python's `json.dumps` without escaping beyond JSON's own.
fn to_json(value: &Jinja, kwargs: Kwargs) -> Result<Jinja, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let sort: Option<bool> = kwargs.get("sort_keys")?;
    // Accepted for the sake of templates that state the default.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut value = serde_json::to_value(value)
        .map_err(|e| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, e.to_string()))?;
    if sort.unwrap_or(false) {
        value.sort_all_objects();
    }
    let mut out = String::new();
    write_json(&mut out, &value, indent, 0);
    Ok(Jinja::from(out))
}

/// JSON as Python lays it out: `", "` and `": "` on one line, or an item per line with an indent.
fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) {
    let newline = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let separate = |out: &mut String, i: usize| {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        newline(out, depth + 1);
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(out, i);
                write_json(out, item, indent, depth + 1);
            }
            newline(out, depth);
            out.push(']');
        }
        Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                separate(out, i);
                let _ = write!(out, "{}: ", Value::from(key.as_str()));
                write_json(out, item, indent, depth + 1);
            }
            newline(out, depth);
            out.push('}');
        }
        scalar => {
            let _ = write!(out, "{scalar}");
        }
    }
}
