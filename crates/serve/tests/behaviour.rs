//! What the server does with bad requests, many clients, and those that go away.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{Running, connect, send, wait_for};
use loam_chat::{SamplerPreset, Sampling};
use loam_serve::{Keys, ServedModel, Server, Settings};
use loam_testkit::Random;
use serde_json::{Value, json};
use std::io::Read;
use std::net::SocketAddr;

const RUNNING: &str = "vllm:num_requests_running{model_name=\"org/tiny\"}";
const ABORTED: &str = "vllm:request_success_total{model_name=\"org/tiny\",finished_reason=\"abort\"}";

fn long(stream: bool) -> Value {
    json!({"prompt": "the fox", "max_tokens": 900, "ignore_eos": true, "stream": stream})
}

#[test]
fn bad_requests_get_one_clear_error_in_the_apis_shape() {
    let server = Running::start(Settings { max_body: 4000, ..Settings::default() });
    let chat = "/v1/chat/completions";
    let ask = |messages: Value| json!({"messages": messages});
    let hello = json!([{"role": "user", "content": "hi"}]);
    let with = |key: &str, value: Value| {
        let mut body = ask(hello.clone());
        body[key] = value;
        body
    };
    let cases = [
        (ask(json!([])), 400, "messages"),
        (json!({}), 400, "messages"),
        (ask(json!([{"role": "robot", "content": "x"}])), 400, "messages[0].role"),
        (
            ask(json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])),
            400,
            "messages[0].content[0]",
        ),
        (with("temperature", json!(-1)), 400, "temperature"),
        (with("temperature", json!("hot")), 400, "temperature"),
        (with("top_p", json!(0)), 400, "top_p"),
        (with("n", json!(0)), 400, "n"),
        (with("n", json!(10_000)), 400, "n"),
        (with("top_logprobs", json!(3)), 400, "top_logprobs"),
        (with("logit_bias", json!({"x": 1})), 400, "logit_bias"),
        (with("logit_bias", json!({"99999": 1})), 400, "logit_bias"),
        (with("stop", json!([""])), 400, "stop"),
        (with("tool_choice", json!("required")), 400, "tool_choice"),
        (with("response_format", json!({"type": "xml"})), 400, "response_format.type"),
        (with("response_format", json!({"type": "json_schema"})), 400, "response_format.json_schema.schema"),
        (with("functions", json!([])), 400, "functions"),
        (with("max_tokens", json!(0)), 400, "max_tokens"),
        (ask(json!([{"role": "user", "content": "x9".repeat(1500)}])), 400, "messages"),
    ];
    for (body, status, param) in cases {
        let answer = server.post(chat, &body);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (status, Some(param)), "{body}: {error}");
        assert!(error["type"] == "invalid_request_error" && error["message"].as_str().unwrap().len() > 5, "{error}");
    }
    let raw = |method: &str, path: &str, body: &str| {
        let answer = send(server.address, method, path, &[], body);
        assert!(answer.json()["error"]["message"].is_string());
        answer.status
    };
    assert_eq!(raw("POST", chat, "{\"messages\": ["), 400);
    assert_eq!(raw("POST", chat, "[1]"), 400);
    assert_eq!(raw("POST", chat, &"[".repeat(3000)), 400);
    assert_eq!(raw("POST", chat, &format!("{{\"a\": \"{}\"}}", "x".repeat(5000))), 413);
    assert_eq!(raw("GET", chat, ""), 405);
    assert_eq!(raw("POST", "/v1/nothing", "{}"), 404);
    assert_eq!(raw("POST", "/v1/completions", "{\"prompt\": [99999999]}"), 400);
    assert_eq!(raw("POST", "/v1/completions", "{\"prompt\": \"a\", \"suffix\": \"b\"}"), 400);
    // After all that it still writes.
    assert_eq!(server.post(chat, &with("max_tokens", json!(2))).status, 200);
}

#[test]
fn whoever_goes_away_is_written_for_no_longer() {
    let server = Running::start(Settings::default());
    // A stream that is left in the middle.
    let mut stream = connect(server.address, "POST", "/v1/completions", &[], &long(true).to_string());
    let mut some = [0; 600];
    stream.read_exact(&mut some).unwrap();
    assert_eq!(server.metric(RUNNING), 1.0);
    drop(stream);
    wait_for("the end of the stream", || server.metric(RUNNING) == 0.0);
    // An answer that nobody waits for.
    let stream = connect(server.address, "POST", "/v1/completions", &[], &long(false).to_string());
    wait_for("the beginning", || server.metric(RUNNING) == 1.0);
    drop(stream);
    wait_for("the end of the answer", || server.metric(RUNNING) == 0.0);
    assert_eq!(server.metric(ABORTED), 2.0);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = Running::start(Settings { max_concurrent: 1, max_queue: 1, ..Settings::default() });
    let streams: Vec<_> =
        (0..2).map(|_| connect(server.address, "POST", "/v1/completions", &[], &long(true).to_string())).collect();
    wait_for("a full queue", || {
        server.metric(RUNNING) == 1.0 && server.metric("vllm:num_requests_waiting{model_name=\"org/tiny\"}") == 1.0
    });
    let answer = server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 2}));
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (429, Some("rate_limit_error")));
    assert!(answer.headers.contains("retry-after: 1"), "{}", answer.headers);
    drop(streams);
    wait_for("room", || server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 2})).status == 200);
}

#[test]
fn keys_are_asked_for_where_there_are_some() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8 generate\n").unwrap();
    let server = Running::start(Settings { keys: Keys::open(file.path()).unwrap(), ..Settings::default() });
    let ask = |headers: &[(&str, &str)], method: &str, path: &str| {
        send(server.address, method, path, headers, "{\"prompt\": \"a\"}")
    };
    let completions = "/v1/completions";
    assert_eq!(ask(&[], "POST", completions).status, 401);
    assert_eq!(ask(&[("authorization", "Bearer beta")], "POST", completions).status, 401);
    assert_eq!(ask(&[("authorization", "Bearer alpha")], "POST", completions).status, 200);
    assert_eq!(ask(&[("x-api-key", "alpha")], "POST", completions).status, 200);
    assert_eq!(ask(&[("x-api-key", "alpha")], "POST", "/v1/embeddings").status, 403);
    assert_eq!(ask(&[], "GET", "/health").status, 200);
    assert_eq!(ask(&[], "GET", "/metrics").status, 401);
}

#[test]
fn a_server_that_stops_lets_running_answers_end() {
    let mut server = Running::start(Settings::default());
    let address = server.address;
    let body = json!({"prompt": "the fox", "max_tokens": 500, "ignore_eos": true});
    let client = std::thread::spawn(move || send(address, "POST", "/v1/completions", &[], &body.to_string()));
    wait_for("the beginning", || server.metric(RUNNING) == 1.0);
    server.stop();
    let answer = client.join().unwrap();
    assert_eq!((answer.status, &answer.json()["usage"]["completion_tokens"]), (200, &json!(500)));
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn several_models_answer_to_their_names_alone() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut models = Vec::new();
    for (index, dir) in dirs.iter().enumerate() {
        common::write_model(dir.path(), index as u64);
        models.push(ServedModel::open(format!("m{index}"), dir.path()).unwrap());
    }
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(models, Settings { address, threads: Some(1), ..Settings::default() }).unwrap();
    let (address, stopper) = (server.address(), server.stopper());
    let thread = std::thread::spawn(move || server.run().unwrap());
    let write = |model: &str| {
        let body = json!({"prompt": "the fox", "model": model, "seed": 1, "max_tokens": 8, "ignore_eos": true});
        let answer = send(address, "POST", "/v1/completions", &[], &body.to_string());
        (answer.status, answer.json()["choices"][0]["text"].clone())
    };
    assert_eq!((write("m0").0, write("m1").0, write("m2").0), (200, 200, 404));
    assert_ne!(write("m0").1, write("m1").1);
    stopper.stop();
    thread.join().unwrap();
}

#[test]
fn many_clients_at_once_each_get_their_own_text() {
    let server = Running::start(Settings { max_concurrent: 6, kv_tokens: Some(1500), ..Settings::default() });
    let open = server.open();
    let generator = open.generator();
    let address = server.address;
    let clients: Vec<_> = (0..16u64)
        .map(|client| {
            std::thread::spawn(move || {
                let mut random = Random::new(client);
                let mut found = Vec::new();
                for round in 0..6u64 {
                    let prompt = format!("{} {}", "the fox and the goose ".repeat(1 + random.range(0, 6)), client % 5);
                    let seed = 100 * client + round;
                    let max_tokens = 1 + random.range(0, 40);
                    let stream = random.range(0, 2) == 0;
                    let body =
                        json!({"prompt": prompt, "seed": seed, "max_tokens": max_tokens, "stream": stream}).to_string();
                    match random.range(0, 5) {
                        0 => {
                            let mut stream = connect(address, "POST", "/v1/completions", &[], &body);
                            let mut some = [0; 40];
                            let _ = stream.read(&mut some);
                        }
                        1 => assert_eq!(
                            send(address, "POST", "/v1/completions", &[], &body[..body.len() - 2]).status,
                            400
                        ),
                        _ => {
                            let answer = send(address, "POST", "/v1/completions", &[], &body);
                            assert_eq!(answer.status, 200, "{}", answer.text);
                            let text = match stream {
                                true => {
                                    answer.events().iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect()
                                }
                                false => answer.json()["choices"][0]["text"].as_str().unwrap().to_owned(),
                            };
                            found.push((prompt, seed, max_tokens, text));
                        }
                    }
                }
                found
            })
        })
        .collect();
    let mut count = 0;
    for client in clients {
        for (prompt, seed, max_tokens, text) in client.join().unwrap() {
            let sampling = Sampling { preset: SamplerPreset::OpenAi, seed, max_tokens, ..Sampling::default() };
            let prompt = generator.encode_prompt(&prompt).unwrap();
            assert_eq!(text, generator.write(&prompt, &sampling, &mut |_| {}).unwrap().completion.text);
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
    wait_for("rest", || server.metric(RUNNING) == 0.0);
    assert!(server.metric("vllm:prefix_cache_hits_total{model_name=\"org/tiny\"}") > 0.0);
}
