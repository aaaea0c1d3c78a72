//! API keys: a file of hashes, what each key may do, and comparisons that take the same time whatever they compare.

use std::fs;
use std::path::Path;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::error::{ApiError, Error};

/// What a key may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Writing text, and what belongs to it.
    Generate,
    /// Embeddings and ranking.
    Embed,
    /// Metrics.
    Metrics,
    /// Changing what is served.
    Admin,
}

const SCOPES: [(&str, Scope); 4] =
    [("generate", Scope::Generate), ("embed", Scope::Embed), ("metrics", Scope::Metrics), ("admin", Scope::Admin)];

/// The keys that are let in; with no file everybody is.
#[derive(Debug, Default)]
pub struct Keys {
    keys: Option<Vec<Key>>,
}

#[derive(Debug)]
struct Key {
    hash: [u8; 32],
    scopes: Vec<Scope>,
}

impl Keys {
    /// Reads a file: per line the SHA-256 of a key in hexadecimal, then its scopes, separated by commas; without any it may
    /// do everything. `#` begins a comment.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path);
        let text = text.map_err(|source| Error::System { what: "read the file of API keys", source })?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let fail = |reason: String| Error::Keys { path: path.into(), line: index + 1, reason };
            let mut words = line.split_whitespace();
            let hash = words.next().and_then(unhex);
            let hash = hash.ok_or_else(|| fail("expected 64 hexadecimal digits".into()))?;
            let mut scopes = Vec::new();
            for name in words.flat_map(|word| word.split(',')).filter(|name| !name.is_empty()) {
                match SCOPES.iter().find(|(known, _)| *known == name) {
                    Some((_, scope)) => scopes.push(*scope),
                    None => return Err(fail(format!("unknown scope `{name}`"))),
                }
            }
            keys.push(Key { hash, scopes });
        }
        if keys.is_empty() {
            return Err(Error::Keys { path: path.into(), line: 1, reason: "there is no key in it".into() });
        }
        Ok(Self { keys: Some(keys) })
    }

    /// Whether anybody needs a key.
    pub fn are_needed(&self) -> bool {
        self.keys.is_some()
    }

    /// Lets a request in, or not. The key comes as `Authorization: Bearer`, or as `x-api-key`.
    pub(crate) fn admit(&self, headers: &HeaderMap, scope: Scope) -> Result<(), ApiError> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION.as_str())
            .and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        let refuse = |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"));
        let Some(given) = bearer.or_else(|| text("x-api-key")) else {
            return refuse("no API key: send it as `Authorization: Bearer KEY`");
        };
        let given: [u8; 32] = Sha256::digest(given.trim()).into();
        // All keys are compared, each in full.
        let found = keys.iter().fold(None, |found, key| if is_same(&key.hash, &given) { Some(key) } else { found });
        match found {
            None => refuse("the API key is not valid"),
            Some(key) if key.scopes.is_empty() || key.scopes.contains(&scope) => Ok(()),
            Some(_) => Err(ApiError::new(StatusCode::FORBIDDEN, "the API key is not for this")),
        }
    }
}

fn is_same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y))) == 0
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail where they find nothing")]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn keys(text: &str) -> Result<Keys, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Keys::open(file.path())
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_key_opens_what_its_scopes_say() {
        // The hashes of "alpha" and "beta".
        let text = "# ours\n8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8  # all\n\n\
                    f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753 embed, metrics\n";
        let keys = keys(text).unwrap();
        let admit = |headers: &HeaderMap, scope| keys.admit(headers, scope).map_err(|e| e.status.as_u16());
        assert_eq!(admit(&headers("authorization", "Bearer alpha"), Scope::Generate), Ok(()));
        assert_eq!(admit(&headers("x-api-key", "beta"), Scope::Embed), Ok(()));
        assert_eq!(admit(&headers("x-api-key", "beta"), Scope::Generate), Err(403));
        assert_eq!(admit(&headers("authorization", "Bearer gamma"), Scope::Generate), Err(401));
        assert_eq!(admit(&HeaderMap::new(), Scope::Metrics), Err(401));
        assert!(keys.are_needed() && !Keys::default().are_needed());
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_with_its_line() {
        for (text, line) in [("", 1), ("# only\n", 1), ("\nabc\n", 2), (&format!("{} fly", "0".repeat(64)), 1)] {
            let error = keys(text).unwrap_err();
            assert!(error.to_string().contains(&format!("line {line}")) && error.hint().is_some(), "{error}");
        }
    }
}
