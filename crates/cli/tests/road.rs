//! From a recipe to a conversation, with the smallest of models.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::{command, loam, loam_with_input};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const RECIPE: &str = "
stage = \"pretrain\"
seed = 3
[model]
family = \"llama\"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64
[tokenizer]
kind = \"byte_bpe\"
vocab_size = 300
[data]
train = [\"t.txt\"]
validation_tail = 0.1
mode = \"contiguous\"
[train]
steps = 12
batch = 4
lr = 1e-3
precision = \"f32\"
checkpoint_every = 4
sample_tokens = 8
";

/// A directory with a text and a recipe.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..400).map(|i| format!("The fox {i} sees the goose {}. ", i * 7 % 13)).collect();
    fs::write(dir.path().join("t.txt"), text).unwrap();
    fs::write(dir.path().join("r.toml"), RECIPE).unwrap();
    dir
}

#[test]
fn a_recipe_becomes_a_run_a_model_and_a_conversation() {
    let dir = workplace();
    let ran = loam(dir.path(), &["train", "r.toml", "--dir", "run"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "run\n"), "{}", ran.stderr);
    for file in [
        "recipe.toml",
        "resolved.toml",
        "environment.json",
        "metrics.jsonl",
        "report.md",
        "loss.svg",
        "model/config.json",
    ] {
        assert!(dir.path().join("run").join(file).is_file(), "{file} is missing");
    }
    let again = loam(dir.path(), &["train", "r.toml", "--dir", "run"]);
    assert!(again.code == 2 && again.stderr.contains("--resume"), "{}", again.stderr);
    let shown = loam(dir.path(), &["runs", "show", "run", "--json"]).json();
    assert_eq!((&shown["state"], &shown["last"]["step"]), (&"finished".into(), &12.into()));
    let listed = loam(dir.path(), &["runs", "list", "."]);
    assert!(listed.stdout.contains("run ") && listed.stdout.contains("12/12"), "{}", listed.stdout);
    let compared = loam(dir.path(), &["runs", "compare", "run", "run"]);
    assert!(compared.stdout.contains("eval loss"), "{}", compared.stdout);
    let generated = loam(dir.path(), &["generate", "run", "The fox", "--max-tokens", "5", "--json"]).json();
    assert!(generated["text"].is_string());
    let chat = ["chat", "run", "--max-tokens", "5", "--temperature", "0"];
    let talked = loam_with_input(dir.path(), &chat, "Hello\n/seed 4\n/nonsense\n/help\nAgain\n/quit\nnever read\n");
    assert_eq!(talked.code, 0, "{}", talked.stderr);
    assert!(talked.stderr.contains("there is no command /nonsense") && talked.stderr.contains("/reset"));
    assert!(talked.stdout.ends_with('\n') && talked.stdout.lines().count() >= 2, "{:?}", talked.stdout);
}

#[test]
fn settings_on_the_command_line_change_the_run() {
    let dir = workplace();
    let ran = loam(dir.path(), &["train", "r.toml", "--set", "train.steps=3", "--set", "seed=9", "--name", "short"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let run = dir.path().join(ran.stdout.trim());
    assert!(run.to_string_lossy().ends_with("-pretrain-short"), "{}", run.display());
    assert_eq!(
        fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().filter(|l| l.contains("\"loss\"")).count(),
        3
    );
    assert!(fs::read_to_string(run.join("resolved.toml")).unwrap().contains("seed = 9"));
}

#[cfg(unix)]
#[test]
fn a_signal_saves_the_run_and_resuming_ends_in_the_same_weights() {
    let dir = workplace();
    let start = ["train", "r.toml", "--set", "train.steps=300"];
    assert_eq!(loam(dir.path(), &[&start[..], &["--dir", "whole"]].concat()).code, 0);
    let child = command(dir.path(), &[&start[..], &["--name", "cut", "--threads", "1"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let cut = wait_for_run(&dir.path().join("runs"), "-cut");
    wait_for_steps(&cut.join("metrics.jsonl"), 5);
    let killed = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(0) {
        // The machine was faster than the signal: there is nothing to resume, and nothing to compare.
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(cut.join("checkpoints/latest").exists() && !cut.join("model").exists());
    // What the hint says is what a person does, though the run has another name and number of threads then.
    let said = String::from_utf8(output.stderr).unwrap();
    let hint = said.lines().find_map(|line| line.strip_prefix("hint: go on with `loam ")).expect(&said);
    let words: Vec<&str> = hint.trim_end_matches('`').split(' ').collect();
    let resumed = loam(dir.path(), &words);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(fs::read_to_string(cut.join("model/README.md")).unwrap().contains("cut"), "the run lost its name");
    let weights = |run: &Path| fs::read(run.join("model/model.safetensors")).unwrap();
    assert!(weights(&dir.path().join("whole")) == weights(&cut), "the resumed run ended in other weights");
}

fn wait_for_run(runs: &Path, end: &str) -> PathBuf {
    let start = Instant::now();
    loop {
        let entries = fs::read_dir(runs).into_iter().flatten().flatten().map(|entry| entry.path());
        if let Some(found) = entries.into_iter().find(|path| path.to_string_lossy().ends_with(end)) {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "there is no run");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn wait_for_steps(metrics: &Path, steps: usize) {
    let start = Instant::now();
    while fs::read_to_string(metrics).unwrap_or_default().lines().count() < steps {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not get going");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn text_that_is_missing_empty_binary_or_no_utf8_is_refused() {
    let dir = workplace();
    let bad: [(&str, &[u8], &str); 4] = [
        ("missing.txt", b"", "missing.txt"),
        ("empty.txt", b"", "empty.txt"),
        ("binary.txt", b"abc\0def", "binary.txt"),
        ("latin.txt", b"caf\xe9 au lait", "latin.txt"),
    ];
    for (name, content, expected) in bad {
        if name != "missing.txt" {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let setting = format!("data.train=[\"{name}\"]");
        for args in [vec!["train", "r.toml", "--set", &setting], vec!["tokenizer", "train", name, "--out", "tok"]] {
            let ran = loam(dir.path(), &args);
            assert!(ran.code == 2 && ran.stderr.contains(expected), "{name}: {} {}", ran.code, ran.stderr);
            assert!(ran.stderr.contains("error: "), "{}", ran.stderr);
        }
    }
    assert!(!dir.path().join("tok").exists());
}

#[test]
fn quickstart_refuses_a_text_that_is_too_short() {
    let dir = workplace();
    fs::write(dir.path().join("short.txt"), "Too short.").unwrap();
    let ran = loam(dir.path(), &["quickstart", "--fast", "--text", "short.txt"]);
    assert!(ran.code == 2 && ran.stderr.contains("too little") && ran.stderr.contains("hint: "), "{}", ran.stderr);
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn the_garden_and_its_duplicates_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["data", "garden", "g", "--train-bytes", "20000", "--chats", "10", "--questions", "5", "--json"];
    let files = loam(dir.path(), &args).json();
    assert!(Path::new(&dir.path().join(files["train"].as_str().unwrap())).is_file());
    let questions = fs::read_to_string(dir.path().join("g/questions.jsonl")).unwrap();
    assert_eq!(questions.lines().count(), 5);
    let text = "One two three.\n\nFour five six.\n\nOne two three.\n";
    fs::write(dir.path().join("d.txt"), text).unwrap();
    let report =
        loam(dir.path(), &["data", "dedup", "d.txt", "--dedup", "exact", "--out", "kept.jsonl", "--json"]).json();
    assert_eq!((&report["documents"], &report["exact"], &report["kept"]), (&3.into(), &1.into(), &2.into()));
    assert_eq!(fs::read_to_string(dir.path().join("kept.jsonl")).unwrap().lines().count(), 2);
}

#[test]
fn own_answers_become_pairs_ranked_by_a_reward() {
    let dir = workplace();
    let dir = dir.path();
    assert_eq!(loam(dir, &["train", "r.toml", "--dir", "run"]).code, 0);
    let prompts: String = (0..8).map(|i| format!("{{\"prompt\": \"The fox {i}\", \"vowel\": \"e\"}}\n")).collect();
    fs::write(dir.join("prompts.jsonl"), prompts).unwrap();
    let args = ["data", "prefer", "run", "prompts.jsonl", "--reward", "match", "--pattern", "[aeiou]", "--json"];
    let draw = ["--field", "vowel", "--samples", "64", "--pairs", "2", "--max-tokens", "32", "--out"];
    let said = loam(dir, &[&args[..], &draw, &["pairs.jsonl"]].concat()).json();
    let written = fs::read_to_string(dir.join("pairs.jsonl")).unwrap();
    assert_eq!(said["pairs"].as_u64().unwrap() as usize, written.lines().count(), "{said}");
    for line in written.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let last = |answer: &str| row[answer].as_str().unwrap().chars().rfind(|c| "aeiou".contains(*c));
        assert!(row["prompt"].as_str().unwrap().starts_with("The fox "), "{row}");
        assert!(last("chosen") == Some('e') && last("rejected") != Some('e'), "{row}");
        assert!(row["score_chosen"] == 1.0 && row["score_rejected"] == 0.0, "{row}");
    }
    let again = loam(dir, &[&["--threads", "1"], &args[..], &draw, &["again.jsonl"]].concat());
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(fs::read_to_string(dir.join("again.jsonl")).unwrap(), written);
    // What the pairs are for.
    let shown = loam(dir, &["data", "inspect", "pairs.jsonl", "--tokenizer", "run", "--json"]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    for (more, part) in [
        (&["--reward", "model"][..], "--reward-model is missing"),
        (&["--reward", "garden", "--pattern", "x"], "--pattern says nothing"),
        (&["--reward", "match", "--samples", "1"], "nothing to compare"),
        (&["--reward", "match", "--limit", "0"], "there are no prompts"),
        (&["--reward", "match"], "answer"),
    ] {
        let args = [&["data", "prefer", "run", "prompts.jsonl", "--out", "bad.jsonl"], more].concat();
        let ran = loam(dir, &args);
        assert!(ran.code == 2 && ran.stderr.contains(part), "{part}: {}", ran.stderr);
        assert!(!dir.join("bad.jsonl").exists());
    }
}
