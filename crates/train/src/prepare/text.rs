//! Plain text as training sequences.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loam_data::source::{self, ReadOptions};
use loam_data::{Holdout, Loader, LoaderConfig, MaskedLm, MaskedLoader, Mode, Part, PrepareConfig, TokenSet, dedup};
use serde_json::{Value, json};

use super::pairs::{Damage, in_order};
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::{InOrder, LoaderSource, LoaderValidation, split_rows};
use crate::error::Result;
use crate::objective::{Seq2Seq, Tokens};
use crate::recipe::{DataMode, Dedup, MASK_SHARE, Recipe, Stage, TextSplit};
use crate::trainer::{Observer, Summary};

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
    /// How tokens are masked, in stage `masked_lm`.
    masking: Option<MaskedLm>,
    /// How texts are damaged, in stage `seq2seq`.
    noise: Option<Damage>,
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
        let held_out = (held_out.counts().tokens > 1).then(|| Arc::new(held_out));
        let masking = match recipe.stage {
            Stage::MaskedLm => {
                let share = recipe.data.mask_share.unwrap_or(MASK_SHARE);
                Some(MaskedLm::new(&start.tokenizer, share, recipe.data.whole_words)?)
            }
            _ => None,
        };
        let noise = match recipe.stage {
            Stage::Seq2seq => Some(Damage::of(recipe, start, seq_len)?),
            _ => None,
        };
        let sequences = match &noise {
            Some(noise) => noise.loader(&tokens, noise.config(recipe, 1))?.rows_per_epoch(),
            None => Loader::new(tokens.clone(), loader_config(recipe, 1, seq_len))?.rows_per_epoch(),
        };
        Ok(Self { train: tokens, held_out, sequences, description, masking, noise })
    }

    /// Batches of sequences as they are.
    fn plain(&self, run: StageRun<'_>) -> Result<Summary> {
        let (batch, micro_batch) = run.rows();
        let source = LoaderSource { loader: self.loader(run.recipe, batch)?, micro_batch };
        let held_out = self.held_out_loader(run.recipe)?;
        let bytes_per_token = self.bytes_per_token();
        let validation = held_out.map(|loader| LoaderValidation { loader, bytes_per_token });
        run.run(Tokens, &source, validation.as_ref().map(|validation| validation as _))
    }

    /// Batches with masks.
    fn masked(&self, run: StageRun<'_>) -> Result<Summary> {
        let (batch, rows) = run.rows();
        let Some(masking) = &self.masking else { return self.plain(run) };
        let loader = MaskedLoader::new(self.loader(run.recipe, batch)?, masking.clone());
        let source = |step: u64| Ok(split_rows(loader.batch(step), rows));
        let held_out = self.held_out_loader(run.recipe)?.map(|loader| MaskedLoader::new(loader, masking.clone()));
        let validation = held_out.as_ref().map(|loader| InOrder {
            len: loader.loader().batches_in_order(),
            batch: |index| loader.batch_in_order(index),
            bytes_per_token: None,
        });
        run.run(Tokens, &source, validation.as_ref().map(|validation| validation as _))
    }

    /// Pairs of a damaged text and what was damaged.
    fn damaged(&self, run: StageRun<'_>) -> Result<Summary> {
        let Some(noise) = &self.noise else { return self.plain(run) };
        let (batch, rows) = run.rows();
        let loader = |set: &Arc<TokenSet>, rows: usize| noise.loader(set, noise.config(run.recipe, rows));
        let (train, held_out) = (loader(&self.train, batch)?, self.held_out.as_ref().map(|set| loader(set, rows)));
        let source = |step: u64| Ok(train.micro_batches(step, rows));
        let held_out = held_out.transpose()?;
        let validation = held_out.as_ref().map(in_order);
        run.run(Seq2Seq, &source, validation.as_ref().map(|validation| validation as _))
    }

    fn loader(&self, resolved: &Recipe, batch: usize) -> Result<Loader> {
        let seq_len = resolved.data.seq_len.unwrap_or(2);
        Ok(Loader::new(self.train.clone(), loader_config(resolved, batch, seq_len))?)
    }

    fn held_out_loader(&self, resolved: &Recipe) -> Result<Option<Loader>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        // What is held out may be shorter than a training sequence.
        let seq_len = resolved.data.seq_len.unwrap_or(2).min(held_out.counts().tokens as usize - 1);
        let rows = resolved.train.micro_batch.unwrap_or(1);
        Ok(Some(Loader::new(held_out.clone(), loader_config(resolved, rows, seq_len))?))
    }

    fn bytes_per_token(&self) -> Option<f64> {
        let counts = self.held_out.as_ref()?.counts();
        Some(counts.bytes as f64 / counts.tokens as f64)
    }
}

impl StageData for Text {
    fn sequences(&self) -> u64 {
        self.sequences
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn target_len(&self) -> Option<usize> {
        self.noise.as_ref().map(|noise| noise.target_len)
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        match run.recipe.stage {
            Stage::MaskedLm => self.masked(run),
            Stage::Seq2seq => self.damaged(run),
            _ => self.plain(run),
        }
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
