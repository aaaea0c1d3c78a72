//! The APIs of others over the same engine, and the page.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::Running;
use loam_serve::Settings;
use serde_json::{Value, json};

fn server() -> Running {
    Running::start(Settings::default())
}

fn weather() -> Value {
    json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": false})
}

/// What the same conversation gets from OpenAI's API.
fn expected(server: &Running) -> String {
    let messages = json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "the fox"}]);
    let body = json!({"messages": messages, "temperature": 0, "max_tokens": 12});
    server.post("/v1/chat/completions", &body).json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn anthropic_messages_are_the_same_text_in_another_shape() {
    let server = server();
    let mut body = json!({"model": "m", "max_tokens": 12, "temperature": 0, "system": "be kind",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "the fox"}]}]});
    let text = expected(&server);
    let whole = server.post("/v1/messages", &body).json();
    assert_eq!((&whole["type"], &whole["content"][0]["text"]), (&json!("message"), &json!(text)));
    let count = server.post("/v1/messages/count_tokens", &body).json()["input_tokens"].as_u64().unwrap();
    let usage = &whole["usage"];
    assert_eq!(usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap(), count);
    body["stream"] = true.into();
    let events = server.post("/v1/messages", &body).events();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[1], kinds[kinds.len() - 1]), ("message_start", "content_block_start", "message_stop"));
    assert_eq!(events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect::<String>(), text);
    // A stop text is named.
    let stop: String = text.chars().skip(2).take(2).collect();
    body["stream"] = false.into();
    body["stop_sequences"] = json!([stop]);
    let stopped = server.post("/v1/messages", &body).json();
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let tools = json!({"max_tokens": 900, "messages": [{"role": "user", "content": "rain?"}], "seed": 1,
        "tools": [{"name": "weather", "input_schema": weather()}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
    let called = server.post("/v1/messages", &tools).json();
    assert_eq!(called["stop_reason"], "tool_use", "{called}");
    assert!(called["content"][0]["input"]["city"].is_string());
    let error = server.post("/v1/messages", &json!({"messages": [], "max_tokens": 1}));
    assert_eq!((error.status, error.json()["error"]["type"].as_str()), (400, Some("invalid_request_error")));
}

#[test]
fn responses_are_the_same_text_in_another_shape() {
    let server = server();
    let text = expected(&server);
    let mut body = json!({"instructions": "be kind", "input": "the fox", "temperature": 0, "max_output_tokens": 12});
    let whole = server.post("/v1/responses", &body).json();
    assert_eq!(whole["output"][0]["content"][0]["text"], text.as_str());
    assert_eq!(whole["output"].as_array().unwrap().len(), 1);
    body["stream"] = true.into();
    let events = server.post("/v1/responses", &body).events();
    let deltas = events.iter().filter(|e| e["type"] == "response.output_text.delta");
    assert_eq!(deltas.map(|e| e["delta"].as_str().unwrap()).collect::<String>(), text);
    assert!(events.iter().enumerate().all(|(index, e)| e["sequence_number"] == index));
    let last = &events[events.len() - 1]["response"];
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    let call = json!({"input": "rain?", "tools": [{"type": "function", "name": "weather", "parameters": weather()}],
        "tool_choice": {"type": "function", "name": "weather"}, "parallel_tool_calls": false, "max_output_tokens": 900});
    let called = server.post("/v1/responses", &call).json();
    let item = &called["output"][0];
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("weather")), "{called}");
    let turns = json!([{"role": "user", "content": "rain?"}, item,
        {"type": "function_call_output", "call_id": item["call_id"], "output": "yes"}]);
    let next = server.post("/v1/responses", &json!({"input": turns, "max_output_tokens": 3}));
    assert_eq!(next.status, 200, "{}", next.text);
    assert_eq!(server.post("/v1/responses", &json!({"input": "a", "previous_response_id": "x"})).status, 400);
}

#[test]
fn ollama_speaks_in_lines() {
    let server = server();
    let text = expected(&server);
    let mut body = json!({"model": "org/tiny", "options": {"temperature": 0, "num_predict": 12}, "messages": [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "the fox"}]});
    let lines: Vec<Value> =
        server.post("/api/chat", &body).text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter_map(|l| l["message"]["content"].as_str()).collect::<String>(), text);
    assert!(lines[lines.len() - 1]["done"] == true && lines[0]["done"] == false);
    body["stream"] = false.into();
    assert_eq!(server.post("/api/chat", &body).json()["message"]["content"], text.as_str());
    let raw =
        json!({"model": "x", "prompt": "the", "raw": true, "stream": false, "options": {"num_predict": 4, "seed": 1}});
    let plain = server.post("/v1/completions", &json!({"prompt": "the", "max_tokens": 4, "seed": 1})).json();
    assert_eq!(server.post("/api/generate", &raw).json()["response"], plain["choices"][0]["text"]);
    let form =
        json!({"model": "x", "prompt": "the", "stream": false, "format": weather(), "options": {"num_predict": 400}});
    let made = server.post("/api/generate", &form).json()["response"].as_str().unwrap().to_owned();
    assert!(serde_json::from_str::<Value>(&made).unwrap()["city"].is_string());
    let vectors = server.post("/api/embed", &json!({"model": "x", "input": ["a", "b"]})).json();
    assert_eq!(vectors["embeddings"].as_array().unwrap().len(), 2);
    assert_eq!(server.get("/api/tags").json()["models"][0]["name"], "org/tiny");
    assert_eq!(server.post("/api/show", &json!({"model": "org/tiny"})).json()["details"]["family"], "llama");
    assert!(server.post("/api/chat", &json!({"model": "x", "messages": []})).json()["error"].is_string());
}

#[test]
fn the_page_asks_nobody_else_for_anything() {
    let server = server();
    let page = server.get("/");
    assert!(page.status == 200 && page.headers.contains("text/html") && page.headers.contains("connect-src 'self'"));
    assert!(!page.text.contains("http://") && !page.text.contains("https://"));
}
