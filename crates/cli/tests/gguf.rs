//! GGUF files wherever a model is asked for, and conversions in both directions.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::loam;
use loam_formats::{HfDir, HfWriter};
use loam_models::LanguageModel;
use loam_tokenizer::{ChatTemplate, DirectoryOptions, TrainConfig, TrainKind, save_directory, train};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const TEXT: &str = "the fox and the goose ate a pear. It's 2048 o'clock; 狐狸和鹅吃了一个梨。é";

/// A directory `model` with weights, a tokenizer, a chat template and recommended sampling.
fn make(dir: &Path, kind: TrainKind, family: &str) {
    let config = TrainConfig { vocab_size: 400, ..TrainConfig::new(kind) };
    let tokenizer = train([Ok::<_, std::io::Error>(TEXT.to_owned())], &config, &mut |_| {}).unwrap();
    let config = json!({
        "model_type": family, "vocab_size": tokenizer.vocab_size() + 5, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.6, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    let model = LanguageModel::new(&config, 3).unwrap();
    let writer = HfWriter::create(dir.join("model")).unwrap();
    model.save(&writer, None).unwrap();
    let template = ChatTemplate::chatml();
    let options = DirectoryOptions { template: Some(&template), model_max_length: Some(64) };
    save_directory(writer.path(), &tokenizer, options).unwrap();
    writer.generation_config(&json!({"do_sample": true, "temperature": 0.7, "top_k": 11})).unwrap();
}

fn text(dir: &Path, args: &[&str]) -> String {
    let ran = loam(dir, args);
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    ran.stdout
}

fn tensors(dir: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let weights = HfDir::open(dir).unwrap().weights().unwrap();
    let read = |name: &str| {
        let view = weights.get(name).unwrap();
        (name.to_owned(), view.shape.to_vec(), view.bytes.to_vec())
    };
    weights.names().map(read).collect()
}

#[test]
fn a_model_goes_into_a_file_and_comes_back_without_a_loss() {
    for (kind, family) in [
        (TrainKind::ByteBpe, "llama"),
        (TrainKind::Char, "qwen2"),
        (TrainKind::Unigram, "qwen3"),
        (TrainKind::ByteBpe, "phi3"),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        make(dir, kind, family);
        let report = loam(dir, &["model", "convert", "model", "out.gguf", "--json"]).json();
        assert_eq!((report["dtype"].as_str(), report["files"].as_array().unwrap().len()), (Some("f32"), 1));
        text(dir, &["model", "convert", "out.gguf", "back"]);
        assert!(tensors(&dir.join("back")) == tensors(&dir.join("model")), "{family}");
        fs::write(dir.join("lines.txt"), format!("{TEXT}\nthe  goose\n 'tis 1234567 <|endoftext|> x\n")).unwrap();
        let ids = |model: &str| text(dir, &["tokenizer", "encode", model, "--file", "lines.txt", "--json"]);
        assert_eq!(ids("out.gguf"), ids("model"), "{family}");
        assert_eq!(ids("back"), ids("model"), "{family}");
        let logits = |model: &str| text(dir, &["model", "logits", model, "--tokens", "3,1,4,1,5", "--json"]);
        assert_eq!(logits("out.gguf"), logits("model"), "{family}");
        assert_eq!(logits("back"), logits("model"), "{family}");
        let written = |model: &str| {
            let ran =
                loam(dir, &["generate", model, "the fox", "--chat", "--max-tokens", "9", "--seed", "5", "--json"]);
            let json = ran.json();
            json!([json["text"], json["tokens"], json["finish_reason"]])
        };
        // The temperature and top-k that the model recommends are those of the file, too.
        assert_eq!(written("out.gguf"), written("model"), "{family}");
        assert_eq!(written("back"), written("model"), "{family}");
    }
}

#[test]
fn a_quantised_file_is_shown_run_and_written_again() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    make(dir, TrainKind::ByteBpe, "llama");
    text(dir, &["model", "convert", "model", "small.gguf", "--quant", "Q8_0"]);
    let small = fs::metadata(dir.join("small.gguf")).unwrap().len();
    let whole = fs::metadata(dir.join("model/model.safetensors")).unwrap().len();
    assert!(small < whole / 2, "{small} of {whole} bytes");
    let shown = loam(dir, &["model", "show", "small.gguf", "--json"]).json();
    let of = |name: &str| {
        let list = shown["tensors"].as_array().unwrap();
        list.iter().find(|tensor| tensor["name"] == name).unwrap()["dtype"].clone()
    };
    assert_eq!(of("blk.0.ffn_up.weight"), "Q8_0");
    assert_eq!(of("output_norm.weight"), "F32");
    assert_eq!(shown["config"]["num_key_value_heads"], 2);
    assert!(text(dir, &["model", "show", "small.gguf", "--tree"]).contains("Q8_0"));
    // The same rounding, done in memory.
    let logits = |args: &[&str]| {
        let all: Vec<&str> =
            ["model", "logits"].iter().chain(args).chain(&["--tokens", "3,1,4", "--json"]).copied().collect();
        text(dir, &all)
    };
    assert_eq!(logits(&["small.gguf"]), logits(&["model", "--quant", "q8_0"]));
    // Nothing asked keeps every block.
    text(dir, &["model", "convert", "small.gguf", "copy.gguf"]);
    assert_eq!(logits(&["copy.gguf"]), logits(&["small.gguf"]));
    text(dir, &["model", "convert", "small.gguf", "wide.gguf", "--dtype", "float32"]);
    assert_eq!(loam(dir, &["model", "show", "wide.gguf", "--json"]).json()["config"]["dtype"], "float32");
    // In several files, any of which stands for all.
    let report =
        loam(dir, &["model", "convert", "small.gguf", "part.gguf", "--max-shard-size", "50KB", "--json"]).json();
    let files: Vec<&str> = report["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert!(files.len() > 1 && files[0].contains("part-00001-of-0"), "{files:?}");
    assert_eq!(logits(&[files[1]]), logits(&["small.gguf"]));
    // A name of the store.
    fs::create_dir_all(dir.join("home/models")).unwrap();
    fs::rename(dir.join("copy.gguf"), dir.join("home/models/mine.gguf")).unwrap();
    assert_eq!(logits(&["mine.gguf"]), logits(&["small.gguf"]));
    let vector: Value = serde_json::from_str(&text(dir, &["embed", "small.gguf", "the fox", "--json"])).unwrap();
    assert_eq!(vector["embedding"].as_array().unwrap().len(), 64);
}

#[test]
fn what_cannot_be_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    make(dir, TrainKind::ByteBpe, "llama");
    text(dir, &["model", "convert", "model", "a.gguf"]);
    let said = |args: &[&str]| {
        let ran = loam(dir, args);
        assert_eq!(ran.code, 2, "{args:?} gave {}", ran.stdout);
        ran.stderr
    };
    assert!(said(&["model", "convert", "model", "a.gguf"]).contains("--force replaces it"));
    text(dir, &["model", "convert", "model", "a.gguf", "--force"]);
    assert!(said(&["model", "convert", "a.gguf", "./a.gguf", "--force"]).contains("is to be converted"));
    assert!(said(&["model", "convert", "model", "b", "--quant", "q8_0"]).contains("ends with .gguf"));
    assert!(said(&["model", "convert", "model", "b.gguf", "--quant", "q9"]).contains("unknown quantisation"));
    fs::create_dir(dir.join("d.gguf")).unwrap();
    assert!(said(&["model", "convert", "model", "d.gguf"]).contains("is a directory"));
    let whole = fs::read(dir.join("a.gguf")).unwrap();
    fs::write(dir.join("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    for args in [&["generate", "cut.gguf", "x"][..], &["model", "show", "cut.gguf"], &["tokenizer", "show", "cut.gguf"]]
    {
        let error = said(args);
        assert!(error.contains("not a valid GGUF file") && error.contains("truncated"), "{error}");
    }
    fs::write(dir.join("x.gguf"), "no such thing").unwrap();
    assert!(said(&["generate", "x.gguf", "x"]).contains("a model is a GGUF file, or a directory"));
    let bert = loam_testkit::golden_dir("bert");
    assert!(said(&["model", "convert", bert.to_str().unwrap(), "b.gguf"]).contains("cannot be written as GGUF"));
}

#[test]
fn a_file_is_measured_in_the_terms_of_llama_bench() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    make(dir, TrainKind::ByteBpe, "llama");
    text(dir, &["model", "convert", "model", "out.gguf", "--quant", "q8_0"]);
    let args = ["bench", "infer", "out.gguf", "-p", "24", "-n", "4", "-d", "8", "-r", "2", "--no-roof", "--json"];
    let json = loam(dir, &args).json();
    let tests = json.as_array().unwrap();
    assert_eq!(tests.len(), 2, "a prompt and decoding: {json}");
    for (test, counts) in tests.iter().zip([(24, 0), (0, 4)]) {
        assert_eq!((test["n_prompt"].as_u64().unwrap(), test["n_gen"].as_u64().unwrap()), counts);
        assert_eq!((test["n_depth"].as_u64(), test["model_type"].as_str()), (Some(8), Some("llama Q8_0")));
        assert_eq!(test["samples_ts"].as_array().unwrap().len(), 2);
        for field in ["avg_ns", "avg_ts", "model_size", "model_n_params", "n_threads", "load_ms"] {
            assert!(test[field].as_f64().is_some_and(|x| x > 0.0), "{field} in {test}");
        }
    }
    let nothing = loam(dir, &["bench", "infer", "out.gguf", "-p", "0", "-n", "0"]);
    assert!(nothing.code != 0 && nothing.stderr.contains("nothing to measure"), "{}", nothing.stderr);
    let both = loam(dir, &["bench", "infer", "out.gguf", "--config", "small"]);
    assert!(both.code != 0 && both.stderr.contains("cannot be used with"), "{}", both.stderr);
}
