//! Conversations from files, with a part held out.

use std::path::PathBuf;

use loam_chat::Message;
use loam_data::{Example, Loader, LoaderConfig, Mode};
use serde_json::{Value, json};

use super::start::{Start, expand};
use crate::batch::{LoaderSource, LoaderValidation};
use crate::conversations::{encode_conversations, end_token, read_conversations};
use crate::error::{Error, Result};
use crate::recipe::{HELD_OUT, Recipe};
use crate::run::file_hashes;
use crate::trainer::Observer;

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
        let files = expand(&recipe.data.train)?;
        let all = read_all(&files)?;
        let share = recipe.data.validation_fraction.or(recipe.data.validation_tail).unwrap_or(HELD_OUT);
        let (held_out, train): (Vec<_>, Vec<_>) = if recipe.data.validation.is_empty() {
            all.into_iter().partition(|chat| share > 0.0 && hash_unit(chat) < share)
        } else {
            (read_all(&expand(&recipe.data.validation)?)?, all)
        };
        observer.on_message(&format!("data: {} conversations, {} held out", train.len(), held_out.len()));
        let description = json!({"files": file_hashes(&files)?, "train": train.len(), "held_out": held_out.len()});
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

    pub(super) fn sequences(&self) -> u64 {
        self.sequences
    }

    pub(super) fn description(&self) -> Value {
        self.description.clone()
    }

    pub(super) fn end_token(&self) -> Option<u32> {
        end_token(&self.train)
    }

    pub(super) fn source(&self, resolved: &Recipe) -> Result<LoaderSource> {
        let (batch, seq_len) = (resolved.train.batch.unwrap_or(1), resolved.data.seq_len.unwrap_or(2));
        let loader = Loader::for_examples(self.train.clone(), config(resolved, batch, seq_len))?;
        Ok(LoaderSource { loader, micro_batch: resolved.train.micro_batch.unwrap_or(batch) })
    }

    pub(super) fn validation(&self, resolved: &Recipe) -> Result<Option<LoaderValidation>> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let rows = resolved.train.micro_batch.unwrap_or(1);
        let settings = config(resolved, rows, resolved.data.seq_len.unwrap_or(2));
        let loader = Loader::for_examples(self.held_out.clone(), settings)?;
        Ok(Some(LoaderValidation { loader, bytes_per_token: None }))
    }
}

fn config(recipe: &Recipe, batch: usize, seq_len: usize) -> LoaderConfig {
    LoaderConfig { batch, seq_len, seed: recipe.seed, mode: Mode::Packed }
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<Message>>> {
    let lists: Result<Vec<_>> = files.iter().map(|file| read_conversations(file)).collect();
    Ok(lists?.concat())
}

/// A number in [0, 1) that depends on the conversation alone.
fn hash_unit(chat: &[Message]) -> f64 {
    let text = serde_json::to_string(chat).unwrap_or_default();
    (twox_hash::XxHash3_64::oneshot(text.as_bytes()) >> 11) as f64 / (1u64 << 53) as f64
}
