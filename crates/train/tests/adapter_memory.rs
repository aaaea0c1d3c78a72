//! The predicted memory of a step that trains an adapter against what the buffer pool counts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::sync::Arc;

use loam_models::{Forward, Hooks, Input, LanguageModel, StepShape, step_memory};
use loam_peft::{Adapter, AdapterSet, Config, Lora, Method, Origin};
use loam_tensor::{Precision, pool_stats, with_precision};
use loam_train::{Optimizer, OptimizerSettings};
use serde_json::json;

#[test]
fn the_peak_of_a_step_under_an_adapter_is_predicted_within_a_tenth() {
    let config = json!({
        "model_type": "llama", "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 768, "max_position_embeddings": 128, "tie_word_embeddings": true,
    });
    let model = LanguageModel::new(&config, 0).unwrap();
    model.parameters().iter().for_each(|(_, parameter)| parameter.set_trainable(false));
    let lora = Config::new(Method::Lora(Lora::default()));
    let adapter = Arc::new(Adapter::new(&model, &lora, Origin { seed: 1, encode: None, prefix_text: None }).unwrap());
    let _set = AdapterSet::attach(&model, vec![adapter.clone()]);
    let mut optimizer = Optimizer::new(adapter.parameters(), OptimizerSettings::default());
    let tokens: Vec<u32> = (0..2048).map(|i| i * 7 % 61).collect();
    let targets: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    // The pool only knows the largest peak so far, so every case needs more than the one before.
    for (precision, recompute) in [(Precision::F32, true), (Precision::Bf16, false), (Precision::F32, false)] {
        with_precision(precision, || {
            let forward = Forward { hooks: Hooks::On, recompute, ..Forward::default() };
            let loss = model.loss(&Input::rows(&tokens, 16), &targets, 1.0, forward).unwrap();
            optimizer.begin_step();
            loss.backward();
            adapter.parameters().iter().for_each(|(_, parameter)| {
                optimizer.update(parameter, 1e-3, 1.0);
                parameter.clear_grad();
            });
        });
        let frozen = Some(model.frozen_bytes(precision) + 16 * adapter.num_parameters());
        let step = StepShape { tokens: tokens.len(), precision, recompute, at_once: false, frozen };
        let (held, predicted) = (pool_stats().peak_bytes, step_memory(model.spec(), &step).peak);
        let ratio = predicted as f64 / held as f64;
        assert!((0.9..1.1).contains(&ratio), "{predicted} predicted, {held} held: {step:?}");
    }
}
