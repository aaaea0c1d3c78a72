//! `loam model convert`: what it writes, and what it refuses to overwrite.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::loam;
use loam_testkit::{golden_copy, golden_dir, pickled_copy};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Logits, as exact as JSON prints them.
fn logits(dir: &Path, model: &str) -> String {
    let ran = loam(dir, &["model", "logits", model, "--tokens", "3,1,4,1,5", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_model_of_pytorch_becomes_safetensors_with_the_same_numbers_and_its_files_byte_for_byte() {
    for case in ["llama-bf16", "gpt2-unprefixed", "llama-sharded"] {
        let model = pickled_copy(case);
        let odd = "{ \"eos_token_id\":2,\n\n\"x\" :1 }";
        for name in ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"] {
            fs::write(model.path().join(name), odd).unwrap();
        }
        fs::write(model.path().join("notes.txt"), "not a file of the model").unwrap();
        let json = loam(model.path(), &["model", "convert", ".", "out", "--json"]).json();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["path", "source", "dtype", "parameters", "bytes", "files"]);
        assert_eq!(json["dtype"], if case == "llama-bf16" { "bfloat16" } else { "float32" });
        let out = model.path().join("out");
        let expected = [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model.safetensors",
            "tokenizer_config.json",
        ];
        assert_eq!(names(&out), expected);
        for name in ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"] {
            assert_eq!(fs::read_to_string(out.join(name)).unwrap(), odd, "{name}");
        }
        assert_eq!(logits(model.path(), "out"), logits(model.path(), "."), "{case}");
        let key = if case == "gpt2-unprefixed" { "torch_dtype" } else { "dtype" };
        assert_eq!(config(&out)[key], json["dtype"], "{case}");
    }
}

#[test]
fn the_element_type_and_the_size_of_shards_are_those_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_dir("llama-gqa");
    let model = model.to_str().unwrap();
    for (dtype, stored) in [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")] {
        let ran = loam(dir.path(), &["model", "convert", model, dtype, "--dtype", dtype, "--max-shard-size", "10KB"]);
        assert!(ran.code == 0 && ran.stdout.contains(dtype), "{}", ran.stderr);
        let out = dir.path().join(dtype);
        assert_eq!(config(&out)["dtype"], dtype);
        assert!(names(&out).iter().any(|name| name == "model.safetensors.index.json"), "{:?}", names(&out));
        let shown = loam(dir.path(), &["model", "show", dtype, "--json"]).json();
        let tensors = shown["tensors"].as_array().unwrap();
        assert!(tensors.len() > 10 && tensors.iter().all(|t| t["dtype"] == stored));
    }
    assert_eq!(logits(dir.path(), "float32"), logits(dir.path(), model));
    // What is stored in two bytes comes back exactly.
    let again = loam(dir.path(), &["model", "convert", "bfloat16", "again", "--dtype", "float32"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(logits(dir.path(), "again"), logits(dir.path(), "bfloat16"));
    let wrong = loam(dir.path(), &["model", "convert", model, "x", "--max-shard-size", "two"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("such as 2GB"), "{}", wrong.stderr);
}

#[test]
fn nothing_that_exists_is_overwritten_unasked_and_only_models_are_replaced() {
    let model = golden_copy("llama-plain");
    let dir = model.path();
    let convert = |out: &str, force: bool| {
        let args = ["model", "convert", ".", out, "--force"];
        loam(dir, &args[..if force { 5 } else { 4 }])
    };
    fs::create_dir(dir.join("empty")).unwrap();
    assert_eq!(convert("empty", false).code, 0);
    fs::write(dir.join("empty/stale.txt"), "gone afterwards").unwrap();
    let refused = convert("empty", false);
    assert_eq!(refused.stderr, "error: empty holds a model already\nhint: --force replaces it\n");
    assert!(dir.join("empty/stale.txt").exists());
    assert_eq!(convert("empty", true).code, 0);
    assert!(!dir.join("empty/stale.txt").exists() && dir.join("empty/model.safetensors").exists());
    fs::create_dir(dir.join("photos")).unwrap();
    fs::write(dir.join("photos/one.jpg"), "x").unwrap();
    for force in [false, true] {
        let ran = convert("photos", force);
        assert!(ran.code == 2 && ran.stderr.contains("what it holds is no model"), "{}", ran.stderr);
        let ran = convert(".", force);
        assert!(ran.code == 2 && ran.stderr.contains("holds the model that is to be converted"), "{}", ran.stderr);
        let ran = convert("config.json", force);
        assert!(ran.code == 2 && ran.stderr.contains("config.json is a file"), "{}", ran.stderr);
    }
    assert_eq!(fs::read_to_string(dir.join("photos/one.jpg")).unwrap(), "x");
}

#[test]
fn a_model_that_cannot_be_read_leaves_nothing_behind() {
    let model = pickled_copy("llama-bf16");
    let malicious = loam_testkit::workspace_root().join("crates/testkit/pickles/malicious.pt");
    fs::copy(malicious, model.path().join("pytorch_model.bin")).unwrap();
    let before = names(model.path());
    let ran = loam(model.path(), &["model", "convert", ".", "out"]);
    assert!(ran.code == 2 && ran.stderr.contains("it calls `posix.system`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: Loam executed nothing"), "{}", ran.stderr);
    assert_eq!((ran.stdout.as_str(), names(model.path())), ("", before));
}

#[test]
fn weights_beyond_float16_are_refused_rather_than_made_infinite() {
    let model = golden_copy("llama-plain");
    let path = model.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&1e6_f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let ran = loam(model.path(), &["model", "convert", ".", "out", "--dtype", "float16"]);
    assert!(ran.code == 2 && ran.stderr.contains("holds 1000000, float16 ends at 65504"), "{}", ran.stderr);
    assert!(!model.path().join("out").exists());
    assert_eq!(loam(model.path(), &["model", "convert", ".", "out", "--dtype", "bf16"]).code, 0);
}
