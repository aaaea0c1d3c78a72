//! Whole recipes: from text files to a model directory, interrupted and resumed, and on to conversations.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Witness;
use loam_models::LanguageModel;
use loam_tokenizer::{Special, Tokenizer};
use loam_train::recipe::Initializer;
use loam_train::{Ending, Options, Outcome, Recipe, Result, Row, read_rows, train};

/// A little text with structure.
fn corpus(dir: &Path) -> PathBuf {
    let animals = ["cat", "dog", "cow", "hen", "fox"];
    let places = ["house", "field", "river", "barn"];
    let line = |i: usize| {
        format!("the {} sees the {} in the {}.\n", animals[i % 5], animals[(i * 3 + 1) % 5], places[(i / 5) % 4])
    };
    let path = dir.join("corpus.txt");
    fs::write(&path, (0..400).map(line).collect::<String>()).unwrap();
    path
}

fn pretraining(dir: &Path, tokenizer: &str) -> Recipe {
    let text = format!(
        r#"
stage = "pretrain"
[model]
family = "llama"
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 96
[tokenizer]
{tokenizer}
[data]
train = ["{}"]
validation_tail = 0.1
mode = "contiguous"
seq_len = 32
[train]
name = "tiny"
precision = "f32"
lr = 1e-2
batch = 4
micro_batch = 3
steps = 30
eval_every = 10
sample_every = 20
sample_prompts = ["the cat"]
sample_tokens = 8
checkpoint_every = 10
"#,
        corpus(dir).display()
    );
    Recipe::parse(&text, Path::new("test.toml")).unwrap()
}

fn run(recipe: &Recipe, dir: &Path, to: &str, resume: bool, witness: &mut Witness) -> Result<Outcome> {
    let options = Options {
        dir: Some(dir.join(to)),
        runs: dir.join("runs"),
        name: "test".into(),
        resume,
        cache_dir: dir.join("cache"),
        stop: witness.stop.clone(),
        observer: witness,
    };
    train(recipe, Path::new("test.toml"), options)
}

#[test]
fn a_run_leaves_the_documented_files_and_a_model_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = pretraining(dir.path(), "kind = \"char\"");
    let outcome = run(&recipe, dir.path(), "run", false, &mut Witness::default()).unwrap();
    assert_eq!(outcome.summary.ending, Ending::Finished);
    for file in [
        "recipe.toml",
        "resolved.toml",
        "environment.json",
        "metrics.jsonl",
        "log.txt",
        "samples/step-000020.txt",
        "eval/step-000030.json",
        "checkpoints/latest",
        "checkpoints/step-000030/model.safetensors",
        "checkpoints/step-000030/optimizer.safetensors",
        "checkpoints/step-000030/trainer.json",
        "model/config.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/README.md",
        "report.md",
        "report.html",
        "loss.svg",
        "trainer_state.json",
    ] {
        assert!(outcome.dir.join(file).is_file(), "{file}");
    }
    let rows = read_rows(&outcome.dir.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = rows.iter().filter_map(|r| if let Row::Step(r) = r { Some(r.loss) } else { None }).collect();
    assert_eq!(losses.len(), 30);
    assert!(losses[29] < 0.8 * losses[0], "{} -> {}", losses[0], losses[29]);
    let evaluation = outcome.summary.evaluation.unwrap();
    // One byte per token but for nothing: bits per byte are the loss in bits.
    assert!((evaluation.eval_bits_per_byte.unwrap() - evaluation.eval_loss / 2f64.ln()).abs() < 0.05);
    let model = LanguageModel::open(outcome.model.as_ref().unwrap()).unwrap();
    let tokenizer = Tokenizer::open(outcome.model.unwrap()).unwrap();
    assert_eq!(model.spec().vocab_size, tokenizer.vocab_size());
    assert_eq!(tokenizer.encode("the cat", Special::Ignore).unwrap().len(), 7);
    let sample = fs::read_to_string(outcome.dir.join("samples/step-000020.txt")).unwrap();
    assert!(sample.starts_with("the cat"), "{sample}");
}

#[test]
fn an_interrupted_run_is_resumed_to_the_same_model_file() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = pretraining(dir.path(), "kind = \"byte_bpe\"\nvocab_size = 300");
    let whole = run(&recipe, dir.path(), "whole", false, &mut Witness::default()).unwrap();
    let part = run(&recipe, dir.path(), "parts", false, &mut Witness::stopping_at(13)).unwrap();
    assert_eq!((part.summary.ending, part.model), (Ending::Interrupted, None));
    let mut witness = Witness::default();
    let resumed = run(&recipe, dir.path(), "parts", true, &mut witness).unwrap();
    assert_eq!(witness.rows.first().map(|row| row.step), Some(14));
    let weights = |outcome: &Outcome| fs::read(outcome.dir.join("model/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&resumed), "the weights differ");
}

#[test]
fn resuming_with_another_recipe_names_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = pretraining(dir.path(), "kind = \"char\"");
    run(&recipe, dir.path(), "run", false, &mut Witness::stopping_at(2)).unwrap();
    recipe.apply_set("train.lr=1e-3").unwrap();
    let error = run(&recipe, dir.path(), "run", true, &mut Witness::default()).unwrap_err();
    assert!(error.to_string().ends_with("started with another `train.lr`"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn the_resolved_recipe_gives_the_same_model_again() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = pretraining(dir.path(), "kind = \"char\"");
    let first = run(&recipe, dir.path(), "first", false, &mut Witness::default()).unwrap();
    let resolved = Recipe::open(&first.dir.join("resolved.toml"), &[]).unwrap();
    assert_eq!(resolved, first.resolved);
    let second = run(&resolved, dir.path(), "second", false, &mut Witness::default()).unwrap();
    assert_eq!(second.resolved, resolved, "resolving changes nothing any more");
    let weights = |outcome: &Outcome| fs::read(outcome.dir.join("model/model.safetensors")).unwrap();
    assert!(weights(&first) == weights(&second), "the weights differ");
}

#[test]
fn an_initializer_decides_how_a_new_model_starts_and_none_is_the_normal_one() {
    let dir = tempfile::tempdir().unwrap();
    let weights = |initializer: Option<Initializer>, to: &str| {
        let mut recipe = pretraining(dir.path(), "kind = \"char\"");
        (recipe.train.steps, recipe.model.initializer) = (Some(1), initializer);
        let outcome = run(&recipe, dir.path(), to, false, &mut Witness::default()).unwrap();
        assert_eq!(outcome.resolved.model.initializer, initializer, "a resolved recipe starts the same way");
        fs::read(outcome.model.unwrap().join("model.safetensors")).unwrap()
    };
    let normal = weights(None, "none");
    assert!(weights(Some(Initializer::Normal), "normal") == normal);
    for initializer in [
        Initializer::TruncatedNormal,
        Initializer::XavierNormal,
        Initializer::XavierUniform,
        Initializer::KaimingNormal,
        Initializer::KaimingUniform,
        Initializer::Orthogonal,
    ] {
        assert!(weights(Some(initializer), &format!("{initializer:?}")) != normal);
    }
}

#[test]
fn a_depth_alone_makes_a_whole_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = pretraining(dir.path(), "kind = \"char\"");
    recipe.model = Default::default();
    (recipe.model.depth, recipe.model.tokens_per_parameter) = (Some(1), Some(0.02));
    (recipe.data.seq_len, recipe.train) = (None, Default::default());
    let outcome = run(&recipe, dir.path(), "run", false, &mut Witness::default()).unwrap();
    let resolved = outcome.resolved;
    assert_eq!((resolved.model.depth, resolved.model.config["hidden_size"].as_u64()), (None, Some(64)));
    assert_eq!(resolved.data.seq_len, Some(256));
    assert!(resolved.train.lr.unwrap() > 1e-3 && resolved.train.steps.unwrap() >= 1);
}

fn conversations(dir: &Path, broken: &str) -> PathBuf {
    let line = |i: u64| {
        let (a, b) = (i % 7, i % 5);
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{a} and {b}?\"}}, \
             {{\"role\": \"assistant\", \"content\": \"{}\"}}]}}\n",
            a + b
        )
    };
    let path = dir.join("chats.jsonl");
    fs::write(&path, (0..60).map(line).collect::<String>() + broken).unwrap();
    path
}

fn tuning(base: &Path, chats: &Path) -> Recipe {
    let text = format!(
        "stage = \"sft\"\n[model]\npath = \"{}\"\n[data]\ntrain = [\"{}\"]\nvalidation_fraction = 0.1\n\
         [train]\nepochs = 2\nlr = 5e-3\nbatch = 6\nprecision = \"f32\"\nsample_every = 0\n",
        base.display(),
        chats.display()
    );
    Recipe::parse(&text, Path::new("sft.toml")).unwrap()
}

#[test]
fn a_pretrained_model_is_tuned_on_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = pretraining(dir.path(), "kind = \"byte_bpe\"\nvocab_size = 300");
    let base = run(&recipe, dir.path(), "base", false, &mut Witness::default()).unwrap().model.unwrap();
    let recipe = tuning(&base, &conversations(dir.path(), ""));
    let mut witness = Witness::default();
    let outcome = run(&recipe, dir.path(), "sft", false, &mut witness).unwrap();
    let losses = witness.losses();
    assert!(losses.last() < losses.first(), "{losses:?}");
    let model = outcome.model.unwrap();
    let config = fs::read_to_string(model.join("generation_config.json")).unwrap();
    let tokenizer = Tokenizer::open(&model).unwrap();
    let end = tokenizer.token_to_id("<|im_end|>").unwrap();
    assert!(config.contains(&end.to_string()), "the model must stop at the end of its turn: {config}");
    assert!(model.join("chat_template.jinja").is_file());
}

#[test]
fn conversations_that_cannot_be_learnt_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = pretraining(dir.path(), "kind = \"byte_bpe\"\nvocab_size = 300");
    let base = run(&recipe, dir.path(), "base", false, &mut Witness::stopping_at(1)).unwrap();
    assert!(base.model.is_none());
    let recipe =
        Recipe { train: loam_train::recipe::TrainSection { steps: Some(1), ..recipe.train.clone() }, ..recipe };
    let base = run(&recipe, dir.path(), "base2", false, &mut Witness::default()).unwrap().model.unwrap();
    let question = "{\"messages\": [{\"role\": \"user\", \"content\": \"hm?\"}]}\n";
    let long = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"?\"}}, {{\"role\": \"assistant\", \"content\": \"{}\"}}]}}\n",
        "word ".repeat(200)
    );
    for (broken, expected) in [
        (question, "no token is trained on"),
        (long.as_str(), "the answer would be cut off"),
        ("{\"messages\": 3}\n", "line 61"),
        ("not json\n", "line 61"),
    ] {
        let mut recipe = tuning(&base, &conversations(dir.path(), broken));
        recipe.data.validation_fraction = Some(0.0);
        let error = run(&recipe, dir.path(), "refused", false, &mut Witness::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some());
    }
}
