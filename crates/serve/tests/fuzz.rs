//! Damaged requests: whatever comes, there is an answer, never a server error, and the server goes on.
//!
//! The damage is drawn from a seed, so that a failure can be had again. A moment each time; longer, say ten minutes, with
//! `LOAM_FUZZ_SECONDS=600 cargo test --release -p loam-serve --test fuzz`.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{Running, connect};
use loam_serve::Settings;
use loam_testkit::Random;
use serde_json::{Value, json};
use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Most MiB that the process may grow by while it answers.
const MOST_MIB: usize = 256;

fn seeds() -> Vec<(&'static str, Value)> {
    let talk = json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"type": "text", "text": "the fox"}]}]);
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"enum": [1, null]}},
        "required": ["a"], "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "look", "description": "x", "parameters": schema, "strict": true}}]);
    let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
    vec![
        (
            "/v1/chat/completions",
            json!({"model": "m", "messages": talk, "max_tokens": 8, "temperature": 0.7, "top_p": 0.9,
            "seed": 1, "n": 1, "stop": ["e"], "logprobs": true, "top_logprobs": 2, "logit_bias": {"5": 1.5},
            "stream": true, "stream_options": {"include_usage": true}, "samplers": ["logit_bias", "top_p", "temperature"]}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": talk, "max_tokens": 60, "tools": tools, "tool_choice": "required",
            "parallel_tool_calls": false}),
        ),
        ("/v1/chat/completions", json!({"messages": talk, "max_tokens": 60, "response_format": form})),
        (
            "/v1/completions",
            json!({"prompt": ["the fox", "a"], "max_tokens": 4, "echo": true, "logprobs": 2, "n": 1,
            "min_p": 0.1, "mirostat": 0, "dry_multiplier": 0.5, "repetition_penalty": 1.1}),
        ),
        ("/v1/completions", json!({"prompt": [1, 2, 3], "max_tokens": 3, "guided_regex": "[a-c]{2}", "stream": false})),
        ("/v1/completions", json!({"prompt": "the", "max_tokens": 9, "grammar": "root ::= \"a\" [b-d]* | \"x\""})),
        ("/v1/embeddings", json!({"input": ["the fox", "a"], "encoding_format": "base64", "dimensions": 8})),
        (
            "/v1/rerank",
            json!({"query": "the fox", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": true}),
        ),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}],
            "max_output_tokens": 5, "instructions": "be kind", "text": {"format": {"type": "text"}}, "stream": true}),
        ),
        (
            "/v1/messages",
            json!({"model": "m", "max_tokens": 5, "system": "x", "messages": [{"role": "user", "content": "a"}],
            "stop_sequences": ["e"], "top_k": 5}),
        ),
        ("/v1/messages/count_tokens", json!({"messages": [{"role": "user", "content": "a"}]})),
        (
            "/api/chat",
            json!({"model": "m", "messages": [{"role": "user", "content": "a"}], "options": {"num_predict": 4},
            "format": "json", "stream": false}),
        ),
        ("/api/generate", json!({"model": "m", "prompt": "a", "options": {"num_predict": 4, "seed": 1}})),
        ("/api/embed", json!({"model": "m", "input": ["a"]})),
        ("/tokenize", json!({"content": "the fox", "add_special": true, "with_pieces": true})),
        ("/detokenize", json!({"tokens": [1, 2, 300]})),
        ("/apply-template", json!({"messages": talk, "tools": tools})),
        ("/v1/load_lora_adapter", json!({"lora_name": "a", "lora_path": "/nowhere"})),
        ("/v1/unload_lora_adapter", json!({"lora_name": "a"})),
    ]
}

/// A value that hardly anybody expects.
fn strange(random: &mut Random) -> Value {
    let deep = (0..random.range(1, 90)).fold(json!(1), |inner, _| json!([inner]));
    let list = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(""),
        json!("\u{0}\u{FFFF}\u{1F98A}"),
        json!("x".repeat(3000)),
        json!([]),
        json!({}),
        json!([[], [null]]),
        json!({"type": "object", "$ref": "#"}),
        json!("(a|b"),
        json!([1, "a", null]),
        json!("stream"),
        deep,
    ];
    random.pick(&list).clone()
}

/// Changes one place of a value.
fn damage(random: &mut Random, value: &mut Value) {
    if random.range(0, 4) == 0 {
        *value = strange(random);
        return;
    }
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(random.range(0, map.len())).unwrap().clone();
            match random.range(0, 6) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(format!("{key}{key}"), strange(random))),
                _ => damage(random, map.get_mut(&key).unwrap()),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.range(0, list.len());
            match random.range(0, 5) {
                0 => drop(list.remove(at)),
                1 => list.push(strange(random)),
                2 => list.extend(std::iter::repeat_n(list[at].clone(), 40)),
                _ => damage(random, &mut list[at]),
            }
        }
        other => *other = strange(random),
    }
}

/// Changes some bytes of a text.
fn tear(random: &mut Random, text: String) -> String {
    let mut bytes = text.into_bytes();
    for _ in 0..random.range(1, 4) {
        let at = random.range(0, bytes.len().max(1));
        match random.range(0, 3) {
            0 => bytes.truncate(at),
            1 => bytes.splice(at..at, *b"}{]").for_each(drop),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = b' ' + (*byte % 90)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a body and reads the answer; `None` where the client is gone before it comes.
fn ask(address: SocketAddr, path: &str, body: &str, is_patient: bool) -> Option<(u16, String)> {
    let mut stream = connect(address, "POST", path, &[], body);
    if !is_patient {
        return None;
    }
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split_whitespace().nth(1).unwrap_or_else(|| panic!("no answer: {path} {body}"));
    Some((status.parse().unwrap(), text))
}

fn resident_mib() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? / 1024)
}

/// Damaged requests where no time is given.
const CASES: u64 = 300;

#[test]
fn damaged_requests_are_answered_and_the_server_goes_on() {
    let seconds = std::env::var("LOAM_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let settings =
        Settings { max_body: 20_000, default_max_tokens: 20, may_load_adapters: true, ..Settings::default() };
    let server = Running::start(settings);
    let seeds = seeds();
    for (path, body) in &seeds {
        let answer = server.post(path, body);
        assert!(answer.status == 200 || path.ends_with("lora_adapter"), "{path}: {} {}", answer.status, answer.text);
    }
    let (before, end) = (resident_mib(), seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds)));
    let (mut tried, mut good) = (0u64, 0);
    while end.map_or(tried < CASES, |end| Instant::now() < end) {
        let mut random = Random::new(tried);
        let (path, seed) = random.pick(&seeds);
        let mut body = seed.clone();
        for _ in 0..random.range(1, 4) {
            damage(&mut random, &mut body);
        }
        let mut text = body.to_string();
        if random.range(0, 3) == 0 {
            text = tear(&mut random, text);
        }
        let is_patient = random.range(0, 10) > 0;
        if let Some((status, answer)) = ask(server.address, path, &text, is_patient) {
            let is_fine = status < 500 || (status == 503 && answer.to_lowercase().contains("retry-after"));
            assert!(is_fine, "case {tried}: {status} to {path} {text}\n{answer}");
            assert!(!answer.contains("server_error"), "case {tried}: {path} {text}\n{answer}");
            good += u64::from(status == 200);
        }
        tried += 1;
    }
    assert!(good > 0 && good < tried, "{good} of {tried}");
    let grown = resident_mib().zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
    assert!(grown < MOST_MIB, "the process grew by {grown} MiB");
    let last = server.post("/v1/completions", &json!({"prompt": "the fox", "max_tokens": 3, "seed": 1}));
    assert_eq!((last.status, server.get("/health").status), (200, 200));
    print(&format!("{tried} damaged requests, {good} of them answered with 200, no server error; {grown} MiB more"));
}

#[allow(clippy::print_stdout, reason = "figures of a long run")]
fn print(line: &str) {
    println!("{line}");
}
