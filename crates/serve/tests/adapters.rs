//! Adapters come and go, each request names its own, and a text is the same in company as alone.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{Running, send};
use loam_chat::Sampling;
use loam_infer::OpenModel;
use loam_peft::{Adapter, AdapterSet, Config, Lora, Method, Origin, Targets};
use loam_serve::{AdapterFile, Keys, Settings};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const PATH: &str = "/v1/completions";

/// Writes an adapter that changes much.
fn write_adapter(model_dir: &Path, dir: &Path, seed: u64) {
    let open = OpenModel::open(model_dir).unwrap();
    let targets = Targets::Names(vec!["q_proj".into(), "v_proj".into(), "down_proj".into()]);
    let lora = Lora { r: 4, alpha: 16.0, targets, ..Lora::default() };
    let adapter = Adapter::new(&open.model, &Config::new(Method::Lora(lora)), Origin::default()).unwrap();
    let mut random = loam_testkit::Random::new(seed);
    for (_, parameter) in adapter.parameters() {
        let values: Vec<f32> = random.normals(parameter.count()).iter().map(|x| 0.3 * x).collect();
        parameter.set(&values);
    }
    adapter.save(&open.model, dir).unwrap();
}

/// What the engine writes by itself.
fn alone(server: &Running, adapter: Option<&Path>, prompt: &str, seed: u64) -> String {
    let open = server.open();
    if let Some(dir) = adapter {
        AdapterSet::attach(&open.model, vec![Arc::new(Adapter::open(&open.model, dir).unwrap())]);
    }
    let generator = open.generator();
    let sampling = Sampling {
        max_tokens: 24,
        seed,
        preset: loam_chat::SamplerPreset::OpenAi,
        temperature: 0.8,
        ..Sampling::default()
    };
    let prompt = generator.encode_prompt(prompt).unwrap();
    generator.with_stop_ids(Vec::new()).write(&prompt, &sampling, &mut |_| {}).unwrap().completion.text
}

fn ask(model: &str, prompt: &str, seed: u64) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": 24, "seed": seed, "temperature": 0.8, "ignore_eos": true})
}

#[test]
fn every_row_of_a_batch_goes_through_its_own_adapter() {
    let files = tempfile::tempdir().unwrap();
    let (first, second) = (files.path().join("first"), files.path().join("second"));
    let settings = Settings { may_load_adapters: true, guess_tokens: 4, ..Settings::default() };
    let server = Running::start(settings);
    write_adapter(server.dir.path(), &first, 1);
    write_adapter(server.dir.path(), &second, 2);
    let load =
        |name: &str, path: &Path| server.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path}));
    for (name, path) in [("first", &first), ("second", &second)] {
        let answer = load(name, path);
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    assert_eq!(load("first", &second).status, 400);
    let names: Vec<Value> =
        server.get("/v1/models").json()["data"].as_array().unwrap().iter().map(|card| card["id"].clone()).collect();
    assert_eq!(names, ["org/tiny", "first", "second"]);
    assert_eq!(server.get("/v1/models/first").json()["parent"], "org/tiny");

    let places = [("org/tiny", None), ("first", Some(first.as_path())), ("second", Some(second.as_path()))];
    let prompt = "the fox and the goose ate a pear. the fox and the goose ";
    let expected: Vec<Vec<String>> =
        (0..3).map(|seed| places.iter().map(|(_, dir)| alone(&server, *dir, prompt, seed)).collect()).collect();
    assert!(expected[0][0] != expected[0][1] && expected[0][1] != expected[0][2], "{:?}", expected[0]);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (seed, texts) in expected.iter().enumerate() {
            for ((name, _), text) in places.iter().zip(texts) {
                let server = &server;
                threads.push(scope.spawn(move || {
                    let answer = server.post(PATH, &ask(name, prompt, seed as u64)).json();
                    assert_eq!(
                        (answer["choices"][0]["text"].as_str(), answer["model"].as_str()),
                        (Some(text.as_str()), Some(*name))
                    );
                }));
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });

    let unload = |name: &str| server.post("/v1/unload_lora_adapter", &json!({"lora_name": name})).status;
    assert_eq!((unload("first"), unload("first"), unload("org/tiny")), (200, 404, 404));
    // A name that meant an adapter does not fall back to the model.
    assert_eq!(server.post(PATH, &ask("first", prompt, 0)).status, 404);
    assert_eq!(server.post(PATH, &ask("second", prompt, 0)).json()["choices"][0]["text"], expected[0][2].as_str());
    // The same name with other weights: nothing of the old ones is left.
    assert_eq!(load("first", &second).status, 200);
    assert_eq!(server.post(PATH, &ask("first", prompt, 0)).json()["choices"][0]["text"], expected[0][2].as_str());
}

#[test]
fn adapters_are_loaded_by_those_alone_who_may() {
    let closed = Running::start(Settings::default());
    let body = json!({"lora_name": "a", "lora_path": "/tmp"});
    assert_eq!(closed.post("/v1/load_lora_adapter", &body).status, 403);

    let file = tempfile::NamedTempFile::new().unwrap();
    // The hash of "alpha".
    let hash = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
    let with_scope = |scope: &str| {
        std::fs::write(file.path(), format!("{hash} {scope}\n")).unwrap();
        let keys = Keys::open(file.path()).unwrap();
        let server = Running::start(Settings { may_load_adapters: true, keys, ..Settings::default() });
        let headers = [("authorization", "Bearer alpha")];
        let answer = send(server.address, "POST", "/v1/load_lora_adapter", &headers, &body.to_string());
        (answer.status, answer.text)
    };
    assert_eq!(with_scope("generate").0, 403);
    let (status, text) = with_scope("admin");
    assert!(status == 400 && text.contains("adapter_config.json"), "{text}");
}

#[test]
fn a_server_that_cannot_load_its_adapters_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    common::write_model(dir.path(), 7);
    let model = loam_serve::ServedModel::open("tiny", dir.path()).unwrap();
    let file = AdapterFile { name: "a".into(), model: None, path: dir.path().join("nothing") };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings { address, adapters: vec![file], ..Settings::default() };
    let error = loam_serve::Server::bind(vec![model], settings).unwrap_err();
    assert!(error.to_string().contains("adapter a") && error.hint().is_some(), "{error}");
}
