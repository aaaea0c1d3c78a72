//! A record of conversations or preferences as a model is trained on it, whatever its layout.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::loam;
use std::fs;
use std::path::Path;

/// A directory with a tokenizer that knows ChatML's marks.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), "Where is the fox? The fox is at home. user assistant\n".repeat(40)).unwrap();
    let args = ["tokenizer", "train", "t.txt", "--out", "tok", "--vocab-size", "300", "--special", "<|endoftext|>"];
    let marks = ["--special", "<|im_start|>", "--special", "<|im_end|>"];
    let ran = loam(dir.path(), &[&args[..], &marks].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    dir
}

fn trained_text(dir: &Path, file: &str, more: &[&str]) -> (serde_json::Value, String) {
    let shown = loam(dir, &[&["data", "inspect", file, "--tokenizer", "tok", "--json"], more].concat()).json();
    let tokens = shown["parts"][0]["tokens"].as_array().unwrap();
    let text = tokens.iter().filter(|token| token["trained"] == true).map(|token| token["text"].as_str().unwrap());
    let text = text.collect();
    (shown, text)
}

#[test]
fn exactly_what_the_assistant_says_is_shown_as_trained_in_every_layout() {
    let dir = workplace();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("alpaca.json", r#"[{"instruction": "Where?", "input": "", "output": "At home."}]"#);
    write(
        "talk.jsonl",
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"Where?\"}, {\"from\": \"gpt\", \"value\": \"At home.\"}]}\n",
    );
    write("qa.csv", "question,answer\nWho?,The fox.\nWhere?,At home.\n");
    for (file, format, record) in
        [("alpaca.json", "alpaca", "1"), ("talk.jsonl", "sharegpt", "1"), ("qa.csv", "prompt_completion", "2")]
    {
        let (shown, text) = trained_text(dir.path(), file, &["--record", record]);
        assert_eq!((shown["format"].as_str(), text.as_str()), (Some(format), "At home.<|im_end|>"), "{shown}");
        assert!(shown["trained"].as_u64() >= shown["parts"][0]["trained"].as_u64());
    }
    let said = loam(dir.path(), &["data", "inspect", "qa.csv", "--tokenizer", "tok"]).stdout;
    assert!(said.starts_with("qa.csv: 2 conversations, format prompt_completion; "), "{said}");
    assert!(said.contains("[<|im_end|>]") && said.contains("(<|im_start|>)"), "{said}");
}

#[test]
fn preferences_and_prompts_are_shown_and_what_cannot_be_is_said() {
    let dir = workplace();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("pairs.jsonl", "{\"prompt\": \"Where?\", \"chosen\": \"At home.\", \"rejected\": \"No.\"}\n");
    let (shown, text) = trained_text(dir.path(), "pairs.jsonl", &[]);
    assert_eq!((shown["parts"][1]["part"].as_str(), text.as_str()), (Some("rejected"), "At home.<|im_end|>"));
    write("prompts.jsonl", "{\"prompt\": \"Where?\"}\n");
    assert_eq!(trained_text(dir.path(), "prompts.jsonl", &[]).0["trained"], 0);
    write("silent.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"Where?\"}]}\n");
    write("odd.jsonl", "{\"a\": \"b\"}\n");
    for (args, problem) in [
        (["silent.jsonl", "1"], "no token is trained on"),
        (["odd.jsonl", "1"], "the fields a fit no known format"),
        (["pairs.jsonl", "2"], "has no record 2"),
    ] {
        let ran = loam(dir.path(), &["data", "inspect", args[0], "--tokenizer", "tok", "--record", args[1]]);
        assert!(ran.code == 2 && ran.stderr.contains(problem), "{}", ran.stderr);
    }
}
