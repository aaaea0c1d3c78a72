//! Reading requests: a JSON object whose fields are taken out one by one, so that what is left over is known.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Time that a client has to send its request.
const TIME_TO_SEND: Duration = Duration::from_secs(60);

/// Fields that say nothing about the text, or only what is so anyway: no warning for them.
const HARMLESS: [&str; 11] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "cache_prompt",
    "prediction",
    "include",
    "stream_options",
];

/// The fields of a request.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a body of at most `limit` bytes.
    pub async fn read(body: Body, limit: usize) -> Result<Self, ApiError> {
        let bytes = match tokio::time::timeout(TIME_TO_SEND, axum::body::to_bytes(body, limit)).await {
            Err(_) => return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
            Ok(Err(_)) => {
                let message = format!("the request is longer than {limit} bytes, or broken off");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Ok(Ok(bytes)) => bytes,
        };
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(Self { map }),
            Ok(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "the request is no JSON object")),
            Err(error) => Err(ApiError::new(StatusCode::BAD_REQUEST, format!("the request is not JSON: {error}"))),
        }
    }

    /// A field, if it is there and not null.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.map.remove(name).filter(|value| !value.is_null()) else { return Ok(None) };
        parse(name, value).map(Some)
    }

    /// A field that must be there.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::bad(name, format!("`{name}` is missing")))
    }

    /// Puts a field in place of another.
    pub fn put(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// Refuses fields that would change the answer and cannot be honoured.
    pub fn refuse(&mut self, names: &[&str]) -> Result<(), ApiError> {
        match names.iter().find(|name| self.has(name)) {
            Some(name) => Err(ApiError::bad(*name, format!("`{name}` is not supported"))),
            None => Ok(()),
        }
    }

    /// The fields of an object inside, in place of this one.
    pub fn inner(&mut self, name: &str) -> Result<Self, ApiError> {
        Ok(Self { map: self.take(name)?.unwrap_or_default() })
    }

    /// Says which fields nobody took.
    pub fn warnings(self) -> Vec<String> {
        let left = self.map.into_iter().filter(|(name, value)| !value.is_null() && !HARMLESS.contains(&name.as_str()));
        left.map(|(name, _)| format!("unknown field `{name}` was ignored")).collect()
    }
}

/// A value as what it should be; an error names the place in it.
pub(crate) fn parse<T: DeserializeOwned>(name: &str, value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let place = match path.as_str() {
            "." | "" => name.to_owned(),
            path if path.starts_with('[') => format!("{name}{path}"),
            path => format!("{name}.{path}"),
        };
        let message = format!("`{place}`: {}", error.into_inner());
        ApiError::bad(place, message)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail where they find nothing")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_names_the_place_and_what_is_left_is_a_warning() {
        let body = r#"{"messages": [{"role": "robot"}], "n": null, "color": 3, "user": "me"}"#;
        let mut fields = Fields::read(Body::from(body), 1000).await.unwrap();
        let error = fields.take::<Vec<loam_chat::Message>>("messages").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[0].role"));
        assert_eq!(fields.take::<usize>("n"), Ok(None));
        assert_eq!(fields.need::<usize>("m").unwrap_err().param.as_deref(), Some("m"));
        assert_eq!(fields.warnings(), ["unknown field `color` was ignored"]);
        for (body, status) in [("[]", 400), ("{", 400), (&" ".repeat(2000), 413)] {
            assert_eq!(Fields::read(Body::from(body.to_owned()), 1000).await.unwrap_err().status.as_u16(), status);
        }
    }
}
