//! What can go wrong with data, said once and clearly.

use loam_formats::nearest;
use std::path::{Path, PathBuf};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that a text, a table, a shard or a disk can do wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written or mapped.
    #[error(transparent)]
    Files(#[from] loam_formats::Error),
    /// A text could not be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] loam_tokenizer::Error),
    /// A pattern matches no file.
    #[error("no file matches '{pattern}'")]
    NoMatch {
        /// The pattern as given.
        pattern: String,
    },
    /// A pattern that is not valid.
    #[error("'{pattern}' is not a valid file pattern: {reason}")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// Where and why.
        reason: String,
    },
    /// A file whose name does not say what is in it.
    #[error("{}: unknown kind of text file (expected {SUPPORTED})", path.display())]
    UnknownKind {
        /// The file.
        path: PathBuf,
    },
    /// A file with nothing in it.
    #[error("{}: the file has no text in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// NUL bytes where text is expected.
    #[error("{}: not a text file: byte {offset} is NUL", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// Position in the (decompressed) file.
        offset: u64,
    },
    /// Bytes that are not UTF-8.
    #[error("{}: not valid UTF-8 at {place}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Byte offset or row.
        place: String,
    },
    /// A row that cannot be read.
    #[error("{}: {place}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line or row, counted from 1.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The column of texts is not there.
    #[error("{}: {place} has no column '{column}' (found: {found})", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// Where it was looked for.
        place: String,
        /// The column asked for.
        column: String,
        /// The columns that are there.
        found: String,
        /// The most similar one.
        nearest: Option<String>,
    },
    /// A row lacks a field.
    #[error("{}: {place} has no field '{field}' (found: {found})", path.display())]
    NoField {
        /// The file.
        path: PathBuf,
        /// Line or row, counted from 1.
        place: String,
        /// The field asked for.
        field: Box<str>,
        /// The fields that are there.
        found: Box<str>,
        /// The most similar one.
        nearest: Option<Box<str>>,
    },
    /// A task that a tokenizer has no token for.
    #[error("the tokenizer has no token {token}, which {needed_for} needs")]
    NoToken {
        /// The token.
        token: String,
        /// What for.
        needed_for: &'static str,
    },
    /// A label that training did not have.
    #[error("'{label}' is none of the labels: {known}")]
    UnknownLabel {
        /// The label.
        label: Box<str>,
        /// Those there are.
        known: Box<str>,
    },
    /// A setting that makes no sense.
    #[error("{key} = {found} is not possible: expected {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Shards made with another tokenizer.
    #[error("{}: these tokens were made with tokenizer {found}, but tokenizer {expected} is in use", dir.display())]
    OtherTokenizer {
        /// The directory of shards.
        dir: PathBuf,
        /// Hash in its `meta.json`.
        found: String,
        /// Hash of the tokenizer in use.
        expected: String,
    },
    /// A shard directory that is damaged.
    #[error("{}: damaged token shards: {reason}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// Too little text for what is asked.
    #[error("{what} has {found} tokens, but at least {needed} are needed for a sequence length of {seq_len}")]
    TooShort {
        /// Training or validation part.
        what: String,
        /// Tokens there.
        found: u64,
        /// Tokens needed.
        needed: u64,
        /// The sequence length.
        seq_len: usize,
    },
    /// An answer that cannot be trained on.
    #[error("row {number}: {problem}")]
    Answer {
        /// Its row, counted from 1 through all files.
        number: usize,
        /// What is wrong with it.
        problem: String,
        /// A way out.
        hint: &'static str,
    },
    /// Nothing left to train on.
    #[error("{reason}")]
    NothingLeft {
        /// Why.
        reason: String,
    },
}

const SUPPORTED: &str = ".txt, .md, .json, .jsonl, .csv or .parquet; text files also with .gz or .zst";

impl Error {
    /// A way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Files(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::NoMatch { .. } => Some("paths are relative to the current directory; quote patterns with '*'".into()),
            Self::Empty { .. } => Some("remove the file from the list or give it some text".into()),
            Self::Binary { .. } => Some("only text can be trained on: extract the text first".into()),
            Self::NotUtf8 { path, .. } => {
                Some(format!("convert it first, for example: iconv -f LATIN1 -t UTF-8 {}", path.display()))
            }
            Self::NoColumn { nearest: Some(name), .. } => Some(format!("did you mean text_column = \"{name}\"?")),
            Self::NoColumn { .. } => Some("name the column of texts with text_column".into()),
            Self::NoField { field, nearest: Some(name), .. } => {
                Some(format!("did you mean '{name}'? The field to read in place of '{field}' can be set"))
            }
            Self::NoField { field, .. } => Some(format!("set which field to read in place of '{field}'")),
            Self::Malformed { .. } => {
                Some("correct that row or leave it out; `loam data inspect FILE` shows how rows are read".into())
            }
            Self::NoToken { .. } => Some("use a tokenizer made for this task, or add the token to this one".into()),
            Self::OtherTokenizer { .. } => {
                Some("prepare the data again with this tokenizer, or use the tokenizer it was prepared with".into())
            }
            Self::Shard { path, .. } => {
                let dir = path.parent().unwrap_or(path);
                Some(format!("delete {} and prepare the data again", dir.display()))
            }
            Self::Answer { hint, .. } => Some((*hint).into()),
            Self::TooShort { .. } => Some("give more text or set a smaller sequence length".into()),
            _ => None,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Files(loam_formats::Error::io(action, path, source))
    }

    pub(crate) fn malformed(path: &Path, place: impl ToString, reason: impl ToString) -> Self {
        Self::Malformed { path: path.to_path_buf(), place: place.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn no_field<'a>(
        path: &Path,
        place: &str,
        field: &str,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Self {
        Self::NoField {
            path: path.to_path_buf(),
            place: place.to_string(),
            field: field.into(),
            found: names.clone().collect::<Vec<_>>().join(", ").into(),
            nearest: nearest(field, names).map(Into::into),
        }
    }

    pub(crate) fn no_column<'a>(
        path: &Path,
        place: impl ToString,
        column: &str,
        names: impl Iterator<Item = &'a str>,
    ) -> Self {
        let names: Vec<&str> = names.collect();
        let nearest = match names[..] {
            [only] => Some(only.to_string()),
            _ => nearest(column, names.iter().copied()),
        };
        Self::NoColumn {
            path: path.to_path_buf(),
            place: place.to_string(),
            column: column.to_string(),
            found: if names.is_empty() { "none".into() } else { names.join(", ") },
            nearest,
        }
    }
}
