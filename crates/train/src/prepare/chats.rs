//! Conversations from files, with a part held out.

use loam_data::dialogue::{Dialogue, read_dialogues};
use loam_data::{Example, Loader, LoaderConfig, Mode};
use rayon::prelude::*;
use serde_json::Value;

use super::answers::encoder;
use super::records::Split;
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::{LoaderSource, LoaderValidation};
use crate::error::{Error, Result};
use crate::objective::Tokens;
use crate::recipe::Recipe;
use crate::trainer::{Observer, Summary};

/// Conversations of a recipe. What is held out is chosen by a hash of the conversation.
pub(super) fn dialogues(recipe: &Recipe, observer: &mut dyn Observer) -> Result<Split<Dialogue>> {
    let split = Split::of_tables(recipe, read_dialogues, |dialogue| format!("{dialogue:?}"))?;
    observer.on_message(&format!("data: {} conversations, {} held out", split.train.len(), split.held_out.len()));
    if split.train.is_empty() {
        return Err(Error::Examples {
            what: "there is no conversation to train on".into(),
            hint: "look at the file with `loam data inspect`, and at data.validation_fraction".into(),
        });
    }
    Ok(split)
}

/// Conversations of a recipe, encoded and checked.
pub(crate) struct Chats {
    train: Vec<Example>,
    held_out: Vec<Example>,
    /// Packed rows in one pass.
    sequences: u64,
    description: Value,
}

impl Chats {
    pub(super) fn open(recipe: &Recipe, start: &Start, seq_len: usize, observer: &mut dyn Observer) -> Result<Self> {
        let Split { train, held_out, description } = dialogues(recipe, observer)?;
        let encoder = encoder(start, seq_len);
        let encode = |all: &[Dialogue]| -> loam_data::Result<Vec<Example>> {
            all.par_iter().enumerate().map(|(number, dialogue)| encoder.dialogue(dialogue, number)).collect()
        };
        let (train, held_out) = (encode(&train)?, encode(&held_out)?);
        let sequences = Loader::for_examples(train.clone(), config(recipe, 1, seq_len))?.rows_per_epoch();
        let trained: usize = train.iter().flat_map(|example| &example.trained).filter(|&&is| is).count();
        let all: usize = train.iter().map(|example| example.ids.len()).sum();
        observer.on_message(&format!(
            "data: {all} tokens, {trained} of them trained, in {sequences} rows of {seq_len} ({:.1} % full)",
            100.0 * all as f64 / (sequences as usize * seq_len).max(1) as f64
        ));
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
        self.train.first()?.ids.last().copied()
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let (source, validation) = (self.source(run.recipe)?, self.validation(run.recipe)?);
        run.run(Tokens, &source, validation.as_ref().map(|validation| validation as _))
    }
}

fn config(recipe: &Recipe, batch: usize, seq_len: usize) -> LoaderConfig {
    LoaderConfig { batch, seq_len, seed: recipe.seed, mode: Mode::Packed }
}
