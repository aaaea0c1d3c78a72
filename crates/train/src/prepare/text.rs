//! Plain text as training sequences.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loam_data::source::{self, ReadOptions};
use loam_data::{Holdout, LoaderConfig, Mode, Part, PrepareConfig, TokenSet, dedup};
use serde_json::{Value, json};

use super::start::Start;
use crate::batch::{LoaderSource, LoaderValidation};
use crate::error::Result;
use crate::recipe::{DataMode, Dedup, Recipe, TextSplit};
use crate::trainer::Observer;

/// The text of files in pieces, documents one after the other.
pub(super) fn texts(files: &[PathBuf], recipe: &Recipe) -> Result<impl Iterator<Item = Result<String>> + use<>> {
    let options = read_options(recipe);
    let opened: Result<Vec<_>> =
        files.iter().map(|file| Ok(loam_data::source::Source::open(file)?.chunks(&options)?)).collect();
    Ok(opened?.into_iter().flatten().map(|chunk| Ok(chunk?.text)))
}

fn read_options(recipe: &Recipe) -> ReadOptions {
    let text_split = match recipe.data.text_split {
        TextSplit::File => source::TextSplit::File,
        TextSplit::EmptyLine => source::TextSplit::EmptyLine,
        TextSplit::EndOfText => source::TextSplit::EndOfText,
    };
    let mut options = ReadOptions { text_split, ..ReadOptions::default() };
    if let Some(column) = &recipe.data.text_column {
        options.text_column.clone_from(column);
    }
    options
}

/// Token shards of a recipe's text.
pub(crate) struct Text {
    train: Arc<TokenSet>,
    held_out: Option<Arc<TokenSet>>,
    /// Sequences in one pass, at the recipe's length.
    sequences: u64,
    description: Value,
}

impl Text {
    pub(super) fn open(
        recipe: &Recipe,
        start: &Start,
        seq_len: usize,
        cache_dir: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let train = prepare(recipe, &recipe.data.train, holdout(recipe), start, cache_dir, observer)?;
        let held_out_dir = if recipe.data.validation.is_empty() {
            train.dir.clone()
        } else {
            prepare(recipe, &recipe.data.validation, Holdout::None, start, cache_dir, observer)?.dir
        };
        let part = if recipe.data.validation.is_empty() { Part::Validation } else { Part::Train };
        let hash = start.tokenizer.content_hash();
        let held_out = TokenSet::open(&held_out_dir, part, Some(hash))?;
        let tokens = TokenSet::open(&train.dir, Part::Train, Some(hash))?;
        observer.on_message(&format!(
            "data: {} tokens to train on, {} held out ({})",
            tokens.counts().tokens,
            held_out.counts().tokens,
            train.dir.display()
        ));
        let description = json!({
            "shards": train.dir.display().to_string(), "sources": train.meta.sources, "train": tokens.counts(),
            "held_out": held_out.counts(), "dedup": train.meta.dedup,
        });
        let tokens = Arc::new(tokens);
        let loader = loam_data::Loader::new(tokens.clone(), loader_config(recipe, 1, seq_len))?;
        let held_out = (held_out.counts().tokens > 1).then(|| Arc::new(held_out));
        Ok(Self { train: tokens, held_out, sequences: loader.rows_per_epoch(), description })
    }

    pub(super) fn sequences(&self) -> u64 {
        self.sequences
    }

    pub(super) fn description(&self) -> Value {
        self.description.clone()
    }

    pub(super) fn source(&self, resolved: &Recipe) -> Result<LoaderSource> {
        let (batch, seq_len) = (resolved.train.batch.unwrap_or(1), resolved.data.seq_len.unwrap_or(2));
        let loader = loam_data::Loader::new(self.train.clone(), loader_config(resolved, batch, seq_len))?;
        Ok(LoaderSource { loader, micro_batch: resolved.train.micro_batch.unwrap_or(batch) })
    }

    pub(super) fn validation(&self, resolved: &Recipe) -> Result<Option<LoaderValidation>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let (counts, seq_len) = (held_out.counts(), resolved.data.seq_len.unwrap_or(2));
        // What is held out may be shorter than a training sequence.
        let seq_len = seq_len.min(counts.tokens as usize - 1);
        let rows = resolved.train.micro_batch.unwrap_or(1);
        let loader = loam_data::Loader::new(held_out.clone(), loader_config(resolved, rows, seq_len))?;
        let bytes_per_token = Some(counts.bytes as f64 / counts.tokens as f64);
        Ok(Some(LoaderValidation { loader, bytes_per_token }))
    }
}

fn holdout(recipe: &Recipe) -> Holdout {
    match recipe.held_out_shares() {
        (_, Some(share)) => Holdout::Tail(share),
        (Some(share), None) => Holdout::Documents(share),
        (None, None) => Holdout::None,
    }
}

fn loader_config(recipe: &Recipe, batch: usize, seq_len: usize) -> LoaderConfig {
    let mode = match recipe.data.mode.unwrap_or(DataMode::Packed) {
        DataMode::Contiguous => Mode::Contiguous,
        DataMode::Packed => Mode::Packed,
    };
    LoaderConfig { batch, seq_len, seed: recipe.seed, mode }
}

fn prepare(
    recipe: &Recipe,
    sources: &[String],
    holdout: Holdout,
    start: &Start,
    cache_dir: &Path,
    observer: &mut dyn Observer,
) -> Result<loam_data::Prepared> {
    let config = PrepareConfig {
        sources: sources.to_vec(),
        read: read_options(recipe),
        holdout,
        dedup: match recipe.data.dedup {
            Dedup::None => dedup::Dedup::Off,
            Dedup::Exact => dedup::Dedup::Exact,
            Dedup::Near => dedup::Dedup::Near(dedup::MinHash::default()),
        },
        end_of_document: true,
    };
    observer.on_message("preparing the data");
    Ok(loam_data::prepare(&config, &start.tokenizer, &cache_dir.join("data"), &mut |_| {})?)
}
