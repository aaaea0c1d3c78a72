//! `loam serve` as a user starts and ends it.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
#![cfg(unix)]

mod common;

use common::{command, loam};
use loam_testkit::golden_copy;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

fn post(address: &str, path: &str, body: &Value) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = body.to_string();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn a_server_on_one_thread_writes_what_generate_writes_and_ends_when_asked() {
    let model = golden_copy("llama-plain");
    let dir = model.path();
    std::fs::write(dir.join("letters.txt"), "abcdefghij klmnopqrst.").unwrap();
    let trained = loam(dir, &["tokenizer", "train", "letters.txt", "--algorithm", "char", "--out", "."]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);

    let args = ["serve", "tiny=.", "--port", "0", "--threads", "1", "--log-format", "json"];
    let mut server = command(dir, &args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let address = loop {
        let line = lines.next().unwrap().unwrap();
        if let Some(address) = line.strip_prefix("listening at http://") {
            break address.to_owned();
        }
    };
    let ask = json!({"prompt": "abc def", "max_tokens": 6, "seed": 4, "model": "tiny"});
    let written = post(&address, "/v1/completions", &ask)["choices"][0]["text"].clone();
    let alone =
        ["generate", ".", "abc def", "--max-tokens", "6", "--seed", "4", "--json", "--sampler-preset", "openai"];
    assert_eq!(written, loam(dir, &alone).json()["text"]);
    // Embedding computes beside the engine, on the same single thread.
    let embedded = post(&address, "/v1/embeddings", &json!({"input": ["abc", "a post"]}));
    assert_eq!(embedded["data"].as_array().unwrap().len(), 2, "{embedded}");
    assert!(Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(server.wait().unwrap().code(), Some(0), "{rest:?}");
    let log: Vec<Value> = rest.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(log.iter().any(|line| line["path"] == "/v1/embeddings" && line["status"] == 200), "{rest:?}");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_copy("bert-model");
    let path = model.path().to_str().unwrap();
    let cases: [(&[&str], &str); 3] =
        [(&["serve", "no-such-model"], "no-such-model"), (&["serve", path], "tokenizer.json"), (&["serve"], "MODEL")];
    for (args, part) in cases {
        let ran = loam(dir.path(), args);
        assert!(ran.code == 2 && ran.stderr.contains(part), "{args:?}: {}", ran.stderr);
    }
}
