//! Every family against `transformers`: logits, gradients, step-by-step decoding, and the files.

use std::sync::Arc;

use loam_formats::HfWriter;
use loam_models::{Forward, Input, LanguageModel, Memory, Reads, Task, pool};
use loam_tensor::no_grad;
use loam_testkit::{
    GRADIENT_TOLERANCE, Golden, LOGITS_TOLERANCE, assert_close, assert_close_relative, cases, golden_dir, head_cases,
    pickled_copy,
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

/// What the encoder makes of a case's source, where it has one; the rest of a row is padding.
fn memory(model: &LanguageModel, golden: &Golden) -> Option<Memory> {
    golden.has("source").then(|| {
        let (source, time) = (tokens(golden, "source"), golden.integers("source").shape[1]);
        let lengths = tokens(golden, "source_lengths");
        let is_padding = lengths.iter().flat_map(|&length| (0..time as u32).map(move |at| u32::from(at >= length)));
        let input = Input { segments: Some(is_padding.collect()), ..Input::rows(&source, lengths.len()) };
        model.encode(&input, Forward::default()).expect("a source")
    })
}

/// Runs `work` on a case's tokens, source and kinds of token.
fn with_input<R>(model: &LanguageModel, golden: &Golden, work: impl FnOnce(&Input<'_>) -> R) -> R {
    let (tokens, memory) = (tokens(golden, "tokens"), memory(model, golden));
    let types = golden.has("token_types").then(|| self::tokens(golden, "token_types"));
    work(&Input { memory: memory.as_ref(), token_types: types.as_deref(), ..Input::rows(&tokens, 2) })
}

fn check_loss_and_gradients(case: &str, model: &LanguageModel, input: &Input<'_>, golden: &Golden) {
    let targets = targets(golden);
    let loss = model.loss(input, &targets, mean_scale(&targets), Forward::default()).expect("valid input");
    assert_close(&format!("{case} loss"), &[loss.item()], &[golden.loss()], LOGITS_TOLERANCE);
    loss.backward();
    check_gradients(case, model, golden);
}

fn check_gradients(case: &str, model: &LanguageModel, golden: &Golden) {
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
        with_input(&model, &golden, |input| {
            let logits = no_grad(|| model.logits(input, Forward::default())).expect("valid input");
            let expected = golden.floats("logits");
            assert_eq!(logits.shape()[..], expected.shape[..], "{case}");
            assert_close(&format!("{case} logits"), &logits.to_vec(), &expected.values, LOGITS_TOLERANCE);
            check_loss_and_gradients(&case, &model, input, &golden);
        });
    }
}

#[test]
fn scores_of_other_heads_and_their_gradients_equal_the_reference() {
    for case in head_cases() {
        let golden = Golden::scores(&case);
        let model = LanguageModel::open(golden_dir(&case)).unwrap_or_else(|error| panic!("{case}: {error}"));
        let (tokens, expected) = (tokens(&golden, "tokens"), golden.floats("scores"));
        let scores = model.scores(&Input::rows(&tokens, 2), &[0..17, 17..34], Forward::default()).expect("valid input");
        assert_close(&format!("{case} scores"), &scores.to_vec(), &expected.values, LOGITS_TOLERANCE);
        scores.mul(&scores).sum().scale(0.5).backward();
        check_gradients(&case, &model, &golden);
    }
}

#[test]
fn hidden_states_equal_the_reference_and_are_pooled_by_document() {
    let golden = Golden::scores("bert-model");
    let model = LanguageModel::open(golden_dir("bert-model")).expect("a golden model");
    let tokens = tokens(&golden, "tokens");
    let hidden = no_grad(|| model.hidden(&Input::rows(&tokens, 2), Forward::default())).expect("valid input");
    let expected = &golden.floats("hidden").values;
    assert_close("hidden", &hidden.to_vec(), expected, LOGITS_TOLERANCE);
    let (first, last) = (&expected[3 * 16..4 * 16], &expected[4 * 16..5 * 16]);
    let mean: Vec<f32> = first.iter().zip(last).map(|(a, b)| (a + b) / 2.0).collect();
    for (reads, expected) in [(Reads::First, first), (Reads::Last, last), (Reads::Mean, &mean)] {
        assert_close(
            &format!("{reads:?}"),
            &pool(&hidden, std::slice::from_ref(&(3..5)), reads).to_vec(),
            expected,
            LOGITS_TOLERANCE,
        );
    }
}

#[test]
fn documents_packed_into_one_row_give_what_each_gives_alone() {
    for case in ["bert", "roberta", "modernbert", "t5", "bart", "marian"] {
        let golden = Golden::open(case);
        let model = LanguageModel::open(golden_dir(case)).expect("a golden model");
        let lengths = [9usize, 3, 5];
        let row = &tokens(&golden, "tokens")[..17];
        let positions: Vec<u32> = lengths.iter().flat_map(|&length| 0..length as u32).collect();
        let segments: Arc<[u32]> = (0u32..).zip(lengths).flat_map(|(id, length)| vec![id; length]).collect();
        no_grad(|| {
            let run = |row: &[u32], positions: Option<&[u32]>, segments: Option<Arc<[u32]>>| {
                let own = Input { positions, segments, ..Input::rows(row, 1) };
                let memory = model.spec().encoder.is_some().then(|| model.encode(&own, Forward::default()).unwrap());
                let input = Input { memory: memory.as_ref(), ..own };
                model.logits(&input, Forward::default()).unwrap().to_vec()
            };
            let together = run(row, Some(&positions), Some(segments.clone()));
            let mut start = 0;
            let alone = lengths.map(|length| {
                start += length;
                run(&row[start - length..start], None, None)
            });
            assert_close(case, &together, &alone.concat(), LOGITS_TOLERANCE);
        });
    }
}

#[test]
fn making_activations_again_gives_the_same_gradients_to_the_bit() {
    for case in ["gpt2-plain", "mixtral-balanced", "bert", "t5", "bart"] {
        let golden = Golden::open(case);
        let gradients = [false, true].map(|recompute| {
            let model = LanguageModel::open(golden_dir(case)).expect("a golden model");
            with_input(&model, &golden, |input| {
                let targets = targets(&golden);
                let forward = Forward { recompute, ..Forward::default() };
                model.loss(input, &targets, mean_scale(&targets), forward).expect("valid input").backward();
            });
            model.gradients()
        });
        assert!(gradients[0] == gradients[1], "{case}");
    }
}

#[test]
fn a_new_head_is_drawn_where_the_checkpoint_has_another_and_both_are_reported() {
    let labels = ["plant", "animal", "thing"].map(str::to_owned);
    let open =
        || LanguageModel::open_for(golden_dir("bert"), Task::SequenceClassification, &labels, 7, false).expect("opens");
    let (model, report) = open();
    assert_eq!(report.initialised.len(), 4, "{report:?}");
    assert!(report.initialised.contains(&"bert.pooler.dense.weight".to_owned()), "{report:?}");
    assert_eq!(report.dropped.len(), 5, "{report:?}");
    let scores = model
        .scores(&Input::rows(&[3, 4, 5], 1), std::slice::from_ref(&(0..3)), Forward::default())
        .expect("valid input");
    assert_eq!(scores.shape()[..], [1, 3]);
    assert_eq!(values(&model), values(&open().0), "the seed decides");
    let out = tempfile::tempdir().expect("a temporary directory");
    model.save(&HfWriter::create(out.path()).expect("a directory"), None).expect("a save");
    assert_eq!(values(&LanguageModel::open(out.path()).expect("what was saved")), values(&model));
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
        if !model.spec().is_causal() {
            continue;
        }
        let row: Vec<u32> = tokens(&golden, "tokens")[..17].to_vec();
        no_grad(|| {
            let memory = golden.has("source").then(|| {
                let source = tokens(&golden, "source");
                model.encode(&Input::rows(&source[..11], 1), Forward::default()).expect("a source")
            });
            let input = |tokens| Input { memory: memory.as_ref(), ..Input::rows(tokens, 1) };
            let whole = model.logits(&input(&row), Forward::default()).expect("valid input").to_vec();
            let vocab = whole.len() / row.len();
            let mut cache = model.new_cache();
            let mut start = 0;
            for len in [5, 1, 1, 3, 1, 6] {
                let forward = Forward { cache: Some(&mut cache), ..Forward::default() };
                let part = model.logits(&input(&row[start..start + len]), forward).expect("valid input");
                let expected = &whole[start * vocab..(start + len) * vocab];
                assert_eq!(part.to_vec(), expected, "{case}: positions {start}..{}", start + len);
                start += len;
            }
        });
    }
}

#[test]
fn a_sliding_window_keeps_what_it_reaches_and_gives_the_same_bits() {
    let config = serde_json::json!({
        "model_type": "mistral", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 20,
        "max_position_embeddings": 2000, "initializer_range": 0.6,
    });
    let model = LanguageModel::new(&config, 3).expect("a model");
    let row: Vec<u32> = (0..900u32).map(|at| (at * at + 7) % 40).collect();
    no_grad(|| {
        let whole = model.logits(&Input::rows(&row, 1), Forward::default()).expect("valid input").to_vec();
        let mut cache = model.new_cache();
        let (mut start, mut most) = (0, 0);
        for len in [130, 1, 3, 200, 1, 1, 64].into_iter().cycle() {
            let end = (start + len).min(row.len());
            let forward = Forward { cache: Some(&mut cache), ..Forward::default() };
            let part = model.logits(&Input::rows(&row[start..end], 1), forward).expect("valid input");
            assert_eq!(part.to_vec(), &whole[start * 40..end * 40], "positions {start}..{end}");
            most = most.max(cache.bytes());
            start = end;
            if start == row.len() {
                break;
            }
        }
        // Two layers of keys and values of one head, in f32: of all positions they would be this many bytes.
        let all = 2 * 2 * row.len() * 8 * 4;
        assert!(cache.len() == row.len() && most < all * 3 / 4, "{most} of {all} bytes");
    });
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
    for case in cases().into_iter().chain(head_cases()) {
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
