//! What ends a command early: one message, perhaps a hint.

use std::io;

/// Why a command could not do its work.
#[derive(Debug)]
pub enum Failure {
    /// Standard output was closed by its reader; there is nothing to complain about.
    BrokenPipe,
    /// An error to show.
    Said {
        /// What, where, and why.
        message: String,
        /// What to try.
        hint: Option<String>,
    },
}

impl Failure {
    /// An error without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Said { message: message.into(), hint: None }
    }

    /// An error with a hint.
    pub fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Said { message: message.into(), hint: Some(hint.into()) }
    }

    /// An error of reading or writing a stream or a file, with what was attempted.
    pub fn io(what: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            io::ErrorKind::InvalidData => Self::with_hint(
                format!("{what}: not UTF-8 text"),
                "convert it to UTF-8, or check that it is text at all",
            ),
            _ => Self::new(format!("{what}: {error}")),
        }
    }
}

/// Errors of the libraries, which know a way out.
pub trait Hinted: std::error::Error {
    /// What to try.
    fn way_out(&self) -> Option<String>;
}

impl<E: Hinted> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Said { message: error.to_string(), hint: error.way_out() }
    }
}

impl Hinted for loam_formats::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_tokenizer::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_data::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_serve::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_models::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_compress::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_peft::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_chat::Error {
    fn way_out(&self) -> Option<String> {
        // An engine's error inside of it has a hint of its own.
        let inner = std::error::Error::source(self).and_then(|e| e.downcast_ref::<loam_infer::Error>());
        self.hint().or_else(|| inner.and_then(loam_infer::Error::hint))
    }
}

impl Hinted for loam_infer::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for loam_train::Error {
    fn way_out(&self) -> Option<String> {
        self.hint()
    }
}

impl Hinted for serde_json::Error {
    fn way_out(&self) -> Option<String> {
        None
    }
}
