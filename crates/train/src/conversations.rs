//! Conversations as training examples: encoded, and checked for what would teach a model nothing or the wrong thing.

use std::path::Path;

use loam_chat::Message;
use loam_data::Example;
use loam_tokenizer::{ChatTemplate, Tokenizer, encode_chat};

use crate::error::{Error, Result};

/// Encodes and checks conversations. Each must have at least one token of the assistant, fit `seq_len`, and end the
/// assistant's last turn with a special token; else the model would learn nothing, half an answer, or never to stop.
pub fn encode_conversations(
    chats: &[Vec<Message>],
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    seq_len: usize,
) -> Result<Vec<Example>> {
    if chats.is_empty() {
        return Err(Error::Examples {
            what: "there is no conversation to train on".into(),
            hint: "each line of the data must be a JSON object with a list `messages`".into(),
        });
    }
    let encode = |(index, messages): (usize, &Vec<Message>)| {
        let chat = encode_chat(tokenizer, template, messages, &[])?;
        let example = Example { ids: chat.ids, trained: chat.is_assistant };
        check(&example, index, tokenizer, seq_len)?;
        Ok(example)
    };
    chats.iter().enumerate().map(encode).collect()
}

/// The token that ends the assistant's turn.
pub fn end_token(examples: &[Example]) -> Option<u32> {
    let example = examples.first()?;
    example.trained.iter().rposition(|&is| is).map(|last| example.ids[last])
}

fn check(example: &Example, index: usize, tokenizer: &Tokenizer, seq_len: usize) -> Result<()> {
    let fail = |problem: String, hint: &str| {
        Err(Error::Examples { what: format!("conversation {}: {problem}", index + 1), hint: hint.into() })
    };
    let Some(last) = example.trained.iter().rposition(|&is| is) else {
        return fail(
            "no token is trained on: the assistant says nothing".into(),
            "every conversation needs a message with role \"assistant\"",
        );
    };
    if !tokenizer.is_special(example.ids[last]) {
        return fail(
            "the assistant's last turn has no end token".into(),
            "the chat template must end each turn with a special token of the tokenizer, such as <|im_end|>",
        );
    }
    if example.ids.len() > seq_len {
        return fail(
            format!("{} tokens do not fit data.seq_len = {seq_len}: the answer would be cut off", example.ids.len()),
            "raise data.seq_len (at most the model's context) or shorten the conversation",
        );
    }
    Ok(())
}

/// Reads conversations from a JSON Lines file: each line an object with a list `messages`.
pub fn read_conversations(path: &Path) -> Result<Vec<Vec<Message>>> {
    #[derive(serde::Deserialize)]
    struct Line {
        messages: Vec<Message>,
    }
    let text = std::fs::read_to_string(path).map_err(|e| loam_formats::Error::io("read", path, e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| match serde_json::from_str::<Line>(line) {
            Ok(line) => Ok(line.messages),
            Err(error) => Err(Error::Examples {
                what: format!("{} line {}: {error}", path.display(), number + 1),
                hint: "each line must be a JSON object with a list `messages` of {role, content}".into(),
            }),
        })
        .collect()
}
