//! Pairs of source and target: from files, or made of text by damaging it.

use std::path::PathBuf;
use std::sync::Arc;

use loam_data::seq2seq::{self, PairFields};
use loam_data::source::Source as File;
use loam_data::{
    Corrupted, Infilling, Seq2SeqBatch, Seq2SeqConfig, Seq2SeqExample, Seq2SeqLoader, SpanCorruption, TokenSet,
};
use serde_json::Value;

use super::records::Split;
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::{InOrder, Validation};
use crate::error::{Error, Result};
use crate::objective::Seq2Seq;
use crate::recipe::{Noise, Recipe};
use crate::trainer::{Observer, Summary};

/// Pairs of a recipe, encoded.
pub(super) struct Pairs {
    train: Vec<Seq2SeqExample>,
    held_out: Vec<Seq2SeqExample>,
    ends: Ends,
    target_len: usize,
    sequences: u64,
    description: Value,
}

/// The tokens that a decoder starts from and stops at.
#[derive(Clone, Copy)]
struct Ends {
    start: u32,
    eos: u32,
}

impl Ends {
    fn of(start: &Start) -> Result<Self> {
        let named = |key: &str| start.model.config().get(key).and_then(Value::as_u64).map(|id| id as u32);
        let eos = start.tokenizer.eos_id().or(named("eos_token_id")).ok_or_else(|| Error::Examples {
            what: "the tokenizer has no token that ends a text".into(),
            hint: "take a tokenizer with an end token, such as one that loam trains".into(),
        })?;
        Ok(Self { start: named("decoder_start_token_id").unwrap_or(eos), eos })
    }

    fn config(self, recipe: &Recipe, rows: usize, target_len: usize) -> Seq2SeqConfig {
        let source_len = recipe.data.seq_len.unwrap_or(2);
        let target_len = recipe.data.target_len.unwrap_or(target_len);
        Seq2SeqConfig {
            batch_tokens: rows * (source_len + target_len),
            source_len,
            target_len,
            seed: recipe.seed,
            decoder_start_token_id: self.start,
            eos: self.eos,
        }
    }
}

impl Pairs {
    pub(super) fn open(recipe: &Recipe, start: &Start, seq_len: usize, observer: &mut dyn Observer) -> Result<Self> {
        let fields = PairFields { source: recipe.data.field("source"), target: recipe.data.field("target") };
        let read = |files: &[PathBuf]| {
            let files = files.iter().map(|file| File::open(file)).collect::<Result<Vec<_>, _>>()?;
            Ok(seq2seq::read(&files, &fields)?)
        };
        let split = Split::read(recipe, read, |(source, target)| format!("{source}\u{0}{target}"))?;
        let encode = |pairs: &[(String, String)]| seq2seq::encode(pairs, &start.tokenizer);
        let (train, held_out) = (encode(&split.train)?, encode(&split.held_out)?);
        let ends = Ends::of(start)?;
        // Rows on both sides are then full at the same time, and the longest target fits.
        let sum = |side: fn(&Seq2SeqExample) -> usize| train.iter().map(side).sum::<usize>();
        let (sources, targets) = (sum(|pair| pair.source.len()), sum(|pair| pair.target.len()));
        let longest = train.iter().map(|pair| pair.target.len()).max().unwrap_or(2);
        let balanced = (seq_len * targets).div_ceil(sources.max(1)).max(longest).max(2);
        let target_len = recipe.data.target_len.unwrap_or(balanced);
        let context = start.model.spec().max_position_embeddings;
        let sized = Recipe {
            data: crate::recipe::DataSection { seq_len: Some(seq_len), ..recipe.data.clone() },
            ..recipe.clone()
        };
        let loader = Seq2SeqLoader::new(train.clone(), ends.config(&sized, 1, target_len.min(context)))?;
        let lost = loader.truncated();
        let cut = if lost.sources + lost.targets == 0 {
            String::new()
        } else {
            format!("; {} sources and {} targets are too long and lose their end", lost.sources, lost.targets)
        };
        observer.on_message(&format!("data: {} pairs, {} held out{cut}", train.len(), held_out.len()));
        let (sequences, target_len) = (loader.rows_per_epoch(), target_len.min(context));
        Ok(Self { train, held_out, ends, target_len, sequences, description: split.description })
    }
}

impl StageData for Pairs {
    fn sequences(&self) -> u64 {
        self.sequences
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn target_len(&self) -> Option<usize> {
        Some(self.target_len)
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let (batch, rows) = run.rows();
        let config = |rows: usize| self.ends.config(run.recipe, rows, self.target_len);
        let train = Seq2SeqLoader::new(self.train.clone(), config(batch))?;
        let source = |step: u64| Ok(train.micro_batches(step, rows));
        let held_out = match self.held_out.is_empty() {
            true => None,
            false => Some(Seq2SeqLoader::new(self.held_out.clone(), config(rows))?),
        };
        let validation = held_out.as_ref().map(in_order);
        run.run(Seq2Seq, &source, validation.as_ref().map(|validation| validation as _))
    }
}

/// All batches of a loader, each once.
pub(super) fn in_order(loader: &Seq2SeqLoader) -> impl Validation<Seq2SeqBatch> + '_ {
    InOrder { len: loader.batches_in_order(), batch: |index| loader.batch_in_order(index), bytes_per_token: None }
}

/// How texts are damaged for a model to repair.
pub(super) struct Damage {
    noise: Kind,
    ends: Ends,
    source_len: usize,
    /// Positions of a target.
    pub(super) target_len: usize,
    eos: Option<u32>,
    seed: u64,
}

enum Kind {
    Spans(SpanCorruption),
    Infilling(Infilling),
}

impl Damage {
    pub(super) fn of(recipe: &Recipe, start: &Start, seq_len: usize) -> Result<Self> {
        let (ends, tokenizer) = (Ends::of(start)?, &start.tokenizer);
        let context = start.model.spec().max_position_embeddings;
        let noise = match recipe.data.noise {
            Noise::Infilling => {
                let mask = ["<mask>", "[MASK]"].iter().find_map(|name| tokenizer.token_to_id(name));
                let mask = mask.ok_or_else(|| Error::Examples {
                    what: "the tokenizer has no `<mask>` to stand for what was cut out".into(),
                    hint: "put `special_tokens = [\"<mask>\"]` into `[tokenizer]`, or take one that has it".into(),
                })?;
                Kind::Infilling(Infilling::new(mask, tokenizer.bos_id(), ends.eos))
            }
            Noise::Spans | Noise::None => Kind::Spans(SpanCorruption::new(tokenizer)?),
        };
        let target_len = match &noise {
            // 15 % of the tokens, a sentinel for every three of them, and the end.
            Kind::Spans(_) => seq_len / 4 + 2,
            Kind::Infilling(_) => (seq_len + 2).min(context),
        };
        let target_len = recipe.data.target_len.unwrap_or(target_len);
        Ok(Self { noise, ends, source_len: seq_len, target_len, eos: tokenizer.eos_id(), seed: recipe.seed })
    }

    pub(super) fn config(&self, recipe: &Recipe, rows: usize) -> Seq2SeqConfig {
        let config = self.ends.config(recipe, rows, self.target_len);
        let source_len = self.source_len;
        Seq2SeqConfig { source_len, batch_tokens: rows * (source_len + config.target_len), ..config }
    }

    pub(super) fn loader(&self, set: &Arc<TokenSet>, config: Seq2SeqConfig) -> Result<Seq2SeqLoader> {
        let (set, len, eos, seed) = (set.clone(), config.source_len, self.eos, self.seed);
        Ok(match &self.noise {
            Kind::Spans(noise) => Seq2SeqLoader::new(Corrupted::new(set, noise.clone(), len, eos, seed), config)?,
            Kind::Infilling(noise) => Seq2SeqLoader::new(Corrupted::new(set, noise.clone(), len, eos, seed), config)?,
        })
    }
}
