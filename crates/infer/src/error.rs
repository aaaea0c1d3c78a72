//! What can go wrong when a model writes.

use std::path::PathBuf;

use thiserror::Error;

/// Errors of this crate.
#[derive(Debug, Error)]
pub enum Error {
    /// A model directory could not be read.
    #[error(transparent)]
    Files(#[from] loam_formats::Error),
    /// The model could not be opened or run.
    #[error(transparent)]
    Model(#[from] loam_models::Error),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Tokenizer(#[from] loam_tokenizer::Error),
    /// An adapter does not fit.
    #[error(transparent)]
    Adapter(#[from] loam_peft::Error),
    /// A request names an adapter that is not there.
    #[error("there is no such adapter, or it was unloaded")]
    NoAdapter,
    /// A setting without meaning, or an input longer than the context.
    #[error(transparent)]
    Chat(#[from] loam_chat::Error),
    /// The model's output cannot be sampled from.
    #[error("the model gave no finite logit at step {step}")]
    NoFiniteLogit {
        /// Generation step, from 0.
        step: u64,
    },
    /// Nothing to continue.
    #[error("the prompt is empty, and the tokenizer has no start token to begin with")]
    EmptyPrompt,
    /// A decoder that nothing tells where to begin.
    #[error("config.json has no decoder_start_token_id, and the tokenizer no end token to start from")]
    NoStart,
    /// A setting without meaning.
    #[error("`{key}` {problem}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A grammar that is not valid or not supported, or that became too complex on the way.
    #[error("the constraint cannot be kept: {reason}")]
    Grammar {
        /// What is wrong.
        reason: String,
    },
    /// A JSON schema that is not valid, not supported, or that nothing satisfies.
    #[error("the JSON schema cannot be kept: #{path}: {reason}")]
    Schema {
        /// The innermost part that is at fault, as a JSON pointer.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A text that could never be written, however long it waited.
    #[error("the text may come to {needed} tokens, more than the {budget} whose keys and values are held")]
    BudgetTooSmall {
        /// Tokens that it may come to.
        needed: usize,
        /// The budget.
        budget: usize,
    },
    /// Messages, but no way to put them into text.
    #[error("the model has no chat template")]
    NoChatTemplate,
    /// The files that say how a model embeds texts do not make sense, or ask for what is not there.
    #[error("{}: cannot embed texts: {reason}", path.display())]
    Sentence {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A setting of embedding without meaning for the model.
    #[error("{0}")]
    EmbedSetting(String),
    /// The tokenizer knows ids that the model does not.
    #[error("the tokenizer gave id {token}, but the model's vocabulary ends at {vocab_size}")]
    VocabularyMismatch {
        /// The id.
        token: u32,
        /// Size of the model's vocabulary.
        vocab_size: usize,
    },
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Files(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Adapter(error) => error.hint(),
            Self::NoAdapter => None,
            Self::Chat(error) => error.hint(),
            Self::NoFiniteLogit { .. } => {
                Some("the weights are damaged, or training diverged: use an earlier checkpoint".into())
            }
            Self::EmptyPrompt => Some("give the model at least one token to continue".into()),
            Self::NoStart => Some("set `decoder_start_token_id` in config.json".into()),
            Self::Setting { .. } => None,
            Self::Grammar { .. } => {
                Some("grammars are JSON schemas, regular expressions without look-around, Lark, or GBNF".into())
            }
            Self::Schema { .. } => Some("leave the keyword out, or say the same with others".into()),
            Self::BudgetTooSmall { .. } => Some("ask for fewer tokens, or hold more (`--kv-tokens`)".into()),
            Self::NoChatTemplate => {
                Some("continue a plain text instead (`loam generate`), or train the model on chats first".into())
            }
            Self::Sentence { .. } => Some(
                "Loam reads the sentence-transformers layout (modules.json, 1_Pooling/config.json, ...), and any model                  of one stack without it"
                    .into(),
            ),
            Self::EmbedSetting(_) => Some("leave the setting out to embed as the model's files say".into()),
            Self::VocabularyMismatch { .. } => Some("model and tokenizer do not belong together".into()),
        }
    }
}

/// Keeps what `loam-chat` knows as it is and wraps the rest.
impl From<Error> for loam_chat::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Chat(error) => error,
            other => Self::engine(other),
        }
    }
}
