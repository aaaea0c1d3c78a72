//! What can go wrong with a tokenizer or a chat template.

use std::path::PathBuf;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that a file, a text or a setting can do wrong here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] loam_formats::Error),
    /// A tokenizer file is damaged or of an unknown kind.
    #[error("{origin}: not a valid tokenizer: {reason}")]
    Invalid {
        /// The file, or where the bytes came from.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A text file is not UTF-8.
    #[error("{}: not UTF-8 text (first invalid byte at offset {offset})", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first invalid byte is.
        offset: u64,
    },
    /// Nothing to train on.
    #[error("the training text is empty")]
    EmptyText,
    /// The vocabulary cannot even hold the alphabet.
    #[error("vocab_size {vocab_size} is too small: {reason}")]
    VocabTooSmall {
        /// The size asked for.
        vocab_size: usize,
        /// What it must hold.
        reason: String,
    },
    /// A setting of the training has no meaning.
    #[error("invalid tokenizer setting: {0}")]
    Setting(String),
    /// The source of the training text failed.
    #[error("cannot read the training text: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A text cannot be encoded with this tokenizer.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// An id outside of the vocabulary.
    #[error("token id {id} is not in the vocabulary of {vocab_size} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// One more than the largest id.
        vocab_size: usize,
    },
    /// A chat template is not valid, or refused a conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// A chat template renders a conversation's beginning differently once more messages follow, so that the place of an
    /// assistant's turn cannot be told.
    #[error("chat template: message {index} is rendered differently when other messages follow it")]
    UnstableTemplate {
        /// Index of the assistant message whose place is unclear.
        index: usize,
    },
}

impl Error {
    /// A way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::File(error) => return error.hint(),
            Self::Invalid { .. } => "a tokenizer is a tokenizer.json file as the `tokenizers` library writes it",
            Self::NotUtf8 { .. } => "convert the file to UTF-8, or check that it is a text file at all",
            Self::EmptyText => "check that the files exist under the given pattern and contain text",
            Self::VocabTooSmall { .. } => "choose a larger vocab_size",
            Self::UnstableTemplate { .. } => {
                "train on each assistant turn as a conversation of its own, or use a template that does not rewrite earlier turns"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}
