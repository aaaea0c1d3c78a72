//! What goes wrong ends in one clear error, a hint, and exit status 2.

mod common;

use common::{command, loam};
use loam_testkit::{golden_copy, golden_dir};
use std::fs;
use std::process::Stdio;

#[test]
fn help_lists_every_verb_and_says_what_the_exit_status_means() {
    let dir = tempfile::tempdir().unwrap();
    let ran = loam(dir.path(), &["--help"]);
    assert_eq!(ran.code, 0);
    for verb in [
        "quickstart",
        "tokenizer",
        "data",
        "train",
        "config",
        "generate",
        "chat",
        "embed",
        "model",
        "runs",
        "bench",
        "doctor",
        "completions",
    ] {
        assert!(ran.stdout.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} is not in\n{}", ran.stdout);
        let help = loam(dir.path(), &[verb, "--help"]);
        assert!(help.code == 0 && help.stdout.contains("Usage: loam"), "{verb}: {}", help.stderr);
    }
    assert!(ran.stdout.contains("Exit status"));
    assert_eq!(loam(dir.path(), &["--version"]).stdout, format!("loam {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_misspelt_verb_or_option_ends_with_status_2_and_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let ran = loam(dir.path(), &["quikstart"]);
    assert!(ran.code == 2 && ran.stderr.contains("quickstart"), "{}", ran.stderr);
    let ran = loam(dir.path(), &["generate", "x", "y", "--temprature", "1"]);
    assert!(ran.code == 2 && ran.stderr.contains("--temperature"), "{}", ran.stderr);
    assert_eq!(loam(dir.path(), &[]).code, 2);
}

#[test]
fn a_model_that_is_not_there_is_one_error_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    for args in [["model", "show", "nowhere"], ["generate", "nowhere", "x"]] {
        let ran = loam(dir.path(), &args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
        assert!(ran.stderr.starts_with("error: there is no model `nowhere`\nhint: "), "{}", ran.stderr);
    }
    fs::write(dir.path().join("file"), "x").unwrap();
    let ran = loam(dir.path(), &["model", "show", "file"]);
    assert!(ran.stderr.contains("a model is a GGUF file, or a directory"), "{}", ran.stderr);
}

#[test]
fn damaged_models_are_named_with_file_and_key() {
    let copy = golden_copy("llama-plain");
    fs::write(copy.path().join("model.safetensors"), b"damaged").unwrap();
    let ran = loam(copy.path(), &["model", "show", "."]);
    assert!(
        ran.code == 2 && ran.stderr.contains("model.safetensors") && ran.stderr.contains("hint: "),
        "{}",
        ran.stderr
    );
    let config = fs::read_to_string(copy.path().join("config.json")).unwrap();
    fs::write(copy.path().join("config.json"), config.replace("\"llama\"", "\"lama\"")).unwrap();
    let ran = loam(copy.path(), &["model", "show", "."]);
    assert!(ran.code == 2 && ran.stderr.contains("unknown model family `lama`"), "{}", ran.stderr);
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_dir("llama-plain");
    let ran = loam(dir.path(), &["model", "logits", model.to_str().unwrap(), "--tokens", "1,99999", "--json"]);
    assert!(ran.code == 2 && ran.stderr.contains("token 99999"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
}

#[test]
fn environment_variables_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [("LOAM_CPU", "mmx"), ("LOAM_THREADS", "0"), ("LOAM_THREADS", "many")] {
        let output = command(dir.path(), &["config", "schema"]).env(name, value).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr.starts_with("error: ") && stderr.contains(name) && stderr.contains(value), "{stderr}");
    }
}

#[test]
fn recipes_with_mistakes_are_refused_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("r.toml");
    let good = loam(dir.path(), &["config", "default", "pretrain"]).stdout;
    for (from, to, expected) in [
        ("seed = 42", "seed = \"x\"", "seed"),
        ("stage = \"pretrain\"", "stage = \"pretraining\"", "stage"),
        ("[train]", "[train]\nsteeps = 3", "train.steeps"),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "the default recipe has no `{from}`:\n{good}");
        fs::write(&recipe, text).unwrap();
        for verb in [vec!["config", "check", "r.toml"], vec!["train", "r.toml"]] {
            let ran = loam(dir.path(), &verb);
            assert!(ran.code == 2 && ran.stderr.contains(expected) && ran.stderr.contains("r.toml"), "{}", ran.stderr);
        }
    }
    let ran = loam(dir.path(), &["config", "default", "pretraining"]);
    assert!(ran.code == 2 && ran.stderr.contains("hint: stages are pretrain"), "{}", ran.stderr);
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn text_that_cannot_be_trained_on_is_refused_and_leaves_no_run_behind() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("binary.txt"), b"text\0and a NUL").unwrap();
    fs::write(dir.path().join("latin.txt"), b"caf\xe9 au lait").unwrap();
    fs::write(dir.path().join("empty.txt"), b"").unwrap();
    let recipe = "stage = \"pretrain\"\n[model]\nfamily = \"llama\"\n[data]\ntrain = [\"NAME\"]\n[train]\nsteps = 2\n";
    for name in ["binary.txt", "latin.txt", "empty.txt", "absent.txt"] {
        fs::write(dir.path().join("r.toml"), recipe.replace("NAME", name)).unwrap();
        let ran = loam(dir.path(), &["train", "r.toml", "--dir", "run"]);
        let hinted = ran.stderr.lines().any(|line| line.starts_with("hint: "));
        assert!(ran.code == 2 && ran.stderr.contains(name) && hinted, "{name}: {}", ran.stderr);
        assert!(!dir.path().join("run").exists(), "{name} left a run directory");
    }
    let ran = loam(dir.path(), &["train", "absent.toml"]);
    assert!(ran.code == 2 && ran.stderr.contains("absent.toml") && ran.stderr.contains("hint: "), "{}", ran.stderr);
}

#[test]
fn resuming_needs_to_know_which_run() {
    let dir = tempfile::tempdir().unwrap();
    let ran = loam(dir.path(), &["train", "r.toml", "--resume"]);
    assert!(ran.code == 2 && ran.stderr.contains("--dir"), "{}", ran.stderr);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut child =
        command(dir.path(), &["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn nothing_is_coloured_where_nobody_looks() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden_dir("llama-gqa");
    for args in [vec!["model", "show", model.to_str().unwrap(), "--tree"], vec!["model", "show", "nowhere"]] {
        let ran = loam(dir.path(), &args);
        assert!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'));
    }
}
