//! What a run starts from: tokenizer, model, data.

mod chats;
mod start;
mod text;

use std::path::Path;

use serde_json::Value;

pub(crate) use start::Start;

use crate::batch::{LoaderSource, LoaderValidation};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, Stage};
use crate::trainer::Observer;
use chats::Chats;
use text::Text;

/// The data of a stage, ready to be drawn from.
pub(crate) enum Prepared {
    /// Plain text.
    Text(Text),
    /// Conversations.
    Chats(Chats),
}

impl Prepared {
    /// Reads, encodes and splits the data of a recipe.
    pub(crate) fn open(recipe: &Recipe, start: &Start, cache_dir: &Path, observer: &mut dyn Observer) -> Result<Self> {
        let (seq_len, context) = (recipe.seq_len(start.model.spec()), start.model.spec().max_position_embeddings);
        if seq_len > context {
            return Err(Error::Examples {
                what: format!("data.seq_len is {seq_len}, longer than the model's context of {context}"),
                hint: "lower data.seq_len, or make a model with a longer context".into(),
            });
        }
        match recipe.stage {
            Stage::Pretrain => Ok(Self::Text(Text::open(recipe, start, seq_len, cache_dir, observer)?)),
            Stage::Sft => Ok(Self::Chats(Chats::open(recipe, start, seq_len, observer)?)),
        }
    }

    /// Training sequences in one pass over the data.
    pub(crate) fn sequences(&self) -> u64 {
        match self {
            Self::Text(text) => text.sequences(),
            Self::Chats(chats) => chats.sequences(),
        }
    }

    /// What `environment.json` says about it.
    pub(crate) fn description(&self) -> Value {
        match self {
            Self::Text(text) => text.description(),
            Self::Chats(chats) => chats.description(),
        }
    }

    /// The token that ends the assistant's turn, where conversations are trained on.
    pub(crate) fn chat_end(&self) -> Option<u32> {
        match self {
            Self::Text(_) => None,
            Self::Chats(chats) => chats.end_token(),
        }
    }

    /// Batches of a resolved recipe.
    pub(crate) fn source(&self, resolved: &Recipe) -> Result<LoaderSource> {
        match self {
            Self::Text(text) => text.source(resolved),
            Self::Chats(chats) => chats.source(resolved),
        }
    }

    /// Held-out batches of a resolved recipe.
    pub(crate) fn validation(&self, resolved: &Recipe) -> Result<Option<LoaderValidation>> {
        match self {
            Self::Text(text) => text.validation(resolved),
            Self::Chats(chats) => chats.validation(resolved),
        }
    }
}
