//! Token shards: what a text becomes once and every training run maps into memory.
//!
//! A dataset is a directory with `meta.json` and, per part (`train`, `validation`), numbered files of tokens
//! (`u16` while the vocabulary fits, else `u32`, little endian) and `documents.bin` with the position of every
//! document's first token and, last, the number of tokens (`u64`, little endian). Documents follow each other without
//! gaps and may cross from one file into the next.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use loam_formats::Mapped;
use serde::{Deserialize, Serialize};

use crate::dedup::DedupReport;
use crate::{Error, Result};

/// The version of the layout that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Tokens per file; the last one has fewer.
pub const SHARD_TOKENS: u64 = 64 << 20;

const DOCUMENTS: &str = "documents.bin";
const META: &str = "meta.json";

/// How a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
}

impl TokenType {
    /// The smallest type that holds every id of a vocabulary.
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes per token.
    pub fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// Which part of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// For training.
    Train,
    /// For measuring.
    Validation,
}

impl Part {
    /// The name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
        }
    }
}

/// The size of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Tokens, end marks included.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of text: what bits per byte are counted in.
    pub bytes: u64,
}

/// A file that went into a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Where it was.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// The content of `meta.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// [`FORMAT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// How tokens are stored.
    pub dtype: TokenType,
    /// Ids are below this.
    pub vocab_size: usize,
    /// Hash of the tokenizer.
    pub tokenizer: String,
    /// The id after each document, if any.
    pub end_of_document: Option<u32>,
    /// The training part.
    pub train: Counts,
    /// The validation part.
    pub validation: Counts,
    /// The files it was made from.
    pub sources: Vec<SourceRecord>,
    /// The settings it was made with.
    pub settings: serde_json::Value,
    /// What deduplication removed.
    pub dedup: DedupReport,
}

impl Meta {
    /// The size of a part.
    pub fn counts(&self, part: Part) -> Counts {
        match part {
            Part::Train => self.train,
            Part::Validation => self.validation,
        }
    }

    /// Reads `meta.json` of a dataset directory.
    pub fn read(dir: &Path) -> Result<Meta> {
        let path = dir.join(META);
        let bytes = std::fs::read(&path).map_err(|error| Error::io("open", &path, error))?;
        let meta: Meta = serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))?;
        if meta.format_version != FORMAT_VERSION {
            let found = meta.format_version;
            return Err(damaged(&path, format!("format version {found}, expected {FORMAT_VERSION}")));
        }
        Ok(meta)
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(META);
        let mut bytes = serde_json::to_vec_pretty(self).expect("the metadata has only string keys");
        bytes.push(b'\n');
        std::fs::write(&path, bytes).map_err(|error| Error::io("write", &path, error))
    }
}

/// The tokens of one part of a dataset, mapped into memory.
#[derive(Debug)]
pub struct TokenSet {
    name: String,
    dtype: TokenType,
    shard_tokens: u64,
    shards: Vec<Mapped>,
    documents: Mapped,
    counts: Counts,
}

impl TokenSet {
    /// Opens a part of a dataset. With `tokenizer` the dataset must have been made by the tokenizer of that hash.
    pub fn open(dir: &Path, part: Part, tokenizer: Option<&str>) -> Result<TokenSet> {
        let meta = Meta::read(dir)?;
        if let Some(expected) = tokenizer
            && meta.tokenizer != expected
        {
            let (found, expected) = (meta.tokenizer, expected.to_string());
            return Err(Error::OtherTokenizer { dir: dir.to_path_buf(), found, expected });
        }
        Self::map(&dir.join(part.name()), part.name(), meta.dtype, meta.counts(part), SHARD_TOKENS)
    }

    fn map(dir: &Path, name: &str, dtype: TokenType, counts: Counts, shard_tokens: u64) -> Result<TokenSet> {
        let index = dir.join(DOCUMENTS);
        let documents = open_sized(&index, (counts.documents + 1) * 8)?;
        let mut shards = Vec::new();
        for number in 0..counts.tokens.div_ceil(shard_tokens) {
            let tokens = shard_tokens.min(counts.tokens - number * shard_tokens);
            shards.push(open_sized(&shard_path(dir, number), tokens * dtype.bytes() as u64)?);
        }
        let set = TokenSet { name: name.to_string(), dtype, shard_tokens, shards, documents, counts };
        let last = set.offset(counts.documents);
        if last != counts.tokens {
            return Err(damaged(&index, format!("documents end at token {last}, expected {}", counts.tokens)));
        }
        Ok(set)
    }

    /// `train` or `validation`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The positions of a document's tokens.
    pub fn document(&self, index: u64) -> Range<u64> {
        self.offset(index)..self.offset(index + 1)
    }

    /// Appends the tokens of a range to `out`.
    pub fn read(&self, range: Range<u64>, out: &mut Vec<u32>) {
        let mut at = range.start;
        while at < range.end {
            let shard = at / self.shard_tokens;
            let end = range.end.min((shard + 1) * self.shard_tokens);
            let width = self.dtype.bytes();
            let first = (at % self.shard_tokens) as usize * width;
            let bytes = &self.shards[shard as usize][first..first + (end - at) as usize * width];
            match self.dtype {
                TokenType::U16 => {
                    out.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))))
                }
                TokenType::U32 => {
                    out.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                }
            }
            at = end;
        }
    }

    fn offset(&self, index: u64) -> u64 {
        let at = index as usize * 8;
        let bytes: [u8; 8] = self.documents[at..at + 8].try_into().expect("eight bytes were taken");
        u64::from_le_bytes(bytes)
    }
}

/// Maps a file whose size is known.
fn open_sized(path: &Path, expected: u64) -> Result<Mapped> {
    let mapped = Mapped::open(path)?;
    if mapped.len() as u64 != expected {
        return Err(damaged(path, format!("{} bytes, expected {expected}", mapped.len())));
    }
    Ok(mapped)
}

fn shard_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("shard-{number:05}.bin"))
}

fn damaged(path: &Path, reason: impl ToString) -> Error {
    Error::Shard { path: path.to_path_buf(), reason: reason.to_string() }
}

/// Writes the files of one part, token by token.
pub(crate) struct PartWriter {
    dir: PathBuf,
    dtype: TokenType,
    shard_tokens: u64,
    shard: Option<BufWriter<File>>,
    shard_file: PathBuf,
    documents: BufWriter<File>,
    counts: Counts,
    open: bool,
}

impl PartWriter {
    pub(crate) fn create(dir: &Path, dtype: TokenType, shard_tokens: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
        let index = dir.join(DOCUMENTS);
        let documents = File::create_new(&index).map_err(|error| Error::io("write", &index, error))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            dtype,
            shard_tokens,
            shard: None,
            shard_file: PathBuf::new(),
            documents: BufWriter::new(documents),
            counts: Counts::default(),
            open: false,
        })
    }

    /// Appends tokens of the current document, which begins here if none is open.
    pub(crate) fn push(&mut self, tokens: &[u32], text_bytes: usize) -> Result<()> {
        if !self.open {
            self.open = true;
            self.write_offset()?;
            self.counts.documents += 1;
        }
        self.counts.bytes += text_bytes as u64;
        let mut rest = tokens;
        while !rest.is_empty() {
            let room = self.shard_tokens - self.counts.tokens % self.shard_tokens;
            if room == self.shard_tokens {
                self.next_shard()?;
            }
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            let bytes: Vec<u8> = match self.dtype {
                TokenType::U16 => now.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect(),
                TokenType::U32 => now.iter().flat_map(|&token| token.to_le_bytes()).collect(),
            };
            let shard = self.shard.as_mut().expect("a shard is open while there is room in it");
            shard.write_all(&bytes).map_err(|error| Error::io("write", &self.shard_file, error))?;
            self.counts.tokens += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Ends the current document with its end mark, if one is open.
    pub(crate) fn end_document(&mut self, end: Option<u32>) -> Result<()> {
        if self.open {
            self.push(end.as_slice(), 0)?;
            self.open = false;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Counts> {
        self.end_document(None)?;
        self.write_offset()?;
        self.close_shard()?;
        self.documents.flush().map_err(|error| Error::io("write", &self.dir.join(DOCUMENTS), error))?;
        Ok(self.counts)
    }

    fn write_offset(&mut self) -> Result<()> {
        let offset = self.counts.tokens.to_le_bytes();
        self.documents.write_all(&offset).map_err(|error| Error::io("write", &self.dir.join(DOCUMENTS), error))
    }

    fn next_shard(&mut self) -> Result<()> {
        self.close_shard()?;
        self.shard_file = shard_path(&self.dir, self.counts.tokens / self.shard_tokens);
        let file = File::create_new(&self.shard_file).map_err(|error| Error::io("write", &self.shard_file, error))?;
        self.shard = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(())
    }

    fn close_shard(&mut self) -> Result<()> {
        match self.shard.take() {
            Some(mut shard) => shard.flush().map_err(|error| Error::io("write", &self.shard_file, error)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_survive_shards_that_are_smaller_than_they_are() {
        for dtype in [TokenType::U16, TokenType::U32] {
            for shard_tokens in [1, 3, 7, 100] {
                let dir = tempfile::tempdir().unwrap();
                let part = dir.path().join("train");
                let mut writer = PartWriter::create(&part, dtype, shard_tokens).unwrap();
                let documents: Vec<Vec<u32>> = (0..9).map(|i| (i * 100..i * 100 + i % 5 + 1).collect()).collect();
                for document in &documents {
                    let (front, back) = document.split_at(document.len() / 2);
                    writer.push(front, front.len()).unwrap();
                    writer.push(back, back.len()).unwrap();
                    writer.end_document(Some(7)).unwrap();
                }
                let counts = writer.finish().unwrap();
                let set = TokenSet::map(&part, "train", dtype, counts, shard_tokens).unwrap();
                assert_eq!(set.counts().documents, 9);
                for (i, document) in documents.iter().enumerate() {
                    let mut read = Vec::new();
                    set.read(set.document(i as u64), &mut read);
                    assert_eq!(read.split_last(), Some((&7, document.as_slice())));
                }
                let mut all = Vec::new();
                set.read(0..counts.tokens, &mut all);
                assert_eq!(all.len() as u64, counts.tokens);
            }
        }
    }

    #[test]
    fn a_shard_that_was_cut_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("train");
        let mut writer = PartWriter::create(&part, TokenType::U16, 10).unwrap();
        writer.push(&[1, 2, 3], 3).unwrap();
        let counts = writer.finish().unwrap();
        std::fs::write(shard_path(&part, 0), [0; 5]).unwrap();
        let error = TokenSet::map(&part, "train", TokenType::U16, counts, 10).unwrap_err();
        assert!(error.to_string().contains("5 bytes, expected 6"), "{error}");
        assert!(error.hint().unwrap().contains("prepare the data again"));
    }

    #[test]
    fn the_token_type_follows_the_vocabulary() {
        assert_eq!(TokenType::for_vocab(1 << 16), TokenType::U16);
        assert_eq!(TokenType::for_vocab((1 << 16) + 1), TokenType::U32);
    }
}
