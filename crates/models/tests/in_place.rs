//! Directories of halves, opened for running: they stay where they lie, and the numbers are those of a model in f32.

use std::path::Path;

use loam_formats::{HfDir, HfWriter};
use loam_models::{Forward, Input, LanguageModel, Memory, Task};
use loam_tensor::{DType, Precision, no_grad, with_precision};
use loam_testkit::{cases, golden_dir};
use serde_json::json;

/// The bits of the logits of some rows, or of the hidden states where there is no head over tokens.
fn bits(model: &LanguageModel, rows: usize, time: usize) -> Vec<u32> {
    let vocab = model.spec().vocab_size as u32;
    let tokens: Vec<u32> = (0..(rows * time.max(4)) as u32).map(|i| (i * 7 + 3) % vocab).collect();
    let outputs = |memory: Option<&Memory>| {
        let input = Input { memory, ..Input::rows(&tokens[..rows * time], rows) };
        let outputs = match model.spec().head.task {
            Task::LanguageModel => model.logits(&input, Forward::default()),
            _ => model.hidden(&input, Forward::default()),
        };
        outputs.expect("valid input").to_vec().into_iter().map(f32::to_bits).collect()
    };
    no_grad(|| match model.spec().encoder {
        None => outputs(None),
        Some(_) => {
            let source = model.encode(&Input::rows(&tokens[..rows * 4], rows), Forward::default()).expect("a source");
            outputs(Some(&source))
        }
    })
}

/// The model in a directory of this element type.
fn written(mut model: LanguageModel, dtype: &str, dir: &Path) {
    model.set_config("dtype", json!(dtype));
    let writer = HfWriter::create(dir).expect("an empty directory");
    model.save(&writer, None).expect("written");
}

#[test]
fn every_family_of_halves_gives_the_bits_that_it_gives_in_f32_without_being_converted() {
    for case in cases() {
        for dtype in ["bfloat16", "float16"] {
            let dir = tempfile::tempdir().expect("a directory");
            written(LanguageModel::open(golden_dir(&case)).expect("a golden model"), dtype, dir.path());
            let trainable = LanguageModel::open(dir.path()).expect("just written");
            let held = LanguageModel::open_to_run(dir.path()).expect("just written");
            for (rows, time) in [(1, 3), (1, 12), (3, 4)] {
                assert!(bits(&held, rows, time) == bits(&trainable, rows, time), "{case} in {dtype}, {rows} x {time}");
            }
            assert!(trainable.parameters().iter().all(|(_, parameter)| parameter.dtype() == DType::F32));
            let (memory, types) = held.stored_in_dir(&HfDir::open(dir.path()).expect("a directory")).expect("its own");
            let held_types = held.parameters().into_iter().map(|(name, parameter)| (name, parameter.dtype()));
            let others = held_types.filter(|(_, dtype)| *dtype != DType::F32);
            assert_eq!(others.collect::<loam_models::Plan>(), types, "{case} in {dtype}");
            assert_eq!(memory.mapped + memory.copied, held.weight_bytes(), "{case} in {dtype}");
        }
    }
}

#[test]
fn halves_are_not_copied_but_rounded_to_bf16_where_products_want_that() {
    let dir = tempfile::tempdir().expect("a directory");
    written(LanguageModel::open(golden_dir("llama-gqa")).expect("a golden model"), "bfloat16", dir.path());
    let held = LanguageModel::open_to_run(dir.path()).expect("just written");
    let (memory, types) = held.stored_in_dir(&HfDir::open(dir.path()).expect("a directory")).expect("its own");
    // Only norms are converted.
    let norms: usize =
        held.parameters().iter().map(|(_, p)| if p.shape().len() == 1 { 4 * p.count() } else { 0 }).sum();
    assert!(memory.copied == norms && memory.mapped > norms && !types.is_empty(), "{memory:?}");
    let trainable = LanguageModel::open(dir.path()).expect("just written");
    with_precision(Precision::Bf16, || assert!(bits(&held, 1, 5) == bits(&trainable, 1, 5), "products of bf16"));
}

#[test]
fn a_new_head_over_halves_that_stay_in_their_file_is_the_one_over_a_converted_model() {
    let dir = tempfile::tempdir().expect("a directory");
    written(LanguageModel::open(golden_dir("llama-gqa")).expect("a golden model"), "bfloat16", dir.path());
    let labels = ["no".to_owned(), "yes".to_owned()];
    let [(held, drawn), (wide, _)] = [true, false].map(|in_place| {
        LanguageModel::open_for(dir.path(), Task::SequenceClassification, &labels, 7, in_place).expect("just written")
    });
    assert_eq!(drawn.initialised.len(), 1, "{drawn:?}");
    for ((name, held), (_, wide)) in held.parameters().into_iter().zip(wide.parameters()) {
        assert!(held.to_vec() == wide.to_vec(), "{name}");
        // What is new is no part of the file, and can be trained.
        let is_matrix = held.shape().len() == 2;
        assert_eq!(held.dtype() == DType::F32, !is_matrix || held.shape()[0] == labels.len(), "{name}");
    }
}
