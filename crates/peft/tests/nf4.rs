//! QLoRA: an adapter on weights in NF4, which stay as they are.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use loam_models::{Forward, Hooks, Input, LanguageModel};
use loam_peft::{Adapter, AdapterSet, Config, Lora, Method, Origin, merge};
use loam_tensor::{DType, Parameter, Raw, no_grad};
use loam_testkit::assert_close;
use serde_json::json;

const TOKENS: [u32; 12] = [5, 3, 8, 1, 9, 30, 2, 2, 17, 4, 11, 6];

fn quantised() -> LanguageModel {
    let config = json!({
        "model_type": "llama", "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "vocab_size": 40,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
    });
    let model = LanguageModel::new(&config, 3).unwrap();
    model.quantise(&model.plan("nf4".parse().unwrap()), None).unwrap();
    model
}

fn adapter(model: &LanguageModel) -> Arc<Adapter> {
    model.parameters().iter().for_each(|(_, parameter)| parameter.set_trainable(false));
    let config = Config::new(Method::Lora(Lora::default()));
    Arc::new(Adapter::new(model, &config, Origin { seed: 1, encode: None, prefix_text: None }).unwrap())
}

fn loss(model: &LanguageModel) -> loam_tensor::Tensor {
    let targets: Vec<i32> = TOKENS.iter().map(|&token| (token as i32 * 7 + 1) % 40).collect();
    let forward = Forward { hooks: Hooks::On, ..Forward::default() };
    model.loss(&Input::rows(&TOKENS, 2), &targets, 1.0 / 12.0, forward).unwrap()
}

/// Some steps of gradient descent; the losses.
fn train(model: &LanguageModel, adapter: &Arc<Adapter>) -> Vec<f32> {
    let set = AdapterSet::attach(model, vec![adapter.clone()]);
    let step = |parameter: &Parameter| {
        parameter.step(|value, grad| value.f32_mut().iter_mut().zip(grad.f32()).for_each(|(x, g)| *x -= 0.5 * g));
        parameter.clear_grad();
    };
    let losses = (0..8)
        .map(|_| {
            let loss = loss(model);
            let value = loss.to_vec()[0];
            loss.backward();
            adapter.parameters().iter().for_each(|(_, parameter)| step(parameter));
            value
        })
        .collect();
    set.detach();
    losses
}

#[test]
fn an_adapter_learns_on_weights_in_nf4_what_it_learns_on_the_decoded_ones() {
    let (model, wide) = (quantised(), quantised());
    for (_, parameter) in wide.parameters().iter().filter(|(_, parameter)| parameter.dtype() == DType::Nf4) {
        parameter.replace(Raw::from_f32(&parameter.to_vec(), parameter.shape()));
    }
    let before: Vec<Vec<f32>> = model.parameters().iter().map(|(_, parameter)| parameter.to_vec()).collect();
    let (own, other) = (train(&model, &adapter(&model)), train(&wide, &adapter(&wide)));
    assert!(own[7] < own[0] - 0.1, "it learns: {own:?}");
    assert_close("losses", &own, &other, 1e-4);
    let after: Vec<Vec<f32>> = model.parameters().iter().map(|(_, parameter)| parameter.to_vec()).collect();
    assert!(before == after && model.is_quantised());
}

#[test]
fn a_merged_adapter_is_rounded_to_nf4_again() {
    let model = quantised();
    let adapter = adapter(&model);
    train(&model, &adapter);
    let set = AdapterSet::attach(&model, vec![adapter.clone()]);
    let logits = |hooks| {
        let forward = Forward { hooks, ..Forward::default() };
        no_grad(|| model.logits(&Input::rows(&TOKENS, 1), forward)).unwrap().to_vec()
    };
    let (base, trained) = (logits(Hooks::Off), logits(Hooks::On));
    set.detach();
    let merged = merge(&model, &adapter).unwrap();
    let (_, query) =
        &model.parameters().into_iter().find(|(name, _)| name.ends_with("0.attention.q_proj.weight")).unwrap();
    assert_eq!(query.dtype(), DType::Nf4);
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let now = logits(Hooks::Off);
    assert!(distance(&now, &trained) < 0.6 * distance(&base, &trained), "rounding costs less than the adapter changes");
    merged.unmerge();
    assert!(logits(Hooks::Off) == base);
}
