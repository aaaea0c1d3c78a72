//! What can be wrong with a model on disk.

use std::path::PathBuf;

use thiserror::Error;

/// Errors of this crate.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Files(#[from] loam_formats::Error),
    /// `model_type` names no family that Loam knows.
    #[error("unknown model family `{family}`: loam knows {known}")]
    UnknownFamily {
        /// What the configuration says.
        family: String,
        /// What it could say.
        known: String,
    },
    /// `general.architecture` of a GGUF file names nothing that Loam knows.
    #[error("{path}: the architecture `{name}` is not known; loam reads {known}")]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// What it says.
        name: String,
        /// What it could say.
        known: String,
    },
    /// A model that no GGUF file can describe.
    #[error("this {family} model cannot be written as GGUF: {problem}")]
    NotInGguf {
        /// The family.
        family: &'static str,
        /// What the format lacks.
        problem: String,
    },
    /// A key of `config.json` is missing, of the wrong type, or contradicts another.
    #[error("config.json: `{key}` {problem}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A weight that the configuration implies is not in the file.
    #[error("{path}: weight `{name}` is missing")]
    MissingWeight {
        /// Where it was looked for.
        path: PathBuf,
        /// Its name in the file.
        name: String,
        /// The most similar name that is there.
        nearest: Option<String>,
    },
    /// A weight that the configuration has no place for.
    #[error("{path}: weight `{name}` has no place in a {family} model of this configuration")]
    UnexpectedWeight {
        /// The file.
        path: PathBuf,
        /// The weight.
        name: String,
        /// The family.
        family: &'static str,
        /// The most similar name that has a place.
        nearest: Option<String>,
    },
    /// A weight of another shape than the configuration implies.
    #[error("{path}: weight `{name}` has shape {found:?}, the configuration implies {expected:?}")]
    WeightShape {
        /// The file.
        path: PathBuf,
        /// The weight.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape implied.
        expected: Vec<usize>,
    },
    /// A tensor of the input is outside of what the model takes.
    #[error("{0}")]
    Input(String),
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Files(error) => error.hint(),
            Self::UnknownFamily { .. } => {
                Some("convert the model, or set `model_type` to the family it follows".into())
            }
            Self::UnknownArchitecture { .. } => Some(
                "convert the original model with `loam model convert`, if it is of a family that loam knows".into(),
            ),
            Self::NotInGguf { .. } => Some("keep it as a directory: `loam model convert MODEL DIR`".into()),
            Self::Config { .. } => Some("compare config.json with the checkpoint it came with".into()),
            Self::MissingWeight { nearest, .. } | Self::UnexpectedWeight { nearest, .. } => {
                nearest.as_ref().map(|name| format!("the nearest name is `{name}`"))
            }
            Self::WeightShape { .. } => Some("config.json and the weights belong to different models".into()),
            Self::Input(_) => Some("`loam model show` prints the vocabulary and the context of a model".into()),
        }
    }

    pub(crate) fn config(key: &str, problem: impl Into<String>) -> Self {
        Self::Config { key: key.into(), problem: problem.into() }
    }
}
