//! The predicted memory of a training step against what the buffer pool counts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use loam_models::{Forward, Input, LanguageModel, StepShape, step_memory};
use loam_tensor::{Precision, pool_stats, with_precision};
use loam_train::{Optimizer, OptimizerSettings};
use serde_json::{Value, json};

fn gpt2(vocab: usize, width: usize, layers: usize, tied: bool) -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": vocab, "n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": 64,
        "tie_word_embeddings": tied,
    })
}

fn llama(vocab: usize, width: usize, layers: usize) -> Value {
    json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 3 * width,
        "max_position_embeddings": 64, "tie_word_embeddings": false,
    })
}

/// One step; returns what the pool held at most, if that is more than any earlier case held, and what was predicted.
fn measured(config: &Value, rows: usize, step: StepShape) -> (usize, usize) {
    let model = LanguageModel::new(config, 0).unwrap();
    let mut optimizer = Optimizer::new(&model.parameters(), OptimizerSettings::default());
    let tokens: Vec<u32> = (0..step.tokens as u32).map(|i| i * 7 % 61).collect();
    let targets: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    with_precision(step.precision, || {
        let forward = Forward { recompute: step.recompute, ..Forward::default() };
        let loss = model.loss(&Input::rows(&tokens, rows), &targets, 1.0, forward).unwrap();
        optimizer.begin_step();
        if step.at_once {
            loss.backward_consuming(&mut |parameter| optimizer.update(parameter, 1e-3, 1.0));
        } else {
            loss.backward();
            model.parameters().iter().for_each(|(_, parameter)| optimizer.update(parameter, 1e-3, 1.0));
        }
    });
    (pool_stats().peak_bytes, step_memory(model.spec(), &step).peak)
}

#[test]
fn the_peak_of_a_training_step_is_predicted_within_five_percent() {
    // The pool only knows the largest peak so far, so every case must need more than the one before.
    let mut cases = Vec::new();
    for (config, rows) in [
        (gpt2(64, 128, 4, false), 16),
        (gpt2(8192, 128, 2, true), 8),
        (llama(512, 128, 4), 32),
        // Wide enough for its activations to be made again.
        (gpt2(64, 256, 3, false), 16),
        (llama(16384, 128, 2), 8),
    ] {
        for precision in [Precision::F32, Precision::Bf16] {
            for (recompute, at_once) in [(false, false), (true, false), (false, true), (true, true)] {
                cases.push((
                    config.clone(),
                    rows,
                    StepShape { tokens: rows * 64, precision, recompute, at_once, frozen: None },
                ));
            }
        }
    }
    let predicted =
        |config: &Value, step: &StepShape| step_memory(LanguageModel::new(config, 0).unwrap().spec(), step).peak;
    cases.sort_by_key(|(config, _, step)| predicted(config, step));
    for (config, rows, step) in cases {
        let (held, predicted) = measured(&config, rows, step);
        let ratio = predicted as f64 / held as f64;
        assert!((0.95..1.05).contains(&ratio), "{predicted} predicted, {held} held: {} {step:?}", config["model_type"]);
    }
}
