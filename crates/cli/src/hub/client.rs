//! Requests: redirects by hand, so that a token never reaches another host, and errors in the hub's own words.

use crate::failure::Failure;
use serde::Deserialize;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

/// Where models are fetched from where nobody says.
const ENDPOINT: &str = "https://huggingface.co";
/// Redirects that are followed.
const REDIRECTS: usize = 8;
/// A listing is never longer.
const LISTING: u64 = 64 << 20;

/// A hub, and who asks.
pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a revision of a repository holds.
#[derive(Debug, Deserialize)]
pub struct Revision {
    /// The commit.
    pub sha: String,
    /// The files.
    #[serde(default)]
    pub siblings: Vec<Sibling>,
}

/// One file of a listing.
#[derive(Debug, Deserialize)]
pub struct Sibling {
    /// Its path.
    pub rfilename: String,
}

/// What the hub says about a file before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Checksum: 64 digits are a SHA-256 of the contents, 40 the SHA-1 that git gives them; else an opaque mark.
    pub etag: String,
    /// Bytes.
    pub size: Option<u64>,
}

/// A failed request; some are worth another try.
pub enum Trouble {
    /// No use to try again.
    Final(Failure),
    /// The connection or the server may be better in a moment; perhaps after so long.
    Passing(String, Option<Duration>),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Final(failure) => failure,
            Trouble::Passing(what, _) => Self::with_hint(what, "check the connection, and HF_ENDPOINT if it is set"),
        }
    }
}

impl Hub {
    /// The hub at `endpoint`, or Hugging Face's.
    pub fn new(endpoint: Option<&str>, token: Option<&str>) -> Result<Self, Failure> {
        let endpoint = endpoint.unwrap_or(ENDPOINT).trim_end_matches('/').to_owned();
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let hint = format!("it begins with http:// or https://, such as {ENDPOINT}");
            return Err(Failure::with_hint(format!("HF_ENDPOINT `{endpoint}` is no address of a hub"), hint));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("loam/", env!("CARGO_PKG_VERSION")));
        let config = if endpoint.starts_with("https://") { with_tls(config)? } else { config };
        Ok(Self { agent: config.build().into(), endpoint, token: token.map(str::to_owned) })
    }

    /// The hub's address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What a revision holds.
    pub fn revision(&self, repo: &str, revision: &str) -> Result<Revision, Trouble> {
        let url = format!("{}/api/models/{repo}/revision/{}", self.endpoint, escaped(revision));
        let (mut response, _) = self.request("GET", &url, &[])?;
        refuse(&response, &format!("{repo} at {revision}"))?;
        let text = response.body_mut().with_config().limit(LISTING).read_to_string();
        let text = text.map_err(|e| Trouble::Passing(format!("{url}: {e}"), None))?;
        serde_json::from_str(&text).map_err(|e| {
            let hint = "HF_ENDPOINT names a server that speaks the hub's protocol";
            Trouble::Final(Failure::with_hint(format!("{url} does not answer as a hub does: {e}"), hint))
        })
    }

    /// Checksum and size of a file.
    pub fn info(&self, repo: &str, commit: &str, file: &str) -> Result<FileInfo, Trouble> {
        let url = self.file_url(repo, commit, file);
        let (response, first) = self.request("HEAD", &url, &[])?;
        refuse(&response, &format!("{file} of {repo}"))?;
        let last = response.headers();
        let text = |headers: &HeaderMap, name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        // Large files lie elsewhere: what is said of them before the redirect counts.
        let etag = text(&first, "x-linked-etag").or_else(|| text(&first, "etag")).or_else(|| text(last, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned()).unwrap_or_default();
        let size = text(&first, "x-linked-size").or_else(|| text(last, "content-length"));
        Ok(FileInfo { etag, size: size.and_then(|size| size.parse().ok()) })
    }

    /// The contents of a file from byte `start` on, and the first byte that the answer really begins with.
    pub fn open(&self, repo: &str, commit: &str, file: &str, start: u64) -> Result<(Response<Body>, u64), Trouble> {
        let url = self.file_url(repo, commit, file);
        let range = format!("bytes={start}-");
        let headers: &[(&str, &str)] = if start > 0 { &[("range", &range)] } else { &[] };
        let (response, _) = self.request("GET", &url, headers)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && start > 0 {
            // What is there is longer than the file.
            return self.open(repo, commit, file, 0);
        }
        refuse(&response, &format!("{file} of {repo}"))?;
        let begins = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(response.headers()).unwrap_or(start),
            _ => 0,
        };
        Ok((response, begins))
    }

    fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(escaped).collect();
        format!("{}/{repo}/resolve/{}/{}", self.endpoint, escaped(commit), file.join("/"))
    }

    /// Sends a request and follows redirects; also returns the first answer's headers.
    fn request(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Response<Body>, HeaderMap), Trouble> {
        let (mut url, mut first) = (url.to_owned(), None);
        for _ in 0..=REDIRECTS {
            let mut request = match method {
                "HEAD" => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            // What is compressed on its way has no ranges of its own.
            request = request.header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| host(&url) == host(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| Trouble::Passing(format!("{url}: {e}"), None))?;
            let seen = first.get_or_insert_with(|| response.headers().clone()).clone();
            if !response.status().is_redirection() {
                return Ok((response, seen));
            }
            let target = response.headers().get("location").and_then(|to| to.to_str().ok());
            url = match target {
                Some(to) if to.starts_with('/') => format!("{}{to}", origin(&url)),
                Some(to) if to.starts_with("http://") || to.starts_with("https://") => to.to_owned(),
                _ => return Err(Trouble::Final(Failure::new(format!("{url} redirects to nowhere")))),
            };
        }
        Err(Trouble::Final(Failure::new(format!("{url} redirects more than {REDIRECTS} times"))))
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn with_tls(
    config: ureq::config::ConfigBuilder<ureq::typestate::AgentScope>,
) -> Result<ureq::config::ConfigBuilder<ureq::typestate::AgentScope>, Failure> {
    let provider = std::sync::Arc::new(rustls_graviola::default_provider());
    let tls = ureq::tls::TlsConfig::builder().unversioned_rustls_crypto_provider(provider).build();
    Ok(config.tls_config(tls))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn with_tls(
    _: ureq::config::ConfigBuilder<ureq::typestate::AgentScope>,
) -> Result<ureq::config::ConfigBuilder<ureq::typestate::AgentScope>, Failure> {
    let hint = "set HF_ENDPOINT to a hub that is reached over http://, or copy the files yourself";
    Err(Failure::with_hint("hubs over https:// cannot be reached on this processor", hint))
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let end = url[begin..].find('/').map_or(url.len(), |at| begin + at);
    &url[..end]
}

fn host(url: &str) -> &str {
    origin(url)
}

/// Everything but letters, digits and `-._~` as `%XX`.
fn escaped(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The first byte that `content-range: bytes 5-9/10` speaks of.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    headers.get("content-range")?.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Says in words what a status means.
fn refuse(response: &Response<Body>, what: &str) -> Result<(), Trouble> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        let wait = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
        return Err(Trouble::Passing(format!("the hub answers {status} for {what}"), wait));
    }
    let said = header("x-error-message").map_or_else(|| status.to_string(), str::to_owned);
    let hint = match (status, header("x-error-code")) {
        (_, Some("GatedRepo")) => "ask for access on the model's page, then set HF_TOKEN to a token of yours",
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            "check the name; for what is private or gated set HF_TOKEN to a token of yours"
        }
        (StatusCode::NOT_FOUND, _) => "check the name and --revision; names look like Qwen/Qwen3-0.6B",
        _ => "HF_ENDPOINT names a server that speaks the hub's protocol",
    };
    Err(Trouble::Final(Failure::with_hint(format!("the hub has no {what} for you: {said}"), hint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_put_together() {
        assert_eq!(origin("http://127.0.0.1:80/a/b"), "http://127.0.0.1:80");
        assert_eq!(origin("https://hub.example"), "https://hub.example");
        assert_eq!(escaped("refs/pr/1 ü"), "refs%2Fpr%2F1%20%C3%BC");
        assert!(Hub::new(Some("hub.example"), None).is_err());
    }
}
