//! What can be wrong with a model, a text or a setting.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Files(#[from] loam_formats::Error),
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] loam_models::Error),
    /// Settings that contradict each other, or the model.
    #[error("{message}")]
    Setting {
        /// What is wrong.
        message: String,
        /// What to try.
        hint: String,
    },
    /// A file that does not say what it should.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Inputs of a layer that no calibration text reaches.
    #[error("the inputs of {name} are not finite")]
    NotFinite {
        /// The layer.
        name: String,
    },
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Files(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Setting { hint, .. } => Some(hint.clone()),
            Self::File { .. } => Some(
                "importance matrices are written by `loam quantize --save-imatrix` and llama.cpp's llama-imatrix"
                    .into(),
            ),
            Self::NotFinite { .. } => Some("the model's weights are damaged, or its activations overflow".into()),
        }
    }

    pub(crate) fn setting(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Setting { message: message.into(), hint: hint.into() }
    }
}
