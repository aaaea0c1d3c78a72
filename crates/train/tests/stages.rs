//! Every stage beyond pretraining and chats, on the garden's data: it learns, resumes to the same bytes, and leaves a
//! model that opens.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use common::Witness;
use loam_data::Garden;
use loam_data::garden::Sizes;
use loam_models::{LanguageModel, Task};
use loam_train::{Ending, Options, Outcome, Recipe, Result, Row, read_rows, train};
use tempfile::TempDir;

/// The garden's files, written once.
static GARDEN: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let sizes =
        Sizes { train_bytes: 20_000, valid_bytes: 4000, chats: 20, questions: 10, tasks: 150, tasks_held_out: 30 };
    Garden::new(1).write(dir.path(), sizes).unwrap();
    dir
});

const BERT: &str = "family = \"bert\"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
                    num_attention_heads = 2\nmax_position_embeddings = 96\n";
const T5: &str =
    "family = \"t5\"\nd_model = 32\nd_kv = 16\nd_ff = 48\nnum_layers = 1\nnum_decoder_layers = 1\nnum_heads = 2\n";
const BART: &str = "family = \"bart\"\nd_model = 32\nencoder_layers = 1\ndecoder_layers = 1\nencoder_attention_heads = 2\n\
                    decoder_attention_heads = 2\nencoder_ffn_dim = 48\ndecoder_ffn_dim = 48\nmax_position_embeddings = 128\n";

/// A recipe over a file of the garden; `more` goes into `[data]`.
fn recipe(stage: &str, model: &str, file: &str, more: &str) -> Recipe {
    let (train, valid) = match file {
        "text" => ("train.txt".to_owned(), "valid.txt".to_owned()),
        task => (format!("{task}-train.jsonl"), format!("{task}-valid.jsonl")),
    };
    let garden = GARDEN.path().display();
    let tokenizer = if model.contains("path") { "" } else { "[tokenizer]\nkind = \"wordpiece\"\nvocab_size = 600\n" };
    let text = format!(
        "stage = \"{stage}\"\n[model]\n{model}{tokenizer}[data]\ntrain = [\"{garden}/{train}\"]\n\
         validation = [\"{garden}/{valid}\"]\nseq_len = 96\n{more}\n[train]\nname = \"tiny\"\nprecision = \"f32\"\n\
         lr = 5e-3\nbatch = 4\nmicro_batch = 3\nsteps = 12\neval_every = 6\ncheckpoint_every = 6\n"
    );
    Recipe::parse(&text, Path::new("test.toml")).unwrap()
}

fn run(recipe: &Recipe, dir: &Path, to: &str, resume: bool, witness: &mut Witness) -> Result<Outcome> {
    let options = Options {
        dir: Some(dir.join(to)),
        runs: dir.join("runs"),
        name: "test".into(),
        resume,
        cache_dir: GARDEN.path().join("cache"),
        stop: witness.stop.clone(),
        observer: witness,
    };
    train(recipe, Path::new("test.toml"), options)
}

/// Runs a recipe, once through and once interrupted; returns the finished model's directory.
fn check(stage: &str, recipe: &Recipe, measure: Option<&str>, dir: &TempDir) -> std::path::PathBuf {
    let whole = run(recipe, dir.path(), "whole", false, &mut Witness::default()).unwrap();
    assert_eq!(whole.summary.ending, Ending::Finished, "{stage}");
    let rows = read_rows(&whole.dir.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = rows.iter().filter_map(|r| if let Row::Step(r) = r { Some(r.loss) } else { None }).collect();
    assert!(losses[9..].iter().sum::<f64>() < losses[..3].iter().sum::<f64>(), "{stage}: {losses:?}");
    let evaluation = whole.summary.evaluation.as_ref().unwrap();
    assert!(evaluation.eval_loss.is_finite() && evaluation.eval_tokens > 0, "{stage}");
    if let Some(measure) = measure {
        assert!((0.0..=1.0).contains(&evaluation.metrics[measure]), "{stage}: {:?}", evaluation.metrics);
    }
    let mut witness = Witness { stop_at: Some(7), ..Witness::default() };
    let cut = run(recipe, dir.path(), "cut", false, &mut witness).unwrap();
    assert_eq!(cut.summary.ending, Ending::Interrupted, "{stage}");
    let resumed = run(recipe, dir.path(), "cut", true, &mut Witness::default()).unwrap();
    let bytes = |outcome: &Outcome| fs::read(outcome.model.as_ref().unwrap().join("model.safetensors")).unwrap();
    assert!(bytes(&whole) == bytes(&resumed), "{stage}: a resumed run ends in other weights");
    whole.model.unwrap()
}

#[test]
fn masked_lm_trains_an_encoder_with_and_without_whole_words() {
    for more in ["", "whole_words = true\nmask_share = 0.2"] {
        let dir = tempfile::tempdir().unwrap();
        let model = check("masked_lm", &recipe("masked_lm", BERT, "text", more), Some("eval_accuracy"), &dir);
        assert!(!LanguageModel::open(model).unwrap().spec().is_causal());
    }
}

#[test]
fn seq2seq_trains_on_pairs_on_spans_and_on_infilled_texts() {
    for (model, file, more) in [
        (T5, "reading", ""),
        (BART, "reading", ""),
        (T5, "text", "noise = \"spans\""),
        (BART, "text", "noise = \"infilling\""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let model = check("seq2seq", &recipe("seq2seq", model, file, more), Some("eval_exact_match"), &dir);
        let model = LanguageModel::open(model).unwrap();
        assert!(model.spec().encoder.is_some() && model.config()["decoder_start_token_id"].is_u64());
    }
}

#[test]
fn an_encoder_gets_a_new_head_where_the_recipe_says_so_and_learns_each_labelled_task() {
    let base = tempfile::tempdir().unwrap();
    let encoder = check("masked_lm", &recipe("masked_lm", BERT, "text", ""), None, &base);
    let opened = format!("path = \"{}\"\n", encoder.display());
    for (stage, file, task, measure) in [
        ("classify", "topics", Task::SequenceClassification, "eval_accuracy"),
        ("token_classify", "entities", Task::TokenClassification, "eval_accuracy"),
        ("qa", "reading", Task::QuestionAnswering, "eval_exact_match"),
    ] {
        let refused = run(&recipe(stage, &opened, file, ""), base.path(), stage, false, &mut Witness::default());
        let error = refused.unwrap_err();
        assert!(error.hint().unwrap().contains("new_head"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let allowed = recipe(stage, &format!("{opened}new_head = true\n"), file, "");
        let model = LanguageModel::open(check(stage, &allowed, Some(measure), &dir)).unwrap();
        assert_eq!(model.spec().head.task, task);
    }
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe("contrastive", &opened, "paraphrases", "");
    let model = LanguageModel::open(check("contrastive", &recipe, Some("eval_accuracy"), &dir)).unwrap();
    assert_eq!(model.spec().head.task, Task::Embedding);
}

#[test]
fn new_models_of_labelled_tasks_name_their_classes_and_a_decoder_can_classify() {
    for model in [
        BERT,
        "family = \"llama\"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
                         num_attention_heads = 2\nnum_key_value_heads = 2\nmax_position_embeddings = 96\n",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = check("classify", &recipe("classify", model, "topics", ""), Some("eval_accuracy"), &dir);
        let model = LanguageModel::open(path).unwrap();
        let labels = &model.config()["id2label"];
        assert!(labels.as_object().unwrap().values().any(|label| label == "food"), "{labels}");
    }
}

#[test]
fn a_model_of_the_wrong_kind_is_refused_with_the_families_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    for (stage, model, file, families) in [
        ("masked_lm", T5, "text", "`bert`"),
        ("seq2seq", BERT, "reading", "`t5`"),
        ("pretrain", BERT, "text", "`llama`"),
    ] {
        let error =
            run(&recipe(stage, model, file, ""), dir.path(), stage, false, &mut Witness::default()).unwrap_err();
        assert!(error.hint().unwrap().contains(families), "{stage}: {error}");
        assert!(!dir.path().join(stage).exists(), "no directory is left of a run that could not start");
    }
}
