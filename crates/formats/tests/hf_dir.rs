//! Model directories: written, opened, and each way of being broken.
#![allow(clippy::unwrap_used, reason = "a failing helper of a test may panic")]

use loam_formats::safetensors::TensorOut;
use loam_formats::{Dtype, HfDir, HfWriter, Weights};
use serde_json::json;
use std::fs;
use std::path::Path;

const ZEROS: [u8; 400] = [0; 400];

fn tensors() -> Vec<TensorOut<'static>> {
    ["embed", "layer.1", "layer.0", "head"]
        .iter()
        .zip([40, 100, 100, 60])
        .map(|(name, n)| TensorOut::new(*name, Dtype::F32, &[n / 4], &ZEROS[..n]))
        .collect()
}

fn model(dir: &Path, max_shard_bytes: Option<u64>) -> HfWriter {
    let writer = HfWriter::create(dir.join("model")).unwrap();
    writer.config(&json!({"model_type": "llama", "hidden_size": 4})).unwrap();
    writer.weights(tensors(), max_shard_bytes).unwrap();
    writer
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn weights_error(dir: &Path) -> (String, String) {
    let error = HfDir::open(dir).unwrap().weights().unwrap_err();
    (error.to_string(), error.hint().unwrap_or_default())
}

#[test]
fn a_directory_with_one_weight_file_is_written_and_opened() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), None);
    writer.generation_config(&json!({"eos_token_id": 2})).unwrap();
    let hf = HfDir::open(writer.path()).unwrap();
    assert_eq!(hf.config()["model_type"], "llama");
    assert_eq!(hf.config_text(), "{\n  \"model_type\": \"llama\",\n  \"hidden_size\": 4\n}\n");
    assert_eq!(hf.generation_config().unwrap().unwrap()["eos_token_id"], 2);
    let weights = hf.weights().unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["embed", "head", "layer.0", "layer.1"]);
    assert_eq!(weights.get("head").unwrap().shape, [15]);
    assert_eq!(weights.total_bytes(), 300);
    assert!(weights.get("heed").unwrap_err().hint().unwrap().contains("'head'"));
    assert_eq!((hf.tokenizer_json_path(), hf.chat_template().unwrap()), (None, None));
}

#[test]
fn shards_respect_the_limit_and_the_index_finds_every_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), Some(150));
    let names = files(writer.path());
    let shard = |i| format!("model-0000{i}-of-00003.safetensors");
    assert_eq!(names[..4], ["config.json".to_owned(), shard(1), shard(2), shard(3)]);
    let weights = HfDir::open(writer.path()).unwrap().weights().unwrap();
    for (name, i) in [("embed", 1), ("layer.1", 1), ("layer.0", 2), ("head", 3)] {
        assert!(weights.file_of(name).unwrap().ends_with(shard(i)), "{name}");
        assert!(weights.get(name).is_ok());
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(writer.path().join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 300);
}

#[test]
fn saving_again_removes_the_weight_files_of_the_save_before_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), Some(150));
    writer.text("model-card.safetensors.md", "kept").unwrap();
    writer.weights(tensors(), None).unwrap();
    assert_eq!(files(writer.path()), ["config.json", "model-card.safetensors.md", "model.safetensors"]);
    writer.weights(tensors(), Some(299)).unwrap();
    assert_eq!(files(writer.path()).len(), 5);
    assert!(!writer.path().join("model.safetensors").exists());
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), Some(150));
    fs::remove_file(writer.path().join("model-00001-of-00003.safetensors")).unwrap();
    let (message, hint) = weights_error(writer.path());
    assert!(message.contains("model-00001-of-00003.safetensors does not exist") && hint.contains("2 tensors"));
}

#[test]
fn an_index_that_contradicts_its_shards_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), Some(150));
    let index = writer.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    let shard = |i| format!("model-0000{i}-of-00003.safetensors");
    let edits = [
        (text.replace(r#""head": "model-00003"#, r#""head": "model-00002"#), "'head' is said to be in model-00002"),
        (text.replace(r#""layer.0""#, r#""layer.9""#), "'layer.9' is said to be in model-00002"),
        (
            text.replace(&format!("\"embed\": \"{}\",", shard(1)), ""),
            "tensor 'embed' of model-00001-of-00003.safetensors is not listed",
        ),
        (text.replace(&shard(3), "../x.safetensors"), "'weight_map.head' is not a plain file name"),
        (text.replace("weight_map", "map"), "expected an object 'weight_map'"),
        (text[..text.len() / 2].to_owned(), "invalid JSON"),
        ("{\"weight_map\": {}}".to_owned(), "lists no tensor"),
    ];
    for (edited, expected) in edits {
        assert_ne!(edited, text);
        fs::write(&index, edited).unwrap();
        let (message, _) = weights_error(writer.path());
        assert!(message.contains("index.json") && message.contains(expected), "{message}; expected {expected}");
    }
}

#[test]
fn directories_that_are_no_models_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| HfDir::open(path).unwrap_err();
    assert!(open(&dir.path().join("absent")).to_string().contains("config.json does not exist"));
    assert!(open(dir.path()).hint().unwrap().contains("needs a config.json"));
    let config = dir.path().join("config.json");
    assert!(
        {
            fs::write(&config, "[1]").unwrap();
            open(dir.path())
        }
        .to_string()
        .contains("expected an object")
    );
    assert!(
        {
            fs::write(&config, b"\xff{}").unwrap();
            open(dir.path())
        }
        .to_string()
        .contains("not UTF-8")
    );
    assert!(
        {
            fs::write(&config, "{\"a\":").unwrap();
            open(dir.path())
        }
        .to_string()
        .contains("line 1")
    );
    assert!(open(&config).hint().unwrap().contains("this is a file"));
    fs::write(&config, "{}").unwrap();
    assert!(weights_error(dir.path()).1.contains("needs model.safetensors or pytorch_model.bin"));
    fs::write(dir.path().join("best.pth"), "").unwrap();
    assert!(weights_error(dir.path()).1.contains("if best.pth holds the weights, rename it to pytorch_model.bin"));
}

#[test]
fn a_chat_template_is_found_in_its_file_or_in_the_tokenizer_config() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), None);
    let template = || HfDir::open(writer.path()).unwrap().chat_template().unwrap();
    writer.json("tokenizer_config.json", &json!({"chat_template": "one"})).unwrap();
    assert_eq!(template().as_deref(), Some("one"));
    let named = json!([{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]);
    writer.json("tokenizer_config.json", &json!({"chat_template": named})).unwrap();
    assert_eq!(template().as_deref(), Some("two"));
    writer.text("chat_template.jinja", "three\n").unwrap();
    assert_eq!(template().as_deref(), Some("three\n"));
}

#[test]
fn tokenizer_files_are_copied_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), None);
    fs::write(dir.path().join("tokenizer.json"), "{ }").unwrap();
    fs::write(dir.path().join("merges.txt"), "a b").unwrap();
    assert_eq!(writer.copy_tokenizer_files(dir.path()).unwrap(), ["tokenizer.json", "merges.txt"]);
    assert_eq!(fs::read_to_string(writer.path().join("tokenizer.json")).unwrap(), "{ }");
}

/// A model directory with the weights of a golden in PyTorch's format.
fn torch_model(dir: &Path, case: &str) {
    fs::write(dir.join("config.json"), "{}").unwrap();
    for file in fs::read_dir(Path::new("../testkit/pickles").join(case)).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
}

#[test]
fn the_weights_of_pytorch_are_read_whole_and_in_shards() {
    for (case, files) in [("gpt2-unprefixed", 1), ("llama-sharded", 3)] {
        let dir = tempfile::tempdir().unwrap();
        torch_model(dir.path(), case);
        let weights = HfDir::open(dir.path()).unwrap().weights().unwrap();
        let reference = HfDir::open(Path::new("../testkit/goldens").join(case)).unwrap().weights().unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), reference.names().collect::<Vec<_>>());
        for name in reference.names() {
            assert_eq!(weights.get(name).unwrap(), reference.get(name).unwrap(), "{case}: {name}");
        }
        assert_eq!((weights.files().len(), weights.total_bytes()), (files, reference.total_bytes()));
        assert!(weights.file_of(reference.names().next().unwrap()).unwrap().extension().unwrap() == "bin");
    }
}

#[test]
fn a_missing_shard_of_pytorch_is_named_with_its_index() {
    let dir = tempfile::tempdir().unwrap();
    torch_model(dir.path(), "llama-sharded");
    fs::remove_file(dir.path().join("pytorch_model-00002-of-00003.bin")).unwrap();
    let (message, hint) = weights_error(dir.path());
    assert!(message.contains("pytorch_model-00002-of-00003.bin does not exist"), "{message}");
    assert!(hint.starts_with("pytorch_model.bin.index.json says that it holds"), "{hint}");
}

#[test]
fn safetensors_is_preferred_to_pytorch_and_a_file_of_either_opens_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let writer = model(dir.path(), None);
    fs::write(writer.path().join("pytorch_model.bin"), "never looked at").unwrap();
    assert_eq!(HfDir::open(writer.path()).unwrap().weights().unwrap().names().len(), 4);
    let pickle = Weights::open("../testkit/pickles/nested.pt").unwrap();
    assert_eq!(pickle.names().collect::<Vec<_>>(), ["bias", "weight"]);
    // By its beginning, where the name says nothing.
    let renamed = dir.path().join("weights");
    fs::copy("../testkit/pickles/nested.pt", &renamed).unwrap();
    assert_eq!(Weights::open(&renamed).unwrap().names().len(), 2);
    fs::remove_file(writer.path().join("model.safetensors")).unwrap();
    let (message, hint) = weights_error(writer.path());
    assert!(message.contains("pytorch_model.bin: not a valid PyTorch checkpoint"), "{message}");
    assert!(hint.contains("damaged or incomplete"), "{hint}");
}
