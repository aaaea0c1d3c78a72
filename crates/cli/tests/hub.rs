//! `loam model pull`, `list` and `rm` against a hub that runs in the test.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{Ran, command};
use loam_testkit::golden_dir;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "org/tiny";

/// What the hub does, and what it saw.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Answers with contents end after so many bytes, that many times.
    cut_after: usize,
    cuts: usize,
    /// Contents are not what the checksum says.
    is_damaged: bool,
    /// Answers `503` that many times.
    failures: usize,
    requests: Vec<String>,
}

struct TestHub {
    address: String,
    state: Arc<Mutex<State>>,
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

impl TestHub {
    fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { address, state }
    }

    /// The files of a golden model, and some that are not wanted.
    fn tiny() -> Self {
        let mut files = BTreeMap::new();
        for name in ["config.json", "generation_config.json", "model.safetensors"] {
            files.insert(name.to_owned(), fs::read(golden_dir("llama-plain").join(name)).unwrap());
        }
        files.insert("pytorch_model.bin".into(), b"not wanted".to_vec());
        files.insert("onnx/model.onnx".into(), b"not wanted".to_vec());
        Self::start(files)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    fn loam(&self, dir: &Path, args: &[&str]) -> Ran {
        let output = command(dir, args).env("HF_ENDPOINT", &self.address).env("HF_TOKEN", "secret").output().unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Answers the one request of a connection.
fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut range, mut token) = (String::new(), 0, "no token");
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(from) = line.strip_prefix("range: bytes=") {
            range = from.trim_end_matches('-').parse().unwrap();
        }
        if line == "authorization: bearer secret" {
            token = "token";
        }
    }
    let mut state = state.lock().unwrap();
    let words: Vec<&str> = first.split_whitespace().collect();
    let (method, path) = (words[0], words[1]);
    state.requests.push(format!("{method} {path} {range} {token}"));
    let answer = answer(&mut state, method, path, range);
    // Who asked may have gone.
    let _ = stream.write_all(&answer);
}

fn answer(state: &mut State, method: &str, path: &str, range: usize) -> Vec<u8> {
    let reply = |status: &str, headers: &str, body: &[u8]| {
        let length = format!("content-length: {}\r\n", body.len());
        let length = if headers.contains("content-length") { "" } else { &length };
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{length}{headers}\r\n");
        [head.as_bytes(), if method == "HEAD" { b"" } else { body }].concat()
    };
    if state.failures > 0 {
        state.failures -= 1;
        return reply("503 Service Unavailable", "retry-after: 0\r\n", b"");
    }
    if path == format!("/api/models/{REPO}/revision/main") {
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        return reply("200 OK", "", serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string().as_bytes());
    }
    if path.starts_with("/api/") {
        return reply("404 Not Found", "x-error-code: RepoNotFound\r\nx-error-message: Repository not found\r\n", b"");
    }
    let (name, is_elsewhere) = match path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/")) {
        Some(name) => (name, false),
        None => (path.strip_prefix("/cdn/").unwrap(), true),
    };
    let Some(body) = state.files.get(name).cloned() else { return reply("404 Not Found", "", b"") };
    let is_large = name.ends_with(".safetensors");
    if is_large && !is_elsewhere {
        let etag = hex(Sha256::digest(&body));
        let headers = format!(
            "location: /cdn/{name}\r\nx-linked-etag: \"{etag}\"\r\nx-linked-size: {}\r\nx-repo-commit: {COMMIT}\r\n",
            body.len()
        );
        return reply("302 Found", &headers, b"");
    }
    let etag = hex(Sha1::new().chain_update(format!("blob {}\0", body.len())).chain_update(&body).finalize());
    let mut sent = body[range..].to_vec();
    if state.is_damaged && is_large {
        sent[0] ^= 1;
    }
    let length = sent.len();
    if is_large && method == "GET" && state.cuts > 0 {
        state.cuts -= 1;
        sent.truncate(state.cut_after);
    }
    let headers = format!(
        "etag: \"{etag}\"\r\ncontent-length: {length}\r\ncontent-range: bytes {range}-{}/{}\r\n",
        body.len() - 1,
        body.len()
    );
    reply(if range > 0 { "206 Partial Content" } else { "200 OK" }, &headers, &sent)
}

fn names(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = vec![dir.to_owned()];
    while let Some(next) = rest.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                rest.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_pulled_model_is_complete_opens_by_its_name_and_can_be_listed_and_removed() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), TestHub::tiny());
    let pulled = hub.loam(dir.path(), &["model", "pull", REPO, "--json"]).json();
    assert_eq!(pulled["commit"], COMMIT);
    assert_eq!(pulled["files"], serde_json::json!(["config.json", "generation_config.json", "model.safetensors"]));
    let place = dir.path().join("home/models/org/tiny");
    for name in ["config.json", "model.safetensors"] {
        assert_eq!(fs::read(place.join(name)).unwrap(), fs::read(golden_dir("llama-plain").join(name)).unwrap());
    }
    assert!(!dir.path().join("home/models/.unfinished").exists());
    let shown = hub.loam(dir.path(), &["model", "show", REPO, "--json"]).json();
    assert_eq!(shown["config"]["model_type"], "llama");
    let listed = hub.loam(dir.path(), &["model", "list", "--json"]).json();
    assert_eq!(
        (&listed["models"][0]["name"], &listed["models"][0]["origin"]["commit"]),
        (&REPO.into(), &COMMIT.into())
    );
    // Nothing is fetched twice.
    let before = hub.requests().len();
    let again = hub.loam(dir.path(), &["model", "pull", REPO, "--json"]).json();
    assert_eq!((&again["fetched"], &again["kept"]), (&0.into(), &3.into()));
    assert!(hub.requests()[before..].iter().all(|r| !r.starts_with("GET /org") && !r.starts_with("GET /cdn")));
    let refused = hub.loam(dir.path(), &["model", "rm", "org/tini"]);
    assert!(refused.code == 2 && refused.stderr.contains("org/tiny"), "{}", refused.stderr);
    assert_eq!(hub.loam(dir.path(), &["model", "rm", REPO]).code, 0);
    assert_eq!(names(&dir.path().join("home/models")), Vec::<String>::new());
}

#[test]
fn a_cut_connection_is_continued_where_it_was_cut() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), TestHub::tiny());
    hub.change(|state| (state.cuts, state.cut_after, state.failures) = (2, 1000, 1));
    let ran = hub.loam(dir.path(), &["model", "pull", REPO]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("continuing from byte 1000"), "{}", ran.stderr);
    let ranges: Vec<String> = hub.requests().into_iter().filter(|r| r.starts_with("GET /cdn")).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges[1].contains(" 1000 ") && ranges[2].contains(" 2000 "), "{ranges:?}");
    let place = dir.path().join("home/models/org/tiny/model.safetensors");
    assert_eq!(fs::read(place).unwrap(), fs::read(golden_dir("llama-plain").join("model.safetensors")).unwrap());
}

#[test]
fn a_pull_that_gave_up_goes_on_in_the_next_one() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), TestHub::tiny());
    hub.change(|state| (state.cuts, state.cut_after) = (1, 3000));
    let ran = hub.loam(dir.path(), &["model", "pull", REPO]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    fs::remove_dir_all(dir.path().join("home")).unwrap();
    // Every answer is empty after the first: no use to go on for ever.
    hub.change(|state| (state.cuts, state.cut_after) = (1, 3000));
    let unfinished = dir.path().join("home/models/.unfinished/org--tiny");
    fs::create_dir_all(&unfinished).unwrap();
    let whole = fs::read(golden_dir("llama-plain").join("model.safetensors")).unwrap();
    fs::write(unfinished.join("model.safetensors.part"), &whole[..500]).unwrap();
    hub.change(|state| (state.cuts, state.cut_after) = (100, 0));
    let ran = hub.loam(dir.path(), &["model", "pull", REPO]);
    assert!(ran.code == 2 && ran.stderr.contains("continues from byte 500"), "{}", ran.stderr);
    assert!(!dir.path().join("home/models/org").exists(), "nothing lies under its final name");
    hub.change(|state| state.cuts = 0);
    let before = hub.requests().len();
    assert_eq!(hub.loam(dir.path(), &["model", "pull", REPO]).code, 0);
    assert!(hub.requests()[before..].iter().any(|r| r.starts_with("GET /cdn") && r.contains(" 500 ")));
    assert_eq!(fs::read(dir.path().join("home/models/org/tiny/model.safetensors")).unwrap(), whole);
}

#[test]
fn a_wrong_checksum_is_one_error_and_leaves_no_file_under_its_name() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), TestHub::tiny());
    hub.change(|state| state.is_damaged = true);
    let ran = hub.loam(dir.path(), &["model", "pull", REPO]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("model.safetensors arrived damaged"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
    let left = names(&dir.path().join("home/models"));
    assert!(left.iter().all(|name| !name.contains("model.safetensors")), "{left:?}");
    assert!(!dir.path().join("home/models/org").exists());
}

#[test]
fn what_the_hub_refuses_is_said_in_its_words() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), TestHub::tiny());
    let ran = hub.loam(dir.path(), &["model", "pull", "org/none"]);
    assert!(ran.code == 2 && ran.stderr.contains("Repository not found"), "{}", ran.stderr);
    let ran = hub.loam(dir.path(), &["model", "pull", "../etc"]);
    assert!(ran.code == 2 && ran.stderr.contains("no name of a repository"), "{}", ran.stderr);
    hub.change(|state| {
        state.files.insert("../../evil.json".into(), b"{}".to_vec());
    });
    let ran = hub.loam(dir.path(), &["model", "pull", REPO]);
    assert!(ran.code == 2 && ran.stderr.contains("cannot be trusted"), "{}", ran.stderr);
    let output = command(dir.path(), &["model", "pull", REPO]).env("HF_ENDPOINT", "hub.example").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("HF_ENDPOINT"));
}

#[test]
fn several_gguf_files_are_chosen_from_and_one_is_opened_by_the_models_name() {
    let mut files = BTreeMap::new();
    for name in ["tiny-q4_0.gguf", "tiny-q8_0.gguf"] {
        files.insert(name.to_owned(), b"GGUF".to_vec());
    }
    let (dir, hub) = (tempfile::tempdir().unwrap(), TestHub::start(files));
    let ran = hub.loam(dir.path(), &["model", "pull", REPO]);
    assert!(
        ran.code == 2 && ran.stderr.contains("--include") && ran.stderr.contains("tiny-q8_0.gguf"),
        "{}",
        ran.stderr
    );
    let ran = hub.loam(dir.path(), &["model", "pull", REPO, "--include", "*q8_0*", "--json"]);
    assert_eq!(ran.json()["files"], serde_json::json!(["tiny-q8_0.gguf"]));
    assert!(hub.requests().iter().all(|request| request.ends_with(" token")), "the hub itself is shown the token");
}
