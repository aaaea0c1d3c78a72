//! `loam quantize`, `prune`, `compare` and `model plan` on tiny models, as a user runs them.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::loam;
use std::fs;
use std::path::Path;

const TEXT: &str =
    "the cat sat on the mat and the dog lay by the door while the rain fell on the roof of the old house. ";

/// A trained tiny model with its tokenizer, and a text.
fn model(dir: &Path) {
    fs::write(dir.join("text.txt"), TEXT.repeat(60)).unwrap();
    let recipe = r#"
        stage = "pretrain"
        [model]
        family = "llama"
        num_hidden_layers = 2
        hidden_size = 64
        num_attention_heads = 4
        num_key_value_heads = 2
        intermediate_size = 96
        max_position_embeddings = 64
        [tokenizer]
        kind = "char"
        [data]
        train = ["text.txt"]
        validation_tail = 0.1
        mode = "contiguous"
        seq_len = 32
        [train]
        lr = 3e-3
        batch = 4
        steps = 40
    "#;
    fs::write(dir.join("recipe.toml"), recipe).unwrap();
    let ran = loam(dir, &["train", "recipe.toml", "--dir", "run"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn a_model_is_quantised_pruned_compared_and_planned() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    let calibrate = ["--calibrate", "text.txt", "--sample-tokens", "32", "--samples", "16"];
    for method in ["rtn", "imatrix", "gptq", "awq"] {
        let out = format!("{method}.gguf");
        let mut args =
            vec!["quantize", "run", &out, "--type", "q4_0", "--method", method, "--text", "text.txt", "--json"];
        if method != "rtn" {
            args.extend(calibrate);
        }
        let report = loam(dir, &args).json();
        let c = &report["comparison"];
        assert!(
            c["kl_divergence"].as_f64().unwrap() > 0.0 && c["same_top"].as_f64().unwrap() > 0.5,
            "{method}: {report}"
        );
        assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64());
    }
    let args = ["quantize", "run", "i.gguf", "--method", "imatrix", "--save-imatrix", "m.dat", "--type", "q4_0"];
    assert_eq!(loam(dir, &[&args[..], &calibrate].concat()).code, 0);
    let args = ["quantize", "run", "j.gguf", "--method", "imatrix", "--imatrix", "m.dat", "--type", "q4_0"];
    assert_eq!(loam(dir, &args).code, 0);
    // NF4 is for directories, and what QLoRA trains on.
    let args = ["quantize", "run", "nf4", "--type", "nf4", "--text", "text.txt", "--json"];
    let report = loam(dir, &args).json();
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64(), "{report}");
    assert!(report["comparison"]["same_top"].as_f64().unwrap() > 0.5, "{report}");
    let refused = loam(dir, &["quantize", "run", "nf4.gguf", "--type", "nf4"]);
    assert!(refused.code == 2 && refused.stderr.contains("the format has no nf4"), "{}", refused.stderr);
    assert!(!dir.join("nf4.gguf").exists());
    let qlora = fs::read_to_string(dir.join("recipe.toml")).unwrap() + "[peft]\nmethod = \"lora\"\nquant = \"nf4\"\n";
    let (head, rest) = qlora.split_once("family").unwrap();
    let rest = rest.split_once("[data]").unwrap().1;
    fs::write(dir.join("qlora.toml"), format!("{head}path = \"run/model\"\n[data]{rest}").replace("40", "4")).unwrap();
    let ran = loam(dir, &["train", "qlora.toml", "--dir", "qlora"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let pruned = ["prune", "run", "pruned", "--method", "wanda", "--sparsity", "2:4", "--json"];
    let report = loam(dir, &[&pruned[..], &calibrate].concat()).json();
    assert!((report["zeros"].as_f64().unwrap() - 0.5).abs() < 0.01, "{report}");
    let small = ["prune", "run", "small", "--layers", "1", "--heads", "1", "--width", "64", "--json"];
    let report = loam(dir, &[&small[..], &calibrate].concat()).json();
    assert!(report["shrunk"]["parameters_after"].as_u64() < report["shrunk"]["parameters_before"].as_u64());
    let compared = loam(dir, &["compare", "run", "small", "--text", "text.txt", "--tokens", "500", "--json"]).json();
    assert!(compared["comparison"]["perplexity_after"].as_f64().unwrap() > 1.0);
    let same = loam(dir, &["compare", "run", "run", "--text", "text.txt", "--tokens", "500", "--json"]).json();
    assert_eq!(same["comparison"]["kl_divergence"], 0.0);
    assert_eq!(same["comparison"]["same_top"], 1.0);
    let plan = loam(dir, &["model", "plan", "run", "--context", "32,64", "--quant", "q8_0,q4_0", "--json"]).json();
    let rows = plan["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row["decode_tokens_per_s"].as_f64().unwrap() > 0.0 && row["fits"] == true), "{plan}");
}

#[test]
fn a_plan_says_what_binds_and_how_it_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let golden = loam_testkit::golden_dir("qwen3");
    let golden = golden.to_str().unwrap();
    let ran = loam(dir.path(), &["model", "plan", golden, "--no-speed", "--explain", "--quant", "q8_0"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in ["kv = layers", "activations = 4 bytes", "peak = max(", "context of"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    // Where a product does not read halves as bf16, they become bf16 in memory of their own.
    let args = ["model", "plan", golden, "--context", "32", "--quant", "f16", "--json", "--precision"];
    let [full, half] = ["f32", "bf16"].map(|precision| loam(dir.path(), &[&args[..], &[precision]].concat()).json());
    let weights = |plan: &serde_json::Value, of: &str| plan["rows"][0]["weights"][of].as_u64().unwrap();
    let [mapped, copied] = ["mapped", "copied"].map(|of| weights(&half, of).cmp(&weights(&full, of)));
    match loam_kernels::quant::reads_halves_as_bf16() {
        true => assert!(mapped.is_eq() && copied.is_eq(), "{half}"),
        false => assert!(mapped.is_lt() && copied.is_gt(), "{half}"),
    }
    assert!(half["rows"][0]["decode_tokens_per_s"].as_f64().unwrap() > 0.0, "{half}");
    let tight = loam(dir.path(), &["model", "plan", golden, "--no-speed", "--memory", "0", "--quant", "q8_0"]);
    assert!(tight.code == 1 && tight.stdout.contains("memory binds"), "{}", tight.stdout);
    let long = loam(dir.path(), &["model", "plan", golden, "--no-speed", "--context", "1000000"]);
    assert!(long.code == 2 && long.stderr.contains("longer than the model's"), "{}", long.stderr);
}

#[test]
fn weights_that_are_cut_short_or_another_models_are_not_planned() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let to = dir.path().join(name);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(loam_testkit::golden_dir("llama-gqa")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    };
    let refused = |model: &str, part: &str| {
        let ran = loam(dir.path(), &["model", "plan", model, "--no-speed"]);
        assert!(ran.code == 2 && ran.stderr.contains(part), "{model}: {} {}", ran.stdout, ran.stderr);
    };
    let weights = copy("cut").join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    refused("cut", "model.safetensors");
    let config = copy("other").join("config.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    value["intermediate_size"] = 96.into();
    fs::write(&config, value.to_string()).unwrap();
    refused("other", "mlp.");
    copy("whole");
    assert_eq!(loam(dir.path(), &["model", "convert", "whole", "whole.gguf"]).code, 0);
    let bytes = fs::read(dir.path().join("whole.gguf")).unwrap();
    fs::write(dir.path().join("cut.gguf"), &bytes[..bytes.len() - 64]).unwrap();
    refused("cut.gguf", "cut.gguf");
    fs::remove_file(dir.path().join("whole").join("model.safetensors")).unwrap();
    let early = loam(dir.path(), &["model", "plan", "whole", "--no-speed"]);
    assert!(early.code == 0 && early.stderr.contains("no weights there yet"), "{}", early.stderr);
}

#[test]
fn what_cannot_be_done_is_one_error_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let golden = loam_testkit::golden_dir("llama-gqa");
    let golden = golden.to_str().unwrap();
    let refused = |args: &[&str], part: &str| {
        let ran = loam(dir.path(), args);
        assert!(ran.code == 2 && ran.stderr.contains(part), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
    };
    refused(&["quantize", golden, "out"], "no GGUF file's name");
    refused(&["quantize", golden, "out.gguf", "--method", "gptq"], "--calibrate");
    refused(&["quantize", golden, "out.gguf", "--save-imatrix", "x.dat"], "--save-imatrix");
    refused(&["prune", golden, "out", "--sparsity", "1.5"], "no sparsity");
    refused(&["prune", golden, "out", "--sparsity", "0.5"], "--calibrate");
    refused(&["compare", golden, golden, "--text", "nowhere"], "nowhere");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
