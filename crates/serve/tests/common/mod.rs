//! A server over a tiny random model, and a client that speaks plain HTTP.
#![allow(dead_code, clippy::unwrap_used, reason = "helpers of tests, which fail as tests do, and not all need all")]

pub mod schema;

use loam_infer::OpenModel;
use loam_models::LanguageModel;
use loam_serve::{ServedModel, Server, Settings, Stopper};
use loam_tokenizer::{ChatTemplate, DirectoryOptions, TrainConfig, TrainKind, save_directory, train};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TEXT: &str = "the fox and the goose ate a pear. 狐狸和鹅吃了一个梨。é {\"name\": 1.5, \"on\": true} tool_call";

/// Writes a model directory with a tokenizer and a chat template.
pub fn write_model(dir: &Path, seed: u64) {
    let config = TrainConfig { vocab_size: 320, ..TrainConfig::new(TrainKind::ByteBpe) };
    let tokenizer = train([Ok::<_, std::io::Error>(TEXT.to_owned())], &config, &mut |_| {}).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "initializer_range": 0.6,
    });
    let model = LanguageModel::new(&config, seed).unwrap();
    let writer = loam_formats::HfWriter::create(dir).unwrap();
    model.save(&writer, None).unwrap();
    let template = ChatTemplate::chatml();
    save_directory(dir, &tokenizer, DirectoryOptions { template: Some(&template), model_max_length: Some(1024) })
        .unwrap();
}

/// A running server.
pub struct Running {
    pub address: SocketAddr,
    pub stopper: Stopper,
    pub dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), 7);
        let models = vec![ServedModel::open("org/tiny", dir.path()).unwrap()];
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(models, Settings { address, threads: Some(2), ..settings }).unwrap();
        let (address, stopper) = (server.address(), server.stopper());
        let thread = std::thread::spawn(move || server.run().unwrap());
        Self { address, stopper, dir, thread: Some(thread) }
    }

    /// The same model, to be asked directly.
    pub fn open(&self) -> OpenModel {
        OpenModel::open(self.dir.path()).unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.address, "POST", path, &[], &body.to_string())
    }

    pub fn get(&self, path: &str) -> Answer {
        send(self.address, "GET", path, &[], "")
    }

    /// Ends the server and waits for that.
    pub fn stop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// A number of the metrics page.
    pub fn metric(&self, line: &str) -> f64 {
        let page = self.get("/metrics").text;
        let found = page.lines().find_map(|l| l.strip_prefix(line)).map(|rest| rest.trim().parse().unwrap());
        found.unwrap_or(0.0)
    }
}

/// Waits for something that a server does behind an answer.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what} never happened");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The values of a stream of events; `[DONE]` is a string.
    pub fn events(&self) -> Vec<Value> {
        let data = self.text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
        data.map(|event| {
            let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))
        })
        .collect()
    }
}

pub fn connect(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n{more}\r\n",
        body.len()
    );
    // A server that has read enough may answer and close before it has read all.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    stream
}

pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = connect(address, method, path, headers, body);
    let mut bytes = Vec::new();
    // A connection that is reset after the answer has nothing more to say.
    let _ = stream.read_to_end(&mut bytes);
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no answer to {method} {path}"));
    let headers = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
    let status = headers.split_whitespace().nth(1).unwrap().parse().unwrap();
    let mut body = bytes[at + 4..].to_vec();
    if headers.contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    let answer = Answer { status, headers, text: String::from_utf8(body).unwrap() };
    check(path, &answer);
    answer
}

/// Every answer of OpenAI's part of the server is what OpenAI's document says.
fn check(path: &str, answer: &Answer) {
    let path = path.split('?').next().unwrap();
    let (whole, piece) = match path {
        "/v1/chat/completions" => ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
        "/v1/completions" => ("CreateCompletionResponse", "CreateCompletionResponse"),
        "/v1/embeddings" => ("CreateEmbeddingResponse", ""),
        "/v1/responses" => ("Response", "ResponseStreamEvent"),
        "/v1/models" => ("ListModelsResponse", ""),
        path if path.starts_with("/v1/models/") => ("Model", ""),
        _ => return,
    };
    if answer.status != 200 {
        return schema::assert_is("ErrorResponse", &answer.json());
    }
    if !answer.headers.contains("text/event-stream") {
        return schema::assert_is(whole, &answer.json());
    }
    let mut events = answer.events();
    if path != "/v1/responses" {
        assert_eq!(events.pop(), Some("[DONE]".into()), "the end of a stream");
    }
    for event in &events {
        match event.get("error").filter(|error| error.is_object()) {
            Some(_) if path != "/v1/responses" => schema::assert_is("ErrorResponse", event),
            _ => schema::assert_is(piece, event),
        }
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        out.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[(at + size + 4).min(rest.len())..];
    }
    out
}
