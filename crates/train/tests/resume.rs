//! Interrupted = uninterrupted, for every stage that there is: a new one does not compile, or fails here, until it has a row.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::Witness;
use loam_data::Garden;
use loam_data::garden::Sizes;
use loam_train::{Ending, Options, Outcome, Recipe, Stage, train};

const STEPS: u64 = 4;
/// Not a step with a checkpoint of its own: those are every 3.
const STOP_AT: u64 = 2;

const LLAMA: &str = "family = \"llama\"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
                     num_attention_heads = 2\nnum_key_value_heads = 2\nmax_position_embeddings = 256\n";
const BERT: &str = "family = \"bert\"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
                    num_attention_heads = 2\nmax_position_embeddings = 256\n";
const T5: &str =
    "family = \"t5\"\nd_model = 32\nd_kv = 16\nd_ff = 48\nnum_layers = 1\nnum_decoder_layers = 1\nnum_heads = 2\n";

/// A model, the garden's part that it reads, and the stage's own sections.
type Row = (&'static str, &'static str, &'static str);

/// The row of a stage. Models that start from another are given that one's path where `LLAMA` stands.
fn row(stage: Stage) -> Row {
    const JUDGE: &str = "[rl]\nreward = { kind = \"match\", pattern = \"[0-9]\" }\nmax_new_tokens = 6\n";
    match stage {
        Stage::Pretrain => (LLAMA, "text", ""),
        Stage::MaskedLm => (BERT, "text", ""),
        Stage::Seq2seq => (T5, "reading", ""),
        Stage::Classify => (BERT, "topics", ""),
        Stage::TokenClassify => (BERT, "entities", ""),
        Stage::Qa => (BERT, "reading", ""),
        Stage::Contrastive => (BERT, "paraphrases", ""),
        Stage::Sft => ("tuned", "chats", ""),
        Stage::Distill => ("tuned", "chats", "[distill]\nmax_new_tokens = 6\n"),
        Stage::Reward | Stage::Dpo | Stage::Kto | Stage::Orpo | Stage::Simpo | Stage::Cpo => {
            ("tuned", "preferences", "")
        }
        Stage::Grpo | Stage::Rloo | Stage::Reinforce | Stage::Ppo => ("tuned", "prompts", JUDGE),
    }
}

fn run(recipe: &Recipe, dir: &Path, to: &str, resume: bool, witness: &mut Witness) -> Outcome {
    let options = Options {
        dir: Some(dir.join(to)),
        runs: dir.join("runs"),
        name: "test".into(),
        resume,
        cache_dir: dir.join("cache"),
        stop: witness.stop.clone(),
        observer: witness,
    };
    train(recipe, Path::new("test.toml"), options).unwrap_or_else(|error| panic!("{}: {error}", recipe.stage.name()))
}

fn recipe(stage: Stage, garden: &Path, base: Option<&Path>) -> Recipe {
    let (model, part, more) = row(stage);
    let garden = garden.display();
    let (train, valid) = match part {
        "text" => ("train.txt".to_owned(), "valid.txt".to_owned()),
        "chats" => ("chats.jsonl".to_owned(), "chats.jsonl".to_owned()),
        part => (format!("{part}-train.jsonl"), format!("{part}-valid.jsonl")),
    };
    let kind = if model == LLAMA { "byte_bpe" } else { "wordpiece" };
    let model = match base {
        Some(path) if model == "tuned" => format!("path = \"{}\"\n", path.display()),
        _ => format!("{model}[tokenizer]\nkind = \"{kind}\"\nvocab_size = 500\n"),
    };
    let teacher = base.map_or(String::new(), |path| format!("teacher = \"{}\"\n", path.display()));
    let more = if stage == Stage::Distill { format!("{more}{teacher}") } else { more.to_owned() };
    // Two micro-batches in a step, dropout, a running mean of the weights: all that a run could remember.
    let text = format!(
        "stage = \"{}\"\nseed = 3\n[model]\n{model}[data]\ntrain = [\"{garden}/{train}\"]\nvalidation = [\"{garden}/{valid}\"]\n\
         seq_len = 256\n[train]\nprecision = \"f32\"\nlr = 5e-3\nbatch = 8\nmicro_batch = 4\nsteps = {STEPS}\ndropout = 0.1\n\
         ema_decay = 0.9\neval_every = 2\nsample_every = 0\ncheckpoint_every = 3\n{more}",
        stage.name()
    );
    Recipe::parse(&text, Path::new("test.toml")).unwrap()
}

/// The exported weights, by file.
fn result(outcome: &Outcome) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(outcome.model.as_ref().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let weights = files.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    weights.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect()
}

#[test]
fn every_stage_ends_in_the_same_bytes_whether_it_was_interrupted_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let garden = dir.path().join("garden");
    let sizes =
        Sizes { train_bytes: 20_000, valid_bytes: 3000, chats: 40, questions: 4, tasks: 60, tasks_held_out: 12 };
    Garden::new(1).write(&garden, sizes).unwrap();
    let pretrained = run(&recipe(Stage::Pretrain, &garden, None), dir.path(), "base", false, &mut Witness::default());
    let base = pretrained.model.as_deref();
    for stage in Stage::ALL {
        let (recipe, name) = (recipe(stage, &garden, base), stage.name());
        let place = |what: &str| format!("{name}-{what}");
        let mut all = Witness::default();
        let whole = run(&recipe, dir.path(), &place("whole"), false, &mut all);
        assert_eq!(whole.summary.ending, Ending::Finished, "{name}");
        let cut = run(&recipe, dir.path(), &place("cut"), false, &mut Witness::stopping_at(STOP_AT));
        assert_eq!((cut.summary.ending, cut.model), (Ending::Interrupted, None), "{name}");
        let mut rest = Witness::default();
        let resumed = run(&recipe, dir.path(), &place("cut"), true, &mut rest);
        let (whole, resumed) = (result(&whole), result(&resumed));
        assert!(!whole.is_empty() && whole == resumed, "{name}: the weights differ after an interruption");
        assert_eq!(rest.rows.len() as u64, STEPS - STOP_AT, "{name}");
        for (a, b) in all.rows[STOP_AT as usize..].iter().zip(&rest.rows) {
            let numbers = |row: &loam_train::MetricRow| {
                (
                    row.step,
                    row.tokens,
                    row.loss.to_bits(),
                    row.grad_norm.to_bits(),
                    row.lr.to_bits(),
                    row.metrics.clone(),
                )
            };
            assert_eq!(numbers(a), numbers(b), "{name}");
        }
        assert_eq!(all.evaluations.last().map(|row| row.eval_loss), rest.evaluations.last().map(|row| row.eval_loss));
    }
}
