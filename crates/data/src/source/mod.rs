//! Where texts come from: files found by patterns, read as streams.
//!
//! A source hands out [`Chunk`]s: whole documents, or pieces of a document that is larger than a block, so that memory
//! stays bounded whatever the size of a file.

mod columns;
mod parquet;
mod records;
mod text;
mod zstd_pages;

pub use records::{Record, Records};

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Texts are read in blocks of about this many bytes; a longer document comes in several chunks.
pub const BLOCK_BYTES: usize = 1 << 20;

/// How a plain text file becomes documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextSplit {
    /// The file is one document.
    #[default]
    File,
    /// Empty lines separate documents.
    EmptyLine,
    /// The mark `<|endoftext|>` separates documents.
    EndOfText,
}

/// How to read sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOptions {
    /// The column of a table (jsonl, csv, parquet) that holds the texts.
    pub text_column: String,
    /// How plain text files become documents.
    pub text_split: TextSplit,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { text_column: "text".into(), text_split: TextSplit::File }
    }
}

/// A document, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The text, never empty.
    pub text: String,
    /// True for the last piece of its document.
    pub ends_document: bool,
}

/// The chunks of a source, in order.
pub type Chunks = Box<dyn Iterator<Item = Result<Chunk>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Json,
    JsonLines,
    Csv,
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One input file.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    kind: Kind,
    compression: Compression,
    bytes: u64,
    modified: Option<SystemTime>,
}

/// Finds the files of some paths or patterns (`corpus/*.txt`, `data/**/*.jsonl.gz`), in the order of the patterns and
/// sorted by name within each; a file found twice counts once.
pub fn find<S: AsRef<str>>(patterns: &[S]) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = Vec::new();
    for pattern in patterns.iter().map(AsRef::as_ref) {
        // A name may contain characters that mean something in a pattern; an existing file is meant as it stands.
        let mut paths = vec![PathBuf::from(pattern)];
        if !paths[0].exists() && pattern.contains(['*', '?', '[']) {
            paths = expand(pattern)?;
            if paths.is_empty() {
                return Err(Error::NoMatch { pattern: pattern.to_string() });
            }
        }
        for path in paths {
            if !sources.iter().any(|source| source.path == path) {
                sources.push(Source::open(&path)?);
            }
        }
    }
    Ok(sources)
}

fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let bad = |reason: String| Error::Pattern { pattern: pattern.to_string(), reason };
    let mut paths = Vec::new();
    for path in glob::glob(pattern).map_err(|error| bad(error.to_string()))? {
        let path = path.map_err(|error| bad(error.to_string()))?;
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

impl Source {
    /// A source for one file, whose name says its kind.
    pub fn open(path: &Path) -> Result<Source> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        if metadata.is_dir() {
            return Err(Error::io("open", path, std::io::ErrorKind::IsADirectory.into()));
        }
        let (kind, compression) = kind_of(path).ok_or_else(|| Error::UnknownKind { path: path.to_path_buf() })?;
        if metadata.len() == 0 {
            return Err(Error::Empty { path: path.to_path_buf() });
        }
        let modified = metadata.modified().ok();
        Ok(Source { path: path.to_path_buf(), kind, compression, bytes: metadata.len(), modified })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When it was last changed, where the system knows.
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
    }

    /// Its documents, as a stream. A file without any text is an error at its end.
    pub fn chunks(&self, options: &ReadOptions) -> Result<Chunks> {
        let column = options.text_column.clone();
        let chunks: Chunks = match self.kind {
            Kind::Text => Box::new(text::TextChunks::new(&self.path, self.reader()?, options.text_split)),
            Kind::Json => Box::new(columns::json_texts(&self.path, self.reader()?, &column)?.into_iter()),
            Kind::JsonLines => Box::new(columns::JsonLines::new(&self.path, self.reader()?, column)),
            Kind::Csv => Box::new(columns::Csv::new(&self.path, self.reader()?, &column)?),
            Kind::Parquet => Box::new(parquet::ParquetColumn::new(&self.path, &column)?),
        };
        Ok(Box::new(RefuseEmpty { chunks, path: Some(self.path.clone()) }))
    }

    fn reader(&self) -> Result<Box<dyn Read>> {
        let file = File::open(&self.path).map_err(|error| Error::io("open", &self.path, error))?;
        let file = BufReader::with_capacity(BLOCK_BYTES / 4, file);
        Ok(match self.compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Compression::Zstd => Box::new(text::ZstdReader::new(file)),
        })
    }
}

/// Turns "nothing at all" into an error, because a file that contributes nothing is a mistake of its owner.
struct RefuseEmpty {
    chunks: Chunks,
    path: Option<PathBuf>,
}

impl Iterator for RefuseEmpty {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.chunks.next(), self.path.take()) {
            (None, Some(path)) => Some(Err(Error::Empty { path })),
            (next, _) => next,
        }
    }
}

fn kind_of(path: &Path) -> Option<(Kind, Compression)> {
    let mut name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let mut compression = Compression::None;
    for (ending, kind) in [(".gz", Compression::Gzip), (".zst", Compression::Zstd)] {
        if let Some(stem) = name.strip_suffix(ending) {
            name = stem.to_string();
            compression = kind;
            break;
        }
    }
    let kind = match name.rsplit_once('.')?.1 {
        "txt" | "md" | "text" => Kind::Text,
        "json" => Kind::Json,
        "jsonl" | "ndjson" => Kind::JsonLines,
        "csv" => Kind::Csv,
        "parquet" if compression == Compression::None => Kind::Parquet,
        _ => return None,
    };
    Some((kind, compression))
}

/// Checks that a text has no NUL; `offset` is where it starts in its file.
fn refuse_nul(path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    match bytes.iter().position(|&byte| byte == 0) {
        Some(at) => Err(Error::Binary { path: path.to_path_buf(), offset: offset + at as u64 }),
        None => Ok(()),
    }
}
