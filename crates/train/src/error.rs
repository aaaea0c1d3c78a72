//! What can go wrong with a training run.

use std::path::{Path, PathBuf};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A recipe is unreadable or contradicts itself.
    #[error("{}: {}", path.display(), list(problems))]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<String>,
        /// A way out.
        hint: Option<String>,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Files(#[from] loam_formats::Error),
    /// The model could not be made, opened, run or written.
    #[error(transparent)]
    Model(#[from] loam_models::Error),
    /// The adapter could not be made, opened or written.
    #[error(transparent)]
    Adapter(#[from] loam_peft::Error),
    /// The tokenizer could not be trained, opened or written.
    #[error(transparent)]
    Tokenizer(#[from] loam_tokenizer::Error),
    /// The data could not be read or prepared.
    #[error(transparent)]
    Data(#[from] loam_data::Error),
    /// The data has nothing to train on, or not in the form that the stage needs.
    #[error("{what}")]
    Examples {
        /// What is wrong, and where.
        what: String,
        /// A way out.
        hint: String,
    },
    /// The loss or the gradient is no number any more.
    #[error("step {step}: the {what} is {value}; training has diverged")]
    Diverged {
        /// The optimizer step, the first being 1.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A trainable tensor gets no gradient: the model is wired wrongly for this objective.
    #[error("step {step}: the gradient of `{name}` {problem}")]
    Gradient {
        /// The optimizer step, the first being 1.
        step: u64,
        /// The parameter.
        name: String,
        /// What is wrong with its gradient.
        problem: &'static str,
    },
    /// A run directory cannot be used for what was asked.
    #[error("{}: {problem}", path.display())]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// A way out.
        hint: String,
    },
    /// A checkpoint is damaged or belongs to another model.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Anything about threads that the system refused.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The system's answer.
        reason: String,
    },
}

impl Error {
    /// A way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Recipe { hint, .. } => Some(hint.clone().unwrap_or_else(|| {
                "`loam config default STAGE` prints every key with its default and what it means".into()
            })),
            Self::Files(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Adapter(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Examples { hint, .. } | Self::RunDir { hint, .. } => Some(hint.clone()),
            Self::Diverged { .. } => Some(
                "lower train.lr, lengthen train.warmup, or set train.clip = 1.0; the last checkpoint is intact".into(),
            ),
            Self::Gradient { .. } => {
                Some("every trainable tensor must take part in the loss; please report this".into())
            }
            Self::Checkpoint { .. } => {
                Some("delete that checkpoint to resume from the one before it, or start the run again".into())
            }
            Self::Threads { .. } => Some("set train.threads to the number of cores".into()),
        }
    }

    pub(crate) fn recipe(path: &Path, problem: impl Into<String>) -> Self {
        Self::Recipe { path: path.into(), problems: vec![problem.into()], hint: None }
    }

    pub(crate) fn checkpoint(path: &Path, problem: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.into(), problem: problem.into() }
    }
}

/// One problem as it is, several as a list.
fn list(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("{} problems{}", many.len(), many.iter().map(|p| format!("\n  - {p}")).collect::<String>()),
    }
}
