//! OpenAI's API over HTTP on a tiny random model.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{Running, wait_for};
use loam_chat::{Message, SamplerPreset, Sampling};
use loam_serve::Settings;
use serde_json::{Value, json};

fn server() -> Running {
    Running::start(Settings::default())
}

fn asked(extra: Value) -> Value {
    let mut body = json!({
        "model": "org/tiny", "messages": [{"role": "user", "content": "the fox"}], "seed": 3, "max_tokens": 12,
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn content(events: &[Value], choice: u64) -> String {
    let own = events.iter().flat_map(|e| e["choices"].as_array().into_iter().flatten().cloned().collect::<Vec<_>>());
    own.filter(|c| c["index"] == choice).filter_map(|c| c["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_chat_is_what_the_engine_writes_alone_streamed_or_not() {
    let server = server();
    let open = server.open();
    let generator = open.generator().keep_logprobs(true);
    let prompt = generator.encode_messages(&[Message::user("the fox")]).unwrap();
    let expected = |seed| {
        let sampling =
            Sampling { preset: SamplerPreset::OpenAi, seed, max_tokens: 12, top_logprobs: 2, ..Sampling::default() };
        generator.write(&prompt, &sampling, &mut |_| {}).unwrap()
    };
    let answer =
        server.post("/v1/chat/completions", &asked(json!({"n": 2, "logprobs": true, "top_logprobs": 2}))).json();
    assert_eq!((answer["object"].as_str(), answer["model"].as_str()), (Some("chat.completion"), Some("org/tiny")));
    let streamed = asked(json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}, "logprobs": true}));
    let events = server.post("/v1/chat/completions", &streamed).events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    let mut written = 0;
    for choice in 0..2 {
        let alone = expected(3 + choice as u64);
        let found = &answer["choices"][choice];
        assert_eq!(found["message"]["content"], alone.completion.text.as_str());
        assert_eq!(found["message"]["refusal"], Value::Null);
        assert_eq!(content(&events, choice as u64), alone.completion.text);
        let rated = found["logprobs"]["content"].as_array().unwrap();
        assert_eq!(rated.len(), alone.completion.tokens.len());
        written += rated.len();
        for (rated, logprob) in rated.iter().zip(alone.completion.logprobs.unwrap()) {
            assert_eq!(rated["logprob"].as_f64().unwrap() as f32, logprob);
            assert_eq!(rated["top_logprobs"].as_array().unwrap().len(), 2);
        }
        let ends = events
            .iter()
            .filter(|e| e["choices"][0]["index"] == choice && e["choices"][0]["finish_reason"].is_string());
        assert_eq!(ends.count(), 1);
    }
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], prompt.len());
    assert_eq!(usage["completion_tokens"], written);
    let last = &events[events.len() - 2];
    assert_eq!((last["choices"].as_array().unwrap().len(), &last["usage"]["completion_tokens"]), (0, &json!(written)));
    assert!(events[..events.len() - 2].iter().all(|e| e["id"] == events[0]["id"] && e["usage"].is_null()));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
}

#[test]
fn a_stop_text_ends_the_answer_and_a_bias_forbids() {
    let server = server();
    let whole = server.post("/v1/chat/completions", &asked(json!({"temperature": 0, "ignore_eos": true}))).json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let middle: String = text.chars().skip(3).take(2).collect();
    let stopped = asked(json!({"temperature": 0, "ignore_eos": true, "stop": [middle]}));
    let stopped = server.post("/v1/chat/completions", &stopped).json();
    assert_eq!(stopped["choices"][0]["message"]["content"], text[..text.find(&middle).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let forced = asked(json!({"logit_bias": {"70": 1000}, "max_tokens": 3, "logprobs": true}));
    let forced = server.post("/v1/chat/completions", &forced).json();
    let tokens = forced["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert!(tokens.len() == 3 && tokens.iter().all(|t| t["token"] == tokens[0]["token"]), "{tokens:?}");
}

fn tools() -> Value {
    let weather = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "北京"]}, "days": {"type": "integer",
        "minimum": 1, "maximum": 9}}, "required": ["city", "days"], "additionalProperties": false});
    let clock = json!({"type": "object", "properties": {"utc": {"type": "boolean"}}, "required": ["utc"],
        "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "the weather", "parameters": weather}},
        {"type": "function", "function": {"name": "get_time", "parameters": clock}},
    ])
}

#[test]
fn calls_of_tools_have_the_form_that_they_must_have() {
    let server = server();
    for seed in 0..4 {
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "get_weather"}})] {
            let body = asked(json!({"tools": tools(), "tool_choice": choice, "seed": seed, "max_tokens": 900,
                "parallel_tool_calls": false}));
            let answer = server.post("/v1/chat/completions", &body).json();
            let found = &answer["choices"][0];
            assert_eq!(found["finish_reason"], "tool_calls", "{answer}");
            let calls = found["message"]["tool_calls"].as_array().unwrap();
            for call in calls {
                let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
                match call["function"]["name"].as_str().unwrap() {
                    "get_weather" => {
                        assert!(["Paris", "北京"].contains(&arguments["city"].as_str().unwrap()));
                        assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()));
                    }
                    name => assert!(name == "get_time" && choice.is_string() && arguments["utc"].is_boolean()),
                }
            }
            let mut streamed = body.clone();
            streamed["stream"] = true.into();
            let events = server.post("/v1/chat/completions", &streamed).events();
            let mut joined: Vec<(String, String)> = Vec::new();
            for event in &events {
                for delta in event["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten() {
                    let at = delta["index"].as_u64().unwrap() as usize;
                    if let Some(name) = delta["function"]["name"].as_str() {
                        assert!(at == joined.len() && delta["id"].is_string() && delta["type"] == "function");
                        joined.push((name.to_owned(), String::new()));
                    }
                    joined[at].1.push_str(delta["function"]["arguments"].as_str().unwrap());
                }
            }
            let plain = |call: &Value| {
                let function = &call["function"];
                (function["name"].as_str().unwrap().to_owned(), function["arguments"].as_str().unwrap().to_owned())
            };
            assert_eq!(joined, calls.iter().map(plain).collect::<Vec<_>>());
        }
    }
    // Left to itself, a random model talks; forced to begin a call, it has to go on with one.
    let free = server.post("/v1/chat/completions", &asked(json!({"tools": tools()}))).json();
    assert!(free["choices"][0]["message"]["content"].is_string(), "{free}");
    let history = json!([
        {"role": "user", "content": "the weather?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
            "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\", \"days\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]);
    let text = server.post("/apply-template", &json!({"messages": history, "tools": tools()})).json();
    let text = text["prompt"].as_str().unwrap();
    for part in ["get_time", "{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Paris\",\"days\":1}}", "rain"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn constraints_are_kept_or_refused_with_their_place() {
    let server = server();
    let schema = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "on": {"type": "boolean"}},
        "required": ["name", "on"], "additionalProperties": false});
    let format =
        |schema: &Value| json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    for seed in 0..5 {
        let body = asked(json!({"response_format": format(&schema), "seed": seed, "max_tokens": 400}));
        let answer = server.post("/v1/chat/completions", &body).json();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value["name"].as_str().unwrap().chars().count() <= 5 && value["on"].is_boolean());
    }
    let bad = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "pattern": "(?=x)y"}}}});
    let answer = server.post("/v1/chat/completions", &asked(json!({"response_format": format(&bad)})));
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["param"]), (400, &json!("response_format.json_schema.schema")));
    assert!(error["message"].as_str().unwrap().contains("#/properties/a/items"), "{error}");
    let tool = json!([{"type": "function", "function": {"name": "f", "parameters": bad}}]);
    let answer = server.post("/v1/chat/completions", &asked(json!({"tools": tool})));
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("tools[0].function.parameters")));
    let chosen =
        server.post("/v1/completions", &json!({"prompt": "a", "guided_choice": ["fox", "goose"], "max_tokens": 20}));
    assert!(["fox", "goose"].contains(&chosen.json()["choices"][0]["text"].as_str().unwrap()));
    let regex =
        server.post("/v1/completions", &json!({"prompt": "a", "guided_regex": "[0-9]{3}", "max_tokens": 20})).json();
    assert!(regex["choices"][0]["text"].as_str().unwrap().parse::<u16>().is_ok(), "{regex}");
}

#[test]
fn completions_echo_and_rate_the_prompt() {
    let server = server();
    let open = server.open();
    let generator = open.generator();
    let tokens = generator.encode_prompt("the fox and the goose").unwrap();
    let scored = generator.score_tokens(&tokens, 1).unwrap();
    for prompt in [json!("the fox and the goose"), json!(tokens), json!(["the fox and the goose"]), json!([tokens])] {
        let body = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 1});
        let answer = server.post("/v1/completions", &body).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], "the fox and the goose", "{answer}");
        let found = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        assert_eq!((found.len(), &found[0]), (tokens.len(), &Value::Null));
        for (found, (expected, _)) in found[1..].iter().zip(&scored) {
            assert_eq!(found.as_f64().unwrap() as f32, *expected as f32);
        }
        assert_eq!(choice["logprobs"]["text_offset"][0], 0);
    }
    let many = json!({"prompt": ["the", "fox"], "n": 2, "max_tokens": 3, "seed": 1, "logprobs": 0});
    let answer = server.post("/v1/completions", &many).json();
    let indexes: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2, 3]);
    let streamed = json!({"prompt": "the", "max_tokens": 5, "seed": 1, "stream": true});
    let events = server.post("/v1/completions", &streamed).events();
    let text: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    let whole = server.post("/v1/completions", &json!({"prompt": "the", "max_tokens": 5, "seed": 1})).json();
    assert_eq!(whole["choices"][0]["text"], text);
}

#[test]
fn embeddings_in_every_form() {
    use base64::Engine as _;
    let server = server();
    let texts = json!(["the fox", "the goose"]);
    let floats = server.post("/v1/embeddings", &json!({"input": texts, "model": "x"})).json();
    let coded = server.post("/v1/embeddings", &json!({"input": texts, "encoding_format": "base64"})).json();
    for index in 0..2 {
        let bytes = coded["data"][index]["embedding"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
        let decoded: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let plain: Vec<f32> =
            floats["data"][index]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_eq!((plain.len(), &plain), (32, &decoded));
    }
    let short = server.post("/v1/embeddings", &json!({"input": "the fox", "dimensions": 8})).json();
    let short: Vec<f64> =
        short["data"][0]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert!(short.len() == 8 && (short.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    let ids = server.post("/tokenize", &json!({"content": "the fox"})).json()["tokens"].clone();
    let by_ids = server.post("/v1/embeddings", &json!({"input": [ids]})).json();
    assert_eq!(by_ids["data"][0]["embedding"], floats["data"][0]["embedding"]);
    for (body, param) in [
        (json!({"input": []}), "input"),
        (json!({"input": [[1, 99999]]}), "input[0]"),
        (json!({"input": "a", "dimensions": 99}), "dimensions"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
    ] {
        let answer = server.post("/v1/embeddings", &body);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some(param)));
    }
    let ranked = json!({"query": "the fox", "documents": ["a pear", "the fox", {"text": "goose"}], "top_n": 2, "return_documents": true});
    let ranked = server.post("/v1/rerank", &ranked).json();
    let best = &ranked["results"][0];
    assert_eq!((&best["index"], &best["document"]["text"]), (&json!(1), &json!("the fox")));
    assert!(best["relevance_score"].as_f64().unwrap() > 0.999 && ranked["results"].as_array().unwrap().len() == 2);
}

#[test]
fn tokens_there_and_back_and_what_the_server_says_of_itself() {
    let server = server();
    let tokens = server.post("/tokenize", &json!({"prompt": "the fox 狐狸", "with_pieces": true})).json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let ids: Vec<Value> = tokens["tokens"].as_array().unwrap().iter().map(|t| t["id"].clone()).collect();
    assert_eq!(server.post("/detokenize", &json!({"tokens": ids})).json()["content"], "the fox 狐狸");
    assert_eq!(server.post("/detokenize", &json!({"tokens": [99999]})).status, 400);
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("org/tiny")));
    assert_eq!(server.get("/v1/models/org/tiny").json()["max_model_len"], 1024);
    assert_eq!(server.get("/v1/models/none").status, 404);
    assert_eq!(server.get("/health").json()["status"], "ok");
    assert_eq!(server.get("/ready").status, 200);
    server.post("/v1/chat/completions", &asked(json!({"ignore_eos": true})));
    // The engine counts a step once it is over, which the answer does not wait for.
    wait_for("rest", || server.metric("vllm:num_requests_running{model_name=\"org/tiny\"}") == 0.0);
    assert_eq!(server.metric("vllm:request_success_total{model_name=\"org/tiny\",finished_reason=\"length\"}"), 1.0);
    assert_eq!(server.metric("vllm:generation_tokens_total{model_name=\"org/tiny\"}"), 12.0);
    assert_eq!(server.metric("vllm:time_to_first_token_seconds_count{model_name=\"org/tiny\"}"), 1.0);
    assert_eq!(server.metric("vllm:inter_token_latency_seconds_count{model_name=\"org/tiny\"}"), 11.0);
    // Unknown fields are named.
    let answer = server.post("/v1/chat/completions", &asked(json!({"colour": "blue", "user": "me"}))).json();
    assert_eq!(answer["warnings"], json!(["unknown field `colour` was ignored"]));
}
