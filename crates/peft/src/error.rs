//! What can be wrong with an adapter.

use std::path::PathBuf;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Files(#[from] loam_formats::Error),
    /// The model could not be run or written.
    #[error(transparent)]
    Model(#[from] loam_models::Error),
    /// A name that nothing in the model has.
    #[error("`{name}` ({setting}) matches no {what} of the {family} model")]
    NoTarget {
        /// The name.
        name: String,
        /// The setting that it stands in.
        setting: &'static str,
        /// What was looked for.
        what: &'static str,
        /// The model's family.
        family: String,
        /// The nearest name that is there, or a few of those there are.
        hint: String,
    },
    /// Settings that contradict each other, or the model.
    #[error("{0}")]
    Setting(String),
    /// A file that does not say what it should.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to try.
        hint: String,
    },
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Files(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::NoTarget { hint, .. } | Self::File { hint, .. } => Some(hint.clone()),
            Self::Setting(_) => None,
        }
    }
}
