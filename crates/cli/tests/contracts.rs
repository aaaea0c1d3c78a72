//! Outputs that others script against: they must stay as they are.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{loam, loam_with_input};
use loam_testkit::{Golden, LOGITS_TOLERANCE, assert_close, encoder, golden_copy, golden_dir};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A tokenizer for the tiny models: their vocabulary of 64 holds special tokens and letters.
fn give_tokenizer(dir: &Path) {
    let text = dir.join("letters.txt");
    fs::write(&text, "abcdefghij klmnopqrst.").unwrap();
    let ran = loam(dir, &["tokenizer", "train", "letters.txt", "--algorithm", "char", "--out", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn logits_are_those_of_transformers_in_the_agreed_shape() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["gpt2-plain", "llama-gqa"] {
        let golden = Golden::open(case);
        let (tokens, logits) = (golden.integers("tokens"), golden.floats("logits"));
        let (time, vocab) = (tokens.shape[1], logits.shape[2]);
        let ids: Vec<String> = tokens.values[..time].iter().map(i64::to_string).collect();
        let path = golden_dir(case);
        let args = ["model", "logits", path.to_str().unwrap(), "--tokens", &ids.join(","), "--json"];
        let all = loam(dir.path(), &args);
        assert!(all.stdout.starts_with("{\"shape\":[17,"), "{}", &all.stdout[..40]);
        let json = all.json();
        assert_eq!(keys(&json), ["shape", "logits"]);
        let rows: Vec<Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
        assert_close(case, &rows.concat(), &logits.values[..time * vocab], LOGITS_TOLERANCE);
        let last = loam(dir.path(), &[&args[..], &["--last"]].concat()).json();
        assert_eq!(last["shape"], serde_json::json!([1, vocab]));
        let last: Vec<Vec<f32>> = serde_json::from_value(last["logits"].clone()).unwrap();
        assert_close(case, &last[0], &logits.values[(time - 1) * vocab..time * vocab], LOGITS_TOLERANCE);
    }
}

#[test]
fn generation_prints_the_agreed_fields_and_is_repeatable() {
    let model = golden_copy("llama-plain");
    give_tokenizer(model.path());
    let args = ["generate", ".", "abc", "--max-tokens", "12", "--temperature", "0", "--seed", "1", "--json"];
    let first = loam(model.path(), &args).json();
    assert_eq!(keys(&first), ["text", "tokens", "finish_reason", "prompt_tokens_per_s", "tokens_per_s"]);
    let tokens = first["tokens"].as_array().unwrap();
    assert!(tokens.len() <= 12 && tokens.iter().all(Value::is_u64));
    assert!(["stop", "length"].contains(&first["finish_reason"].as_str().unwrap()));
    assert!(first["prompt_tokens_per_s"].as_f64().unwrap() > 0.0);
    let second = loam(model.path(), &args).json();
    assert_eq!((&first["text"], &first["tokens"]), (&second["text"], &second["tokens"]));
    let plain = loam(model.path(), &args[..args.len() - 1]);
    assert_eq!(plain.stdout, format!("{}\n", first["text"].as_str().unwrap()));
}

#[test]
fn the_number_of_threads_changes_no_text() {
    let model = golden_copy("gpt2-plain");
    give_tokenizer(model.path());
    let text = |threads: &str| {
        let args = ["generate", ".", "abc", "--max-tokens", "20", "--seed", "5", "--threads", threads, "--json"];
        loam(model.path(), &args).json()["tokens"].clone()
    };
    assert_eq!(text("1"), text("2"));
}

#[test]
fn encoding_prints_one_json_array_per_line_and_decoding_reverses_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), "the fox, the fox and the goose. 狐狸。\n".repeat(20)).unwrap();
    let trained = loam(dir.path(), &["tokenizer", "train", "t.txt", "--vocab-size", "300", "--out", "tok"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    let text = "the fox\n\n狐狸 goose\n";
    let encoded = loam_with_input(dir.path(), &["tokenizer", "encode", "tok", "--json"], text);
    assert_eq!(encoded.code, 0, "{}", encoded.stderr);
    let lines: Vec<Vec<u32>> = encoded.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].is_empty());
    let decoded = loam_with_input(dir.path(), &["tokenizer", "decode", "tok"], &encoded.stdout);
    assert_eq!(decoded.stdout, text);
    let json = loam_with_input(dir.path(), &["tokenizer", "decode", "tok", "--json"], &encoded.stdout);
    assert_eq!(json.stdout, "\"the fox\"\n\"\"\n\"狐狸 goose\"\n");
    fs::write(dir.path().join("in.txt"), text).unwrap();
    let from_file = loam(dir.path(), &["tokenizer", "encode", "tok/tokenizer.json", "--file", "in.txt", "--json"]);
    assert_eq!(from_file.stdout, encoded.stdout);
    let bad = loam_with_input(dir.path(), &["tokenizer", "decode", "tok"], "1 two\n");
    assert!(bad.code == 2 && bad.stderr.contains("line 1"), "{}", bad.stderr);
}

#[test]
fn a_tokenizer_shows_what_it_learned_and_how_it_cuts() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), "the fox and the goose. ".repeat(50)).unwrap();
    loam(dir.path(), &["tokenizer", "train", "t.txt", "--vocab-size", "280", "--out", "t.json"]);
    let shown = loam(dir.path(), &["tokenizer", "show", "t.json"]);
    assert!(shown.stdout.contains("BPE") && shown.stdout.contains("<|endoftext|>"), "{}", shown.stdout);
    let cut = loam(dir.path(), &["tokenizer", "show", "t.json", "the fox"]);
    let first = cut.stdout.lines().next().unwrap();
    assert_eq!(first.replace('|', ""), "the fox");
    let json = loam(dir.path(), &["tokenizer", "show", "t.json", "the fox", "--json"]).json();
    let pieces = json["split"].as_array().unwrap();
    assert_eq!(pieces[0]["start"], 0);
    assert_eq!(pieces[pieces.len() - 1]["end"], 7);
}

#[test]
fn a_model_shows_its_tree_and_its_footprint() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_dir("llama-gqa");
    let shown = loam(dir.path(), &["model", "show", model.to_str().unwrap(), "--tree"]);
    for word in ["llama", "layers", "q_proj", "parameters", "AdamW"] {
        assert!(shown.stdout.contains(word), "{word} is not in\n{}", shown.stdout);
    }
    for line in ["        q_proj  1,024", "          weight  [32, 32] F32 1,024", "lm_head  2,048"] {
        assert!(shown.stdout.lines().any(|shown| shown == line), "`{line}` is not in\n{}", shown.stdout);
    }
    let modules = shown.stdout.lines().filter(|line| line.trim_start().starts_with("self_attn")).count();
    assert_eq!(modules, 2, "each module stands there once\n{}", shown.stdout);
    let json = loam(dir.path(), &["model", "show", model.to_str().unwrap(), "--json"]).json();
    let listed = json["parameters"].as_array().unwrap();
    let size = |p: &Value| p["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>();
    assert_eq!(listed.iter().map(size).sum::<u64>(), json["footprint"]["parameters"].as_u64().unwrap());
    let stored = json["tensors"].as_array().unwrap();
    assert_eq!(keys(&stored[0]), ["name", "shape", "dtype"]);
    assert_eq!(stored.iter().map(size).sum::<u64>(), json["footprint"]["parameters"].as_u64().unwrap());
}

#[test]
fn models_are_found_in_the_local_store_and_in_runs() {
    let dir = tempfile::tempdir().unwrap();
    for place in ["home/models/tiny", "runs/one/model"] {
        let target = dir.path().join(place);
        fs::create_dir_all(&target).unwrap();
        for file in fs::read_dir(golden_dir("gpt2-plain")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), target.join(file.file_name())).unwrap();
        }
    }
    for name in ["tiny", "runs/one", "runs/one/model"] {
        let ran = loam(dir.path(), &["model", "show", name]);
        assert!(ran.code == 0 && ran.stdout.contains("gpt2"), "{name}: {}", ran.stderr);
    }
}

#[test]
fn the_training_benchmark_prints_the_agreed_fields() {
    let dir = tempfile::tempdir().unwrap();
    let json = loam(dir.path(), &["bench", "train", "--config", "small", "--precision", "f32", "--json"]).json();
    for field in ["step_s", "tokens_per_s", "gflop_per_s", "peak_rss_mib", "loss"] {
        assert!(json[field].as_f64().is_some_and(|x| x > 0.0), "{field} in {json}");
    }
}

#[test]
fn the_doctor_says_what_the_machine_offers() {
    let dir = tempfile::tempdir().unwrap();
    let json = loam(dir.path(), &["doctor", "--json", "--threads", "1"]).json();
    assert_eq!(json["threads"], 1);
    assert!(json["memory_bytes"].as_u64().unwrap() > 0 && json["memory_read_gb_per_s"].as_f64().unwrap() > 0.1);
    let text = loam(dir.path(), &["doctor"]);
    assert!(text.stdout.contains("processor") && text.stdout.contains("instructions"));
}

#[test]
fn default_recipes_pass_the_check_and_the_schema_is_json() {
    let dir = tempfile::tempdir().unwrap();
    for stage in ["pretrain", "sft"] {
        let text = loam(dir.path(), &["config", "default", stage]);
        fs::write(dir.path().join("r.toml"), &text.stdout).unwrap();
        let checked = loam(dir.path(), &["config", "check", "r.toml"]);
        assert_eq!(checked.code, 0, "{}", checked.stderr);
    }
    let schema = loam(dir.path(), &["config", "schema"]).json();
    assert!(schema["properties"]["train"].is_object());
}

#[test]
fn embeddings_are_one_json_object_per_text_whichever_way_texts_come_in() {
    let (model, golden) = encoder("mean");
    let model = model.to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let lines: String = golden.texts.iter().map(|text| format!("{text}\n")).collect();
    fs::write(dir.path().join("texts.txt"), &lines).unwrap();
    let from_file = loam(dir.path(), &["embed", model, "--file", "texts.txt", "--json"]);
    assert_eq!(from_file.code, 0, "{}", from_file.stderr);
    let rows: Vec<Value> = from_file.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), golden.texts.len());
    for (index, (row, expected)) in rows.iter().zip(&golden.embeddings).enumerate() {
        assert_eq!(keys(row), ["index", "embedding"]);
        assert_eq!(row["index"], index);
        let vector: Vec<f32> = serde_json::from_value(row["embedding"].clone()).unwrap();
        assert_close(&golden.texts[index], &vector, expected, 1e-5);
    }
    let from_input = loam_with_input(dir.path(), &["embed", model, "--file", "-", "--json"], &lines);
    assert_eq!(from_input.stdout, from_file.stdout);
    let first = from_file.stdout.lines().next().unwrap();
    assert_eq!(loam(dir.path(), &["embed", model, &golden.texts[0], "--json"]).stdout, format!("{first}\n"));
    let changed =
        ["embed", model, "cat", "--pooling", "cls,lasttoken", "--no-normalize", "--max-tokens", "8", "--json"];
    assert_eq!(loam(dir.path(), &changed).json()["embedding"].as_array().unwrap().len(), 16);
}

#[test]
fn embeddings_for_eyes_are_a_table_and_the_similarities_of_a_few_texts() {
    let (model, _) = encoder("mean");
    let dir = tempfile::tempdir().unwrap();
    let ran = loam(dir.path(), &["embed", model.to_str().unwrap(), "the cat", "the mat", "the cat"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].ends_with("first of 8 features") && lines[1].starts_with("0  the cat  1.0000"), "{}", ran.stdout);
    assert_eq!(lines[5], "cosine similarity");
    assert!(lines[7].starts_with("0  1.000") && lines[7].ends_with("1.000"), "{}", ran.stdout);
    let one = loam(dir.path(), &["embed", model.to_str().unwrap(), "the cat"]);
    assert!(!one.stdout.contains("cosine"), "{}", one.stdout);
    // A plain causal model is embedded, too; that it is one, and how, is said.
    let causal = golden_copy("gpt2-plain");
    give_tokenizer(causal.path());
    let ran = loam(causal.path(), &["embed", ".", "abc"]);
    assert!(ran.code == 0 && ran.stderr.contains("pooling mean, scaled to length 1"), "{}", ran.stderr);
    assert!(ran.stderr.contains("is causal") && ran.stderr.contains("--pooling lasttoken"), "{}", ran.stderr);
    let ran = loam(causal.path(), &["embed", ".", "abc", "--pooling", "lasttoken"]);
    assert!(ran.code == 0 && !ran.stderr.contains("is causal"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_embedded_is_said_with_a_hint() {
    let (model, _) = encoder("mean");
    let model = model.to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bad.txt"), b"fine\n\xff\xfe\n").unwrap();
    let bare = golden_copy("bert-model");
    let bare = bare.path().to_str().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["embed", model, "--file", "absent.txt"], "absent.txt"),
        (&["embed", model, "--file", "bad.txt"], "line 2 of bad.txt"),
        (&["embed", model, "x", "--max-tokens", "1"], "from 3 to 24 tokens, found 1"),
        (&["embed", bare, "x"], "tokenizer.json does not exist"),
        (&["embed", "nowhere", "x"], "there is no model `nowhere`"),
    ];
    for (args, said) in cases {
        let ran = loam(dir.path(), args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(said) && ran.stderr.contains("hint: "), "{said} is not in\n{}", ran.stderr);
    }
    let ran = loam(dir.path(), &["embed", model]);
    assert!(ran.code == 2 && ran.stderr.contains("TEXT"), "{}", ran.stderr);
}
