//! From texts to token shards, once per content.
//!
//! A dataset's directory is named by a hash of everything that determines it: the content of the sources, the settings
//! and the tokenizer. Preparing the same thing again finds it there. So that this is instant, the content hash of each
//! file is remembered with its size and time of change.

use std::path::{Path, PathBuf};

use loam_formats::atomic;
use loam_tokenizer::{Special, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::dedup::{Dedup, Kept, find_repeated};
use crate::fingerprint::Fingerprints;
use crate::hash::{ContentHasher, hash_parts};
use crate::shard::{FORMAT_VERSION, Meta, Part, PartWriter, SHARD_TOKENS, SourceRecord, TokenType};
use crate::source::{BLOCK_BYTES, Chunk, ReadOptions, Source, find};
use crate::{Error, Result};

/// What is kept from training to measure on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holdout {
    /// Nothing.
    None,
    /// About this fraction of the documents, chosen by a hash of their content: equal documents stay together and
    /// adding documents moves no other.
    Documents(f64),
    /// The last fraction of the characters of all texts in a row. For a corpus that is one long text.
    Tail(f64),
}

/// What to prepare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareConfig {
    /// Files or patterns.
    pub sources: Vec<String>,
    /// How to read them.
    pub read: ReadOptions,
    /// What to hold out.
    pub holdout: Holdout,
    /// What to remove.
    pub dedup: Dedup,
    /// Put the tokenizer's end-of-text token after each document, if it has one.
    pub end_of_document: bool,
}

impl Default for PrepareConfig {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            read: ReadOptions::default(),
            holdout: Holdout::Documents(0.01),
            dedup: Dedup::Off,
            end_of_document: true,
        }
    }
}

/// A prepared dataset.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its directory; see [`crate::shard`].
    pub dir: PathBuf,
    /// What is in it.
    pub meta: Meta,
    /// True if it was there already.
    pub reused: bool,
}

/// How far the preparation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of text tokenised.
    pub text_bytes: u64,
    /// Tokens written.
    pub tokens: u64,
    /// Size of the source files on disk, all together.
    pub source_bytes: u64,
}

/// Text that is tokenised in parallel at once.
const BATCH_BYTES: usize = 8 * BLOCK_BYTES;

/// Prepares a dataset under `out`, or finds it there.
///
/// Memory stays bounded whatever the size of the sources. An interrupted run leaves nothing under the final name.
pub fn prepare(
    config: &PrepareConfig,
    tokenizer: &Tokenizer,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared> {
    config.validate()?;
    let sources = find(&config.sources)?;
    let mut fingerprints = Fingerprints::open(out);
    let mut records = Vec::new();
    for source in &sources {
        let sha256 = fingerprints.of(source)?;
        records.push(SourceRecord { path: source.path().to_path_buf(), bytes: source.bytes(), sha256 });
    }
    let settings = config.settings();
    let dir = out.join(dataset_name(&records, &settings, tokenizer));
    if let Ok(meta) = Meta::read(&dir) {
        fingerprints.save()?;
        return Ok(Prepared { dir, meta, reused: true });
    }
    std::fs::create_dir_all(out).map_err(|error| Error::io("create", out, error))?;
    atomic::clean_leftovers(out)?;

    let kept =
        if config.dedup == Dedup::Off { Kept::default() } else { find_repeated(&sources, &config.read, config.dedup)? };
    let mut meta = Meta {
        format_version: FORMAT_VERSION,
        dtype: TokenType::for_vocab(tokenizer.vocab_size()),
        vocab_size: tokenizer.vocab_size(),
        tokenizer: tokenizer.content_hash().to_string(),
        end_of_document: tokenizer.eos_id().filter(|_| config.end_of_document),
        train: Default::default(),
        validation: Default::default(),
        sources: records,
        settings,
        dedup: kept.report,
    };
    let split = Splitter::new(config, &sources, &kept)?;
    atomic::replace_dir::<Error>(&dir, |temporary| {
        let mut job = Job::create(temporary, tokenizer, &meta, split, progress)?;
        job.run(config, &sources, &kept)?;
        (meta.train, meta.validation) = job.finish()?;
        meta.write(temporary)
    })?;
    fingerprints.save()?;
    Ok(Prepared { dir, meta, reused: false })
}

impl PrepareConfig {
    fn validate(&self) -> Result<()> {
        if self.sources.is_empty() {
            let found = "[]".to_string();
            return Err(Error::Setting { key: "sources", found, expected: "at least one file or pattern" });
        }
        match self.holdout {
            Holdout::Documents(fraction) | Holdout::Tail(fraction) if !(0.0..1.0).contains(&fraction) => {
                let found = fraction.to_string();
                Err(Error::Setting { key: "holdout", found, expected: "a fraction from 0 to below 1" })
            }
            _ => Ok(()),
        }
    }

    /// What determines the result, besides the sources and the tokenizer.
    fn settings(&self) -> serde_json::Value {
        serde_json::json!({
            "read": self.read,
            "holdout": self.holdout,
            "dedup": self.dedup,
            "end_of_document": self.end_of_document,
        })
    }
}

fn dataset_name(records: &[SourceRecord], settings: &serde_json::Value, tokenizer: &Tokenizer) -> String {
    let mut hasher = ContentHasher::default();
    let header = format!("{FORMAT_VERSION}\n{}\n{settings}\n", tokenizer.content_hash());
    hasher.update(header.as_bytes());
    for record in records {
        // The name's ending says how a file is read, so it belongs to the content.
        let kind = record.path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        hasher.update(format!("{} {kind}\n", record.sha256).as_bytes());
    }
    hasher.finish()[..16].to_string()
}

/// Decides which part each piece of text belongs to.
enum Splitter {
    Documents(f64),
    /// Characters of training text still to come.
    Tail(u64),
}

impl Splitter {
    fn new(config: &PrepareConfig, sources: &[Source], kept: &Kept) -> Result<Self> {
        let fraction = match config.holdout {
            Holdout::None => return Ok(Self::Documents(0.0)),
            Holdout::Documents(fraction) => return Ok(Self::Documents(fraction)),
            Holdout::Tail(fraction) => fraction,
        };
        let mut characters = 0_u64;
        for_each_kept(config, sources, kept, |chunk| {
            characters += chunk.text.chars().count() as u64;
            Ok(())
        })?;
        // Truncated like the usual `int(n * 0.9)`, so that the same characters are held out as elsewhere.
        Ok(Self::Tail((characters as f64 * (1.0 - fraction)) as u64))
    }

    /// The pieces of a chunk and their parts. `first` is the first chunk of its document.
    fn assign<'t>(&mut self, text: &'t str, first: &str) -> Vec<(&'t str, Part)> {
        match self {
            Self::Documents(fraction) => {
                let hash = hash_parts(&[b"holdout", first.as_bytes()]);
                let held_out = ((hash >> 11) as f64 / (1_u64 << 53) as f64) < *fraction;
                vec![(text, if held_out { Part::Validation } else { Part::Train })]
            }
            Self::Tail(left) => {
                let cut = text.char_indices().nth(*left as usize).map_or(text.len(), |(at, _)| at);
                let (train, validation) = text.split_at(cut);
                *left -= train.chars().count() as u64;
                let pieces = [(train, Part::Train), (validation, Part::Validation)];
                pieces.into_iter().filter(|(piece, _)| !piece.is_empty()).collect()
            }
        }
    }
}

fn for_each_kept(
    config: &PrepareConfig,
    sources: &[Source],
    kept: &Kept,
    mut each: impl FnMut(Chunk) -> Result<()>,
) -> Result<()> {
    let mut document = 0;
    for source in sources {
        for chunk in source.chunks(&config.read)? {
            let chunk = chunk?;
            let ends = chunk.ends_document;
            if kept.keeps(document) {
                each(chunk)?;
            }
            document += usize::from(ends);
        }
    }
    Ok(())
}

/// A piece of text on its way to a part.
struct Piece {
    text: String,
    part: Part,
    ends_document: bool,
}

/// Tokenises batches of pieces in parallel and writes them in order.
struct Job<'a> {
    tokenizer: &'a Tokenizer,
    end_of_document: Option<u32>,
    train: PartWriter,
    validation: PartWriter,
    split: Splitter,
    batch: Vec<Piece>,
    batch_bytes: usize,
    progress: &'a mut dyn FnMut(Progress),
    done: Progress,
}

impl<'a> Job<'a> {
    fn create(
        dir: &Path,
        tokenizer: &'a Tokenizer,
        meta: &Meta,
        split: Splitter,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let part = |part: Part| PartWriter::create(&dir.join(part.name()), meta.dtype, SHARD_TOKENS);
        let source_bytes = meta.sources.iter().map(|source| source.bytes).sum();
        Ok(Self {
            tokenizer,
            end_of_document: meta.end_of_document,
            train: part(Part::Train)?,
            validation: part(Part::Validation)?,
            split,
            batch: Vec::new(),
            batch_bytes: 0,
            progress,
            done: Progress { text_bytes: 0, tokens: 0, source_bytes },
        })
    }

    fn run(&mut self, config: &PrepareConfig, sources: &[Source], kept: &Kept) -> Result<()> {
        // A document that comes in several chunks is assigned by its first one.
        let mut first: Option<String> = None;
        for_each_kept(config, sources, kept, |chunk| {
            let key = first.get_or_insert_with(|| chunk.text.clone());
            let pieces = self.split.assign(&chunk.text, key);
            let last = pieces.len() - 1;
            for (i, (text, part)) in pieces.into_iter().enumerate() {
                // Where a text is cut in two parts, the training part's document ends too.
                let ends_document = chunk.ends_document || i < last;
                self.batch_bytes += text.len();
                self.batch.push(Piece { text: text.to_string(), part, ends_document });
            }
            if chunk.ends_document {
                first = None;
            }
            if self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
        })?;
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let texts: Vec<&str> = self.batch.iter().map(|piece| piece.text.as_str()).collect();
        // The names of special tokens in a corpus are plain text: a document cannot end itself.
        let tokens = self.tokenizer.encode_batch(&texts, Special::Ignore)?;
        for (piece, tokens) in self.batch.iter().zip(tokens) {
            let writer = match piece.part {
                Part::Train => &mut self.train,
                Part::Validation => &mut self.validation,
            };
            writer.push(&tokens, piece.text.len())?;
            if piece.ends_document {
                writer.end_document(self.end_of_document)?;
            }
            self.done.tokens += tokens.len() as u64;
        }
        self.done.text_bytes += self.batch_bytes as u64;
        (self.progress)(self.done);
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }

    fn finish(self) -> Result<(crate::shard::Counts, crate::shard::Counts)> {
        let (train, validation) = (self.train.finish()?, self.validation.finish()?);
        if train.tokens == 0 {
            let reason = "no text is left for training: everything was held out or removed as repeated".into();
            return Err(Error::NothingLeft { reason });
        }
        Ok((train, validation))
    }
}
