//! What can go wrong: before the server runs ([`Error`]), and in answer to a request ([`ApiError`]).

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model could not be opened.
    #[error(transparent)]
    Model(#[from] loam_infer::Error),
    /// The address is taken or not ours.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The system refused something else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The file of API keys makes no sense.
    #[error("{}, line {line}: {reason}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// An adapter cannot be loaded.
    #[error("adapter {name}: {reason}")]
    Adapter {
        /// What it is to be called.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The certificate or its key cannot be used.
    #[error("{}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A setting without meaning.
    #[error("{0}")]
    Setting(String),
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.hint(),
            Self::Listen { .. } => Some("choose another --port, or end the program that has this one".into()),
            Self::Keys { .. } => Some(
                "a line is the SHA-256 of a key (`printf %s KEY | sha256sum`), then optional scopes such as \
                 generate,embed,metrics; # begins a comment"
                    .into(),
            ),
            Self::Tls { .. } => Some(
                "give the certificate with its chain and its key as PEM: --tls-cert cert.pem --tls-key key.pem".into(),
            ),
            Self::Adapter { .. } => {
                Some("an adapter is NAME=DIR, or NAME@MODEL=DIR where several models are served".into())
            }
            Self::System { .. } | Self::Setting(_) => None,
        }
    }
}

/// Why a request is not answered as wished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub code: Option<&'static str>,
    pub message: String,
    /// The part of the request that is at fault.
    pub param: Option<String>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: None, message: message.into(), param: None, retry_after: None }
    }

    /// The request makes no sense.
    pub fn bad(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The same about another part of the request.
    pub fn about(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    pub fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// OpenAI's shape.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }

    fn respond(&self, body: &Value) -> Response {
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// Anthropic's shape.
    pub fn anthropic_body(&self) -> Value {
        let kind = match self.status.as_u16() {
            413 => "request_too_large",
            503 => "overloaded_error",
            500 => "api_error",
            _ => self.kind(),
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    pub fn into_anthropic(self) -> Response {
        self.respond(&self.anthropic_body())
    }

    pub fn into_ollama(self) -> Response {
        self.respond(&json!({"error": self.message}))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(&self.body())
    }
}

impl From<loam_infer::Error> for ApiError {
    fn from(error: loam_infer::Error) -> Self {
        use loam_chat::Error as Chat;
        use loam_infer::Error as Infer;
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        let message = format!("{error}{hint}");
        match &error {
            Infer::Chat(Chat::TooLong { .. }) => Self::bad("messages", message).with_code("context_length_exceeded"),
            Infer::BudgetTooSmall { .. } => Self::bad("max_tokens", message).with_code("context_length_exceeded"),
            Infer::Chat(Chat::InvalidSampling { name, .. }) => Self::bad(name.as_str(), error.to_string()),
            Infer::Schema { .. } | Infer::Grammar { .. } => {
                Self::bad("response_format", message).with_code("unsupported_constraint")
            }
            Infer::NoAdapter => Self::new(StatusCode::NOT_FOUND, message).about("model").with_code("model_not_found"),
            Infer::Adapter(_) => Self::bad("lora_path", message),
            Infer::Setting { key, .. } => Self::bad(*key, message),
            Infer::NoChatTemplate => Self::bad("messages", "the model has no chat template: use /v1/completions"),
            Infer::EmptyPrompt => Self::bad("prompt", message),
            Infer::VocabularyMismatch { .. } => Self::bad("prompt", message),
            Infer::Tokenizer(loam_tokenizer::Error::Template(_)) => Self::bad("messages", message),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<loam_tokenizer::Error> for ApiError {
    fn from(error: loam_tokenizer::Error) -> Self {
        loam_infer::Error::from(error).into()
    }
}
