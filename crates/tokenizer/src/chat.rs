//! Conversations as training examples.

use crate::{ChatTemplate, Result, Special, Tokenizer};
use loam_chat::Message;
use serde_json::Value;

/// A conversation in ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedChat {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id whether the assistant writes it: its content and the token that ends its turn.
    pub is_assistant: Vec<bool>,
}

/// Encodes a conversation and marks what the assistant writes.
///
/// The text is cut at the borders of the assistant's turns and each part encoded by itself, because that is how it is
/// when the model answers: the prompt is encoded without knowledge of the answer. No token lies across a border.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    tools: &[Value],
) -> Result<EncodedChat> {
    let (text, spans) = template.render_spans(messages, tools)?;
    let mut chat = EncodedChat::default();
    let mut append = |part: &str, is_assistant: bool| -> Result<()> {
        chat.ids.extend(tokenizer.encode(part, Special::Parse)?);
        chat.is_assistant.resize(chat.ids.len(), is_assistant);
        Ok(())
    };
    let mut done = 0;
    for span in spans {
        append(&text[done..span.start], false)?;
        done = span.end;
        append(&text[span], true)?;
    }
    append(&text[done..], false)?;
    Ok(chat)
}
