//! Adapters on the command line: used beside a model, merged into it, combined.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::loam;
use loam_testkit::{Golden, golden_dir, workspace_root};
use std::path::Path;

fn adapter(case: &str) -> String {
    workspace_root().join("crates/testkit/peft").join(case).display().to_string()
}

/// Logits of the first row of a case's tokens.
fn logits(dir: &Path, case: &str, model: &str, more: &[&str]) -> Vec<f32> {
    let golden = Golden::read(&Path::new(&adapter(case)).join("golden.safetensors"));
    let tokens: Vec<String> = golden.integers("tokens").values[..9].iter().map(i64::to_string).collect();
    let tokens = tokens.join(",");
    let args: Vec<&str> =
        ["model", "logits", model, "--tokens", &tokens, "--json"].iter().chain(more).copied().collect();
    let rows = loam(dir, &args).json();
    let numbers = rows["logits"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap().clone());
    numbers.map(|x| x.as_f64().unwrap() as f32).collect()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn an_adapter_beside_a_model_and_merged_into_it_gives_the_logits_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let base = golden_dir("llama-gqa").display().to_string();
    let golden = Golden::read(&Path::new(&adapter("llama-dora")).join("golden.safetensors"));
    let expected = &golden.floats("logits").values[..9 * 64];
    let beside = logits(dir.path(), "llama-dora", &base, &["--adapter", &adapter("llama-dora")]);
    assert!(gap(&beside, expected) < 2e-5, "{}", gap(&beside, expected));
    let report =
        loam(dir.path(), &["model", "merge", &base, &adapter("llama-dora"), "out", "--quant", "q8_0", "--json"]).json();
    assert!(report["report"]["merged"]["max"].as_f64().unwrap() < 1e-4, "{report}");
    assert!(report["report"]["adapter"]["max"].as_f64().unwrap() > 1e-2, "{report}");
    assert!(report["quantised"]["merged_first"]["max"].as_f64().unwrap() > 1e-5, "{report}");
    let merged = logits(dir.path(), "llama-dora", "out", &[]);
    assert!(gap(&merged, expected) < 1e-4, "{}", gap(&merged, expected));
    let again = loam(dir.path(), &["model", "merge", &base, &adapter("llama-dora"), "out"]);
    assert!(again.code == 2 && again.stderr.contains("--force"), "{}", again.stderr);
}

#[test]
fn adapters_combine_and_what_does_not_fit_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let base = golden_dir("llama-gqa").display().to_string();
    let (first, second) = (adapter("combine/first"), adapter("combine/second"));
    let ran = loam(
        dir.path(),
        &["model", "combine", &base, "both", &format!("{first}=0.7"), &format!("{second}=-0.4"), "--how", "cat"],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let golden = Golden::read(&Path::new(&adapter("combine")).join("golden.safetensors"));
    let both = dir.path().join("both").display().to_string();
    let got = logits(dir.path(), "combine", &base, &["--adapter", &both]);
    let expected = &golden.floats("combined.cat").values[..9 * 64];
    assert!(gap(&got, expected) < 1e-4, "{}", gap(&got, expected));
    for (args, said) in [
        (vec!["model", "merge", &base, &adapter("llama-prompt"), "x"], "cannot be merged"),
        (vec!["model", "merge", &base, &adapter("gpt2-lora"), "x"], "matches no linear layer"),
        (vec!["model", "logits", &base, "--tokens", "1", "--adapter", "/nowhere"], "there is no adapter"),
        (vec!["model", "combine", &base, "y", &adapter("llama-ia3")], "only LoRA's can be added up"),
    ] {
        let ran = loam(dir.path(), &args);
        assert!(ran.code == 2 && ran.stderr.contains(said), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn a_lora_becomes_a_gguf_file_and_gives_the_same_logits() {
    let dir = tempfile::tempdir().unwrap();
    let base = golden_dir("llama-gqa").display().to_string();
    let ran = loam(dir.path(), &["model", "combine", &base, "lora.gguf", &adapter("llama-lora")]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let file = dir.path().join("lora.gguf").display().to_string();
    let expected = logits(dir.path(), "llama-lora", &base, &["--adapter", &adapter("llama-lora")]);
    let got = logits(dir.path(), "llama-lora", &base, &["--adapter", &file]);
    assert!(gap(&got, &expected) < 2e-5, "{}", gap(&got, &expected));
    let again = loam(dir.path(), &["model", "combine", &base, "lora.gguf", &adapter("llama-lora")]);
    assert!(again.code == 2 && again.stderr.contains("--force"), "{}", again.stderr);
}
