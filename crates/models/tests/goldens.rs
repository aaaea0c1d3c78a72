//! Every family against `transformers`: logits, gradients, step-by-step decoding, and the files.

use std::sync::Arc;

use loam_formats::HfWriter;
use loam_models::{Forward, Input, LanguageModel};
use loam_tensor::no_grad;
use loam_testkit::{
    GRADIENT_TOLERANCE, Golden, LOGITS_TOLERANCE, assert_close, assert_close_relative, cases, golden_dir, pickled_copy,
};

fn tokens(golden: &Golden, name: &str) -> Vec<u32> {
    golden.integers(name).values.iter().map(|&id| id as u32).collect()
}

fn targets(golden: &Golden) -> Vec<i32> {
    golden.integers("targets").values.iter().map(|&id| id as i32).collect()
}

/// Loss scale that turns the sum over tokens into the mean that the goldens hold.
fn mean_scale(targets: &[i32]) -> f32 {
    1.0 / targets.iter().filter(|&&target| target >= 0).count() as f32
}

fn check_loss_and_gradients(case: &str, model: &LanguageModel, input: &Input<'_>, golden: &Golden) {
    let targets = targets(golden);
    let loss = model.loss(input, &targets, mean_scale(&targets), Forward::default()).expect("valid input");
    assert_close(&format!("{case} loss"), &[loss.item()], &[golden.loss()], LOGITS_TOLERANCE);
    loss.backward();
    let gradients = model.gradients();
    let mut compared = 0;
    for (name, expected) in golden.gradients() {
        let (_, shape, found) =
            gradients.iter().find(|(own, ..)| own == name).unwrap_or_else(|| panic!("{case}: no gradient `{name}`"));
        assert_eq!(shape, &expected.shape, "{case} {name}");
        if expected.values.iter().all(|&x| x == 0.0) {
            // Keys' biases have no effect where nothing rotates: rounding noise, beside gradients of order 0.1.
            assert!(found.iter().all(|x| x.abs() < 1e-6), "{case} {name}");
        } else {
            assert_close_relative(&format!("{case} {name}"), found, &expected.values, GRADIENT_TOLERANCE);
        }
        compared += 1;
    }
    assert_eq!(compared, gradients.len(), "{case}: every parameter has a golden gradient");
}

#[test]
fn logits_loss_and_gradients_equal_the_reference() {
    for case in cases() {
        let golden = Golden::open(&case);
        let model = LanguageModel::open(golden_dir(&case)).unwrap_or_else(|error| panic!("{case}: {error}"));
        let tokens = tokens(&golden, "tokens");
        let input = Input::rows(&tokens, 2);
        let logits = no_grad(|| model.logits(&input, Forward::default())).expect("valid input");
        let expected = golden.floats("logits");
        assert_eq!(logits.shape()[..], expected.shape[..], "{case}");
        assert_close(&format!("{case} logits"), &logits.to_vec(), &expected.values, LOGITS_TOLERANCE);
        check_loss_and_gradients(&case, &model, &input, &golden);
    }
}

#[test]
fn a_directory_of_pytorch_holds_the_same_model_as_one_of_safetensors() {
    for case in ["llama-bf16", "gpt2-unprefixed", "llama-sharded"] {
        let pickled = pickled_copy(case);
        let (ours, theirs) = (LanguageModel::open(pickled.path()), LanguageModel::open(golden_dir(case)));
        let values = |model: &LanguageModel| -> Vec<(String, Vec<f32>)> {
            model.parameters().iter().map(|(name, parameter)| (name.clone(), parameter.to_vec())).collect()
        };
        assert!(values(&ours.expect("pickles")) == values(&theirs.expect("safetensors")), "{case}");
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    for case in ["gpt2-plain", "llama-gqa"] {
        let golden = Golden::packed(case);
        let model = LanguageModel::open(golden_dir(case)).expect("a golden model");
        let (tokens, positions) = (tokens(&golden, "tokens"), tokens(&golden, "positions"));
        let input = Input {
            positions: Some(&positions),
            segments: Some(Arc::from(self::tokens(&golden, "documents"))),
            ..Input::rows(&tokens, 1)
        };
        let logits = no_grad(|| model.logits(&input, Forward::default())).expect("valid input");
        assert_close(case, &logits.to_vec(), &golden.floats("logits").values, LOGITS_TOLERANCE);
        check_loss_and_gradients(case, &model, &input, &golden);
    }
}

#[test]
fn decoding_step_by_step_gives_the_same_bits_as_one_pass() {
    for case in cases() {
        let golden = Golden::open(&case);
        let model = LanguageModel::open(golden_dir(&case)).expect("a golden model");
        let row: Vec<u32> = tokens(&golden, "tokens")[..17].to_vec();
        no_grad(|| {
            let whole = model.logits(&Input::rows(&row, 1), Forward::default()).expect("valid input").to_vec();
            let vocab = whole.len() / row.len();
            let mut cache = model.new_cache();
            let mut start = 0;
            for len in [5, 1, 1, 3, 1, 6] {
                let forward = Forward { cache: Some(&mut cache), ..Forward::default() };
                let part = model.logits(&Input::rows(&row[start..start + len], 1), forward).expect("valid input");
                let expected = &whole[start * vocab..(start + len) * vocab];
                assert_eq!(part.to_vec(), expected, "{case}: positions {start}..{}", start + len);
                start += len;
            }
        });
    }
}

#[test]
fn a_row_does_not_depend_on_the_batch_it_runs_in() {
    for case in ["gpt2-plain", "llama-gqa"] {
        let golden = Golden::open(case);
        let model = LanguageModel::open(golden_dir(case)).expect("a golden model");
        let both = tokens(&golden, "tokens");
        no_grad(|| {
            let together = model.logits(&Input::rows(&both, 2), Forward::default()).expect("valid input").to_vec();
            for (row, tokens) in both.chunks(17).enumerate() {
                let alone = model.logits(&Input::rows(tokens, 1), Forward::default()).expect("valid input").to_vec();
                assert_eq!(alone, together[row * alone.len()..][..alone.len()], "{case} row {row}");
            }
        });
    }
}

#[test]
fn import_then_export_gives_identical_bytes() {
    for case in cases() {
        if case == "gpt2-unprefixed" {
            // Exported under the full names that today's library writes.
            continue;
        }
        let original = golden_dir(&case);
        let model = LanguageModel::open(&original).expect("a golden model");
        let out = tempfile::tempdir().expect("a temporary directory");
        let writer = HfWriter::create(out.path()).expect("a directory");
        model.save(&writer, (case == "llama-sharded").then_some(4096)).expect("a save");
        if case == "llama-sharded" {
            let again = LanguageModel::open(out.path()).expect("shards that loam wrote");
            assert_eq!(values(&again), values(&model), "{case}");
            continue;
        }
        let read = |dir: &std::path::Path, name: &str| std::fs::read(dir.join(name)).expect(name);
        assert!(
            read(out.path(), "model.safetensors") == read(&original, "model.safetensors"),
            "{case}: model.safetensors differs"
        );
        let config = |dir: &std::path::Path| -> serde_json::Value {
            serde_json::from_slice(&read(dir, "config.json")).expect("JSON")
        };
        assert_eq!(config(out.path()), config(&original), "{case}");
    }
}

fn values(model: &LanguageModel) -> Vec<(String, Vec<f32>)> {
    model.parameters().into_iter().map(|(name, parameter)| (name, parameter.to_vec())).collect()
}
