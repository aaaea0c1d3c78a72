//! What an application may ask of a language model.

use crate::{Message, Sampling};
use serde::{Deserialize, Serialize};

/// What can go wrong when a model is asked for something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sampling setting has no meaning.
    #[error("sampling setting '{name}' is out of range: expected {expected}, found {found}")]
    InvalidSampling {
        /// The setting.
        name: String,
        /// Its range.
        expected: String,
        /// The value given.
        found: String,
    },
    /// The input does not fit into the model's context.
    #[error("the input has {found} tokens, more than the model's context of {limit}")]
    TooLong {
        /// Tokens of the input.
        found: usize,
        /// The model's context.
        limit: usize,
    },
    /// A scripted model has no answer left.
    #[error("the scripted model has no answer left after {given}")]
    ScriptEnded {
        /// Answers given so far.
        given: usize,
    },
    /// The engine failed; its own error says why.
    #[error("{0}")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps an engine's own error.
    pub fn engine(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Engine(error.into())
    }

    /// A way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TooLong { limit, .. } => Some(format!("shorten the input to fewer than {limit} tokens")),
            _ => None,
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop text appeared.
    Stop,
    /// The limit of tokens was reached.
    Length,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The text, without the stop text or the end token.
    pub text: String,
    /// The ids behind it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The log-probability of each token, if the engine was asked to keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Sum of the log-probabilities (natural logarithm) of the continuation's tokens.
    pub log_likelihood: f64,
    /// Tokens of the continuation.
    pub tokens: usize,
    /// Whether greedy decoding would have produced exactly the continuation.
    pub is_greedy: bool,
}

/// A model that writes text.
pub trait Generate {
    /// The assistant's next turn in a conversation. `on_text` receives the text as it appears, in whole characters;
    /// the pieces together are the completion's text.
    fn generate(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion, Error>;

    /// The continuation of a plain text.
    fn complete(&self, prompt: &str, sampling: &Sampling, on_text: &mut dyn FnMut(&str)) -> Result<Completion, Error>;
}

/// A model that says how likely a text is.
pub trait Score {
    /// How likely `continuation` is after `context`.
    fn log_likelihood(&self, context: &str, continuation: &str) -> Result<Scored, Error>;
}

/// A model that turns texts into vectors.
pub trait Embed {
    /// One vector per text, all of the same length.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Error>;
}
