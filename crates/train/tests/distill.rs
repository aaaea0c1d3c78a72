//! What distillation and noise compute, against their formulas written out.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::sync::Arc;

use common::{VOCAB, tiny_model};
use loam_data::Example;
use loam_data::preference::{AnswerBatch, Answers, Whole};
use loam_models::{EmbeddingNoise, Forward, Input, LanguageModel};
use loam_train::Pass;
use loam_train::losses::preference::generalised_jsd;
use loam_train::objective::{Distill, Objective};
use serde_json::json;

fn answers() -> AnswerBatch<()> {
    let example = |first: u32, prompt: usize, len: usize| Answers {
        texts: vec![Example {
            ids: (0..len as u32).map(|i| (first + 5 * i) % VOCAB).collect(),
            trained: (0..len).map(|i| i >= prompt).collect(),
        }],
        label: (),
    };
    let examples = [example(1, 3, 9), example(7, 2, 12), example(4, 5, 8)];
    AnswerBatch::pack(examples.iter(), Whole::of(examples.iter()))
}

/// All logits of a model at the places of a batch.
fn logits(model: &LanguageModel, batch: &AnswerBatch<()>) -> loam_tensor::Tensor {
    let input = Input {
        tokens: &batch.tokens,
        batch: batch.rows,
        time: batch.seq_len,
        positions: Some(&batch.positions),
        segments: Some(Arc::from(&batch.segments[..])),
        ..Input::default()
    };
    let all = model.logits(&input, Forward::default()).unwrap();
    let width = all.shape().width();
    all.reshape([batch.tokens.len(), width]).embedding(&batch.places, [batch.places.len()])
}

#[test]
fn the_loss_and_its_gradients_are_those_of_all_logits_at_once() {
    let (student, teacher, batch) = (tiny_model(1), Arc::new(tiny_model(2)), answers());
    for (beta, temperature) in [(0.0, 1.0), (0.5, 0.9), (0.1, 2.0), (1.0, 1.0)] {
        let gradients = |run: &mut dyn FnMut() -> loam_tensor::Tensor| {
            student.parameters().iter().for_each(|(_, parameter)| parameter.clear_grad());
            let loss = run();
            let value = loss.item();
            loss.backward();
            (value, student.gradients().into_iter().flat_map(|(_, _, values)| values).collect::<Vec<f32>>())
        };
        let mut objective = Distill { teacher: teacher.clone(), beta, temperature };
        let counted = objective.counted(&batch);
        let pass = Pass { scale: 1.0 / counted as f32, measures: false, ..Pass::measuring() };
        let ours = gradients(&mut || objective.loss(&student, &batch, &pass).unwrap().tensor);
        let plain = gradients(&mut || {
            let taught = logits(&teacher, &batch).detach();
            generalised_jsd(&logits(&student, &batch), &taught, beta, temperature).mean()
        });
        assert_eq!(counted, 6 + 10 + 3);
        assert!((ours.0 - plain.0).abs() < 1e-6, "beta {beta}: {} and {}", ours.0, plain.0);
        let largest = plain.1.iter().fold(0f32, |most, x| most.max(x.abs()));
        let error = ours.1.iter().zip(&plain.1).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest > 0.0 && error < 1e-5 * largest.max(1e-3), "beta {beta}: {error} of {largest}");
        assert!(
            teacher.parameters().iter().all(|(_, parameter)| parameter.grad().is_none()),
            "the teacher learns nothing"
        );
    }
}

#[test]
fn nothing_is_to_be_learnt_from_oneself() {
    let (student, batch) = (tiny_model(1), answers());
    for beta in [0.0, 0.3, 1.0] {
        let mut objective = Distill { teacher: Arc::new(tiny_model(1)), beta, temperature: 0.9 };
        let loss = objective.loss(&student, &batch, &Pass::measuring()).unwrap();
        assert!(loss.tensor.item().abs() < 1e-5, "beta {beta}: {}", loss.tensor.item());
        assert_eq!(loss.metrics[0], ("agreement", objective.counted(&batch) as f64));
    }
}

fn untied(seed: u64) -> LanguageModel {
    let config = json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": false,
    });
    LanguageModel::new(&config, seed).unwrap()
}

#[test]
fn noise_is_uniform_up_to_alpha_over_the_root_of_length_times_width_of_each_text() {
    let tokens = vec![1; 40];
    let mut segments = vec![0u32; 4];
    segments.extend(vec![1; 16]);
    segments.extend(vec![0; 20]);
    let input = Input { tokens: &tokens, batch: 2, time: 20, segments: Some(segments.into()), ..Input::default() };
    let noise = EmbeddingNoise { alpha: 5.0, seed: 3, step: 7 };
    let values = noise.of(&input, 512).to_vec();
    for (start, end, length) in [(0, 4, 4.0f32), (4, 20, 16.0), (20, 40, 20.0)] {
        let most = 5.0 / (length * 512.0).sqrt();
        let own = &values[start * 512..end * 512];
        let largest = own.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        assert!(largest <= most && largest > 0.99 * most, "{largest} of {most}");
        let squares = own.iter().map(|x| x * x).sum::<f32>() / own.len() as f32;
        assert!((squares / (most * most / 3.0) - 1.0).abs() < 0.05, "variance {squares}");
        let mean = own.iter().sum::<f32>() / own.len() as f32;
        assert!(mean.abs() < 0.05 * most, "mean {mean}");
    }
    assert_eq!(noise.of(&input, 512).to_vec(), values, "a function of seed and step");
    assert_ne!(EmbeddingNoise { step: 8, ..noise }.of(&input, 512).to_vec(), values);
}

#[test]
fn a_pass_with_noise_is_one_of_token_vectors_that_have_it_added() {
    let (model, moved) = (untied(1), untied(1));
    let tokens: Vec<u32> = (3..19).collect();
    let input = Input::rows(&tokens, 1);
    let noise = EmbeddingNoise { alpha: 5.0, seed: 3, step: 0 };
    let added = noise.of(&input, 32).to_vec();
    let (_, table) = moved.parameters().into_iter().find(|(name, _)| name.starts_with("embed_tokens")).unwrap();
    let mut values = table.to_vec();
    for (place, &token) in tokens.iter().enumerate() {
        for (x, n) in values[token as usize * 32..][..32].iter_mut().zip(&added[place * 32..]) {
            *x += n;
        }
    }
    table.set(&values);
    let noisy = model.hidden(&input, Forward { noise: Some(noise), ..Forward::default() }).unwrap().to_vec();
    let expected = moved.hidden(&input, Forward::default()).unwrap().to_vec();
    assert!(noisy.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
    let plain = model.hidden(&input, Forward::default()).unwrap().to_vec();
    assert!(noisy.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-2));
}

#[test]
fn packed_rows_have_the_gradients_of_texts_alone_and_of_small_batches() {
    // Eight texts: side by side in rows, in one batch, and one by one.
    let model = tiny_model(5);
    let texts: Vec<Answers<()>> = (0..8u32)
        .map(|i| {
            let len = 6 + i as usize;
            let ids = (0..len as u32).map(|k| (3 * i + 7 * k + k * k) % VOCAB).collect();
            Answers { texts: vec![Example { ids, trained: (0..len).map(|at| at > 2).collect() }], label: () }
        })
        .collect();
    let gradients = |groups: &[&[Answers<()>]], row: usize| {
        model.parameters().iter().for_each(|(_, parameter)| parameter.clear_grad());
        let counted: usize = texts.iter().map(|text| text.texts[0].ids.len() - 3).sum();
        for group in groups {
            let examples: Vec<Example> = group.iter().map(|text| text.texts[0].clone()).collect();
            let config = loam_data::LoaderConfig { batch: 64, seq_len: row, seed: 0, mode: loam_data::Mode::Packed };
            let loader = loam_data::Loader::for_examples(examples, config).unwrap();
            let rows = loader.rows_per_epoch() as usize;
            let config = loam_data::LoaderConfig { batch: rows, ..config };
            let examples: Vec<Example> = group.iter().map(|text| text.texts[0].clone()).collect();
            let batch = loam_data::Loader::for_examples(examples, config).unwrap().batch(0);
            let pass = Pass { scale: 1.0 / counted as f32, measures: false, ..Pass::measuring() };
            loam_train::objective::Tokens.loss(&model, &batch, &pass).unwrap().tensor.backward();
        }
        model.gradients()
    };
    let whole = gradients(&[&texts], 13);
    let packed = gradients(&[&texts], 32);
    let singles: Vec<&[Answers<()>]> = texts.chunks(1).collect();
    let alone = gradients(&singles, 13);
    for other in [packed, alone] {
        for ((name, _, a), (_, _, b)) in whole.iter().zip(&other) {
            let largest = a.iter().fold(0f32, |most, x| most.max(x.abs()));
            let error = a.iter().zip(b).fold(0f32, |most, (x, y)| most.max((x - y).abs()));
            assert!(largest > 0.0 && error <= 1e-6 * largest, "{name}: {error} of {largest}");
        }
    }
}
