//! Answers are what OpenAI's own document says. That is checked of every answer of every test (`common::send`); here of all
//! kinds of them, and that the check sees what is wrong.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::Running;
use common::schema::{assert_is, problem};
use loam_serve::Settings;
use serde_json::{Value, json};

#[test]
fn the_check_sees_what_is_wrong() {
    let good = json!({
        "id": "a", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x", "refusal": null}, "logprobs": null,
            "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    });
    let name = "CreateChatCompletionResponse";
    assert_is(name, &good);
    let with = |pointer: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        problem(name, &bad)
    };
    assert!(with("/object", json!("chat")).unwrap().contains("object"));
    assert!(with("/created", json!("today")).unwrap().contains("created"));
    assert!(with("/choices/0/finish_reason", json!("tired")).unwrap().contains("choices[0].finish_reason"));
    assert!(with("/choices/0/message", json!({"role": "assistant"})).unwrap().contains("choices[0].message"));
    assert!(with("/choices/0/logprobs", json!({"content": [{"token": "x"}], "refusal": null})).is_some());
    assert!(with("/usage/total_tokens", json!(1.5)).unwrap().contains("total_tokens"));
    assert!(problem("ErrorResponse", &json!({"error": {"message": "x"}})).is_some());
    assert!(problem("ResponseStreamEvent", &json!({"type": "response.output_text.delta", "delta": "x"})).is_some());
}

#[test]
fn every_kind_of_answer_is_what_the_document_says() {
    let server = Running::start(Settings::default());
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {
        "type": "object", "properties": {"at": {"enum": ["fox", "pear"]}}, "required": ["at"],
        "additionalProperties": false}}}]);
    let hello = json!([{"role": "user", "content": "the fox"}]);
    let flat = json!([{"type": "function", "name": "look", "parameters": tools[0]["function"]["parameters"]}]);
    for stream in [false, true] {
        let chat = json!({"messages": hello, "max_tokens": 12, "seed": 1, "stream": stream});
        let completion = json!({"prompt": "the fox", "max_tokens": 5, "seed": 1, "stream": stream});
        let response = json!({"input": "the fox", "max_output_tokens": 12, "stream": stream});
        let cases = [
            ("/v1/chat/completions", &chat, json!({})),
            ("/v1/chat/completions", &chat, json!({"logprobs": true, "top_logprobs": 3, "n": 2})),
            ("/v1/chat/completions", &chat, json!({"stream_options": {"include_usage": true}})),
            ("/v1/chat/completions", &chat, json!({"tools": tools, "tool_choice": "required", "max_tokens": 200})),
            ("/v1/chat/completions", &chat, json!({"response_format": {"type": "json_object"}, "unheard_of": 1})),
            ("/v1/completions", &completion, json!({"logprobs": 2})),
            ("/v1/completions", &completion, json!({"n": 2, "stream_options": {"include_usage": true}})),
            ("/v1/responses", &response, json!({})),
            ("/v1/responses", &response, json!({"instructions": "be kind", "tools": flat, "temperature": 0})),
            ("/v1/responses", &response, json!({"tools": flat, "tool_choice": "required", "max_output_tokens": 200})),
            ("/v1/responses", &response, json!({"tools": flat, "tool_choice": {"type": "function", "name": "look"}})),
        ];
        for (path, base, more) in cases {
            let mut body = base.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = server.post(path, &body);
            assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text);
        }
    }
    let echo = json!({"prompt": ["the fox", "a pear"], "echo": true, "logprobs": 1, "max_tokens": 0});
    assert_eq!(server.post("/v1/completions", &echo).status, 200);
    for format in ["float", "base64"] {
        let body = json!({"input": ["a", "b"], "encoding_format": format});
        assert_eq!(server.post("/v1/embeddings", &body).status, 200);
    }
    assert_eq!(server.get("/v1/models").status, 200);
    assert_eq!(server.get("/v1/models/org/tiny").status, 200);
    assert_eq!(server.get("/v1/models/nobody").status, 404);
    assert_eq!(server.post("/v1/responses", &json!({"input": [{"role": "user"}]})).status, 400);
}

#[test]
fn the_server_describes_itself() {
    let server = Running::start(Settings::default());
    let answer = server.get("/openapi.json");
    assert_eq!((answer.status, answer.json()["openapi"].as_str()), (200, Some("3.1.0")));
    assert!(answer.json()["paths"]["/v1/chat/completions"]["post"].is_object());
}
