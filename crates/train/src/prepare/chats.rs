//! Conversations from files, with a part held out.

use std::path::PathBuf;

use loam_chat::Message;
use loam_data::{Example, Loader, LoaderConfig, Mode};
use serde_json::Value;

use super::records::Split;
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::{LoaderSource, LoaderValidation};
use crate::conversations::{encode_conversations, end_token, read_conversations};
use crate::error::{Error, Result};
use crate::objective::Tokens;
use crate::recipe::Recipe;
use crate::trainer::{Observer, Summary};

/// Conversations of a recipe, encoded and checked.
pub(crate) struct Chats {
    train: Vec<Example>,
    held_out: Vec<Example>,
    /// Packed rows in one pass.
    sequences: u64,
    description: Value,
}

impl Chats {
    /// Reads all files. What is held out is chosen by a hash of the conversation, so that it stays held out when the
    /// data grows.
    pub(super) fn open(recipe: &Recipe, start: &Start, seq_len: usize, observer: &mut dyn Observer) -> Result<Self> {
        let text = |chat: &Vec<Message>| serde_json::to_string(chat).unwrap_or_default();
        let Split { train, held_out, description } = Split::read(recipe, read_all, text)?;
        observer.on_message(&format!("data: {} conversations, {} held out", train.len(), held_out.len()));
        let template = start.template.as_ref().ok_or_else(|| Error::Examples {
            what: "the model has no chat template".into(),
            hint: "put a chat_template.jinja into the model's directory".into(),
        })?;
        let encode = |chats: &[Vec<Message>]| encode_conversations(chats, &start.tokenizer, template, seq_len);
        let train = encode(&train)?;
        let held_out = if held_out.is_empty() { Vec::new() } else { encode(&held_out)? };
        let sequences = Loader::for_examples(train.clone(), config(recipe, 1, seq_len))?.rows_per_epoch();
        Ok(Self { train, held_out, sequences, description })
    }

    fn source(&self, resolved: &Recipe) -> Result<LoaderSource> {
        let (batch, seq_len) = (resolved.train.batch.unwrap_or(1), resolved.data.seq_len.unwrap_or(2));
        let loader = Loader::for_examples(self.train.clone(), config(resolved, batch, seq_len))?;
        Ok(LoaderSource { loader, micro_batch: resolved.train.micro_batch.unwrap_or(batch) })
    }

    fn validation(&self, resolved: &Recipe) -> Result<Option<LoaderValidation>> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let rows = resolved.train.micro_batch.unwrap_or(1);
        let settings = config(resolved, rows, resolved.data.seq_len.unwrap_or(2));
        let loader = Loader::for_examples(self.held_out.clone(), settings)?;
        Ok(Some(LoaderValidation { loader, bytes_per_token: None }))
    }
}

impl StageData for Chats {
    fn sequences(&self) -> u64 {
        self.sequences
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn chat_end(&self) -> Option<u32> {
        end_token(&self.train)
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let (source, validation) = (self.source(run.recipe)?, self.validation(run.recipe)?);
        run.run(Tokens, &source, validation.as_ref().map(|validation| validation as _))
    }
}

fn config(recipe: &Recipe, batch: usize, seq_len: usize) -> LoaderConfig {
    LoaderConfig { batch, seq_len, seed: recipe.seed, mode: Mode::Packed }
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<Message>>> {
    let lists: Result<Vec<_>> = files.iter().map(|file| read_conversations(file)).collect();
    Ok(lists?.concat())
}
