//! Answers in ids, with what the model is to learn of them.

use loam_chat::{Message, Role};
use loam_tokenizer::{ChatTemplate, Special, Tokenizer, encode_chat};

use serde_json::Value;

use super::{Turns, refused};
use crate::dialogue::Dialogue;
use crate::loader::Example;
use crate::{Error, Result};

/// A prompt with an answer. It ends with the answer's end token: what a template puts after it belongs to no answer.
pub type EncodedAnswer = Example;

/// Puts prompts and answers into ids.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How the model talks; without it texts are put one after the other.
    pub template: Option<&'a ChatTemplate>,
    /// Most tokens of prompt and answer together.
    pub max_len: usize,
}

impl Encoder<'_> {
    /// A prompt up to where the answer begins. A text is what a user says, where the model has a chat template.
    pub fn prompt(&self, prompt: &Turns) -> Result<Vec<u32>> {
        match (self.messages(prompt, Role::User), self.template) {
            (Some(messages), Some(template)) => {
                let text = template.render(&messages, &[], true)?;
                Ok(self.tokenizer.encode(&text, Special::Parse)?)
            }
            (Some(_), None) => Err(no_template()),
            (None, _) => self.plain_prompt(&prompt.last_text()),
        }
    }

    /// A prompt with an answer, whose tokens with the end token are trained. `number` is the row's, for messages. What would
    /// teach nothing, half an answer, or never to stop is an error.
    pub fn answer(&self, prompt: &Turns, completion: &Turns, number: usize) -> Result<EncodedAnswer> {
        self.answer_with(prompt, completion, &[], number)
    }

    /// A conversation of which all that the assistant says is trained, or a question of which the answer is; checked as in
    /// [`Encoder::answer`].
    pub fn dialogue(&self, dialogue: &Dialogue, number: usize) -> Result<EncodedAnswer> {
        self.answer_with(&dialogue.prompt, &dialogue.answer, &dialogue.tools, number)
    }

    fn answer_with(&self, prompt: &Turns, completion: &Turns, tools: &[Value], number: usize) -> Result<EncodedAnswer> {
        let prompt_messages = self.messages(prompt, Role::User);
        let answer_messages = self.messages(completion, Role::Assistant);
        let mut example = match (prompt_messages, answer_messages, self.template) {
            (Some(before), Some(answer), Some(template)) => self.turns(&before, &answer, tools, template)?,
            (None, None, _) => self.texts(&prompt.last_text(), &completion.last_text())?,
            (_, _, None) => return Err(no_template()),
            _ => {
                let problem = "prompt and answer must both be texts or both be messages".into();
                return Err(refused(number, problem, "write both as lists of {role, content}"));
            }
        };
        let Some(last) = example.trained.iter().rposition(|&is| is) else {
            let problem = "no token is trained on: the answer says nothing".into();
            return Err(refused(number, problem, "an answer needs some text, in a message with role \"assistant\""));
        };
        example.ids.truncate(last + 1);
        example.trained.truncate(last + 1);
        if !self.tokenizer.is_special(example.ids[last]) {
            let hint = "the chat template must end each turn with a special token of the tokenizer, such as <|im_end|>";
            return Err(refused(number, "the answer has no end token".into(), hint));
        }
        if example.ids.len() > self.max_len {
            let problem = format!(
                "{} tokens do not fit data.seq_len = {}: the answer would be cut off",
                example.ids.len(),
                self.max_len
            );
            return Err(refused(number, problem, "raise data.seq_len, or leave the row out"));
        }
        Ok(example)
    }

    fn messages(&self, turns: &Turns, role: Role) -> Option<Vec<Message>> {
        match turns {
            Turns::Messages(messages) => Some(messages.clone()),
            Turns::Text(text) => self.template.map(|_| vec![Message::new(role, text.clone())]),
        }
    }

    /// Of the assistant's turns only those after the prompt are trained.
    fn turns(
        &self,
        before: &[Message],
        answer: &[Message],
        tools: &[Value],
        template: &ChatTemplate,
    ) -> Result<Example> {
        let chat = encode_chat(self.tokenizer, template, &[before, answer].concat(), tools)?;
        let mut turns_before = before.iter().filter(|message| message.role == Role::Assistant).count();
        let mut trained = chat.is_assistant;
        for index in 0..trained.len() {
            if !trained[index] || turns_before == 0 {
                continue;
            }
            let ends = trained.get(index + 1) != Some(&true);
            trained[index] = false;
            turns_before -= usize::from(ends);
        }
        Ok(Example { ids: chat.ids, trained })
    }

    fn texts(&self, prompt: &str, completion: &str) -> Result<Example> {
        let mut ids = self.plain_prompt(prompt)?;
        let start = ids.len();
        ids.extend(self.tokenizer.encode(completion, Special::Parse)?);
        let eos = self
            .tokenizer
            .eos_id()
            .ok_or(Error::NoToken { token: "that ends a text".into(), needed_for: "an answer" })?;
        if ids.len() > start && ids.last() != Some(&eos) {
            ids.push(eos);
        }
        let trained = (0..ids.len()).map(|place| place >= start).collect();
        Ok(Example { ids, trained })
    }

    /// A text, after the token that starts one. An answer needs something to follow.
    fn plain_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.tokenizer.bos_id().into_iter().collect();
        let parsed = self.tokenizer.encode(text, Special::Parse)?;
        ids.extend(parsed.strip_prefix(&ids[..]).unwrap_or(&parsed).to_vec());
        if ids.is_empty() {
            ids.extend(self.tokenizer.eos_id());
        }
        Ok(ids)
    }
}

fn no_template() -> Error {
    refused(
        0,
        "the data has messages and the model no chat template".into(),
        "put a chat_template.jinja into its directory",
    )
}
