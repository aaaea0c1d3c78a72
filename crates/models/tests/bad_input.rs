//! Directories that are not what they say.

use loam_models::{Error, Forward, Input, LanguageModel};
use loam_testkit::{golden_copy, golden_dir, pickled_copy};
use serde_json::{Value, json};

/// Opens a copy of a golden model whose configuration has `key` set to `value`.
fn open_with(case: &str, key: &str, value: Value) -> Error {
    let dir = golden_copy(case);
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("config")).expect("JSON");
    config[key] = value;
    std::fs::write(&path, config.to_string()).expect("a write");
    LanguageModel::open(dir.path()).expect_err("a refusal")
}

#[test]
fn an_unknown_family_lists_the_known_ones() {
    let error = open_with("llama-plain", "model_type", json!("mamba"));
    assert_eq!(
        error.to_string(),
        "unknown model family `mamba`: loam knows gpt2, llama, mistral, qwen2, qwen3, gemma2, \
         gemma3_text, phi3, gpt_neox, opt, mixtral, qwen3_moe, bert, roberta, distilbert, modernbert, t5, bart, marian"
    );
}

#[test]
fn a_head_count_that_does_not_divide_is_named() {
    let error = open_with("llama-gqa", "num_key_value_heads", json!(3));
    assert_eq!(
        error.to_string(),
        "config.json: `num_key_value_heads` is 3, which does not divide num_attention_heads 4"
    );
}

#[test]
fn a_wrong_type_is_named() {
    let error = open_with("llama-gqa", "hidden_size", json!("wide"));
    assert_eq!(error.to_string(), "config.json: `hidden_size` must be a positive whole number, found \"wide\"");
}

#[test]
fn an_unknown_activation_lists_the_known_ones() {
    let error = open_with("gpt2-plain", "activation_function", json!("mish")).to_string();
    assert!(error.contains("`activation_function` is `mish`; known are gelu_new"), "{error}");
}

#[test]
fn an_unknown_rope_type_is_named_in_both_layouts() {
    let newer = open_with("llama-plain", "rope_parameters", json!({"rope_type": "longrope"}));
    let older = open_with("llama-rope-linear-v4", "rope_scaling", json!({"type": "longrope", "factor": 2.0}));
    for (error, key) in [(newer, "rope_parameters"), (older, "rope_scaling")] {
        let expected = format!("config.json: `{key}.rope_type` is `longrope`; known are default, linear, llama3, yarn");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_configuration_of_another_width_names_the_first_weight_that_does_not_fit() {
    let error = open_with("llama-plain", "intermediate_size", json!(23));
    assert!(matches!(&error, Error::WeightShape { name, .. } if name.contains("mlp")), "{error}");
}

#[test]
fn a_missing_weight_is_named() {
    // One more layer than the file holds.
    let error = open_with("llama-plain", "num_hidden_layers", json!(3));
    assert!(matches!(&error, Error::MissingWeight { name, .. } if name.contains("layers.2.")), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("model.layers.")), "{:?}", error.hint());
}

#[test]
fn an_extra_weight_is_named() {
    let error = open_with("llama-plain", "num_hidden_layers", json!(1));
    assert!(matches!(&error, Error::UnexpectedWeight { name, .. } if name.contains("layers.1.")), "{error}");
}

#[test]
fn weights_of_pytorch_are_held_to_the_configuration_as_well() {
    for (key, value, expected) in [
        ("num_hidden_layers", json!(3), "weight `model.layers.2.input_layernorm.weight` is missing"),
        ("num_hidden_layers", json!(1), "pytorch_model.bin: weight `model.layers.1."),
        ("intermediate_size", json!(23), "has shape [24, 16], the configuration implies [23"),
    ] {
        let dir = pickled_copy("llama-bf16");
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("config")).expect("JSON");
        config[key] = value;
        std::fs::write(&path, config.to_string()).expect("a write");
        let error = LanguageModel::open(dir.path()).expect_err("a refusal");
        assert!(error.to_string().contains(expected), "{error}; expected {expected}");
        assert!(error.hint().is_some(), "{error}");
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let model = LanguageModel::open(golden_dir("gpt2-plain")).expect("a golden model");
    let error = model.logits(&Input::rows(&[1, 64], 1), Forward::default()).expect_err("a refusal");
    assert_eq!(error.to_string(), "token 64 is outside the vocabulary of 64");
}

#[test]
fn more_positions_than_learned_are_refused() {
    let model = LanguageModel::open(golden_dir("gpt2-plain")).expect("a golden model");
    let error = model.logits(&Input::rows(&[1; 33], 1), Forward::default()).expect_err("a refusal");
    assert_eq!(error.to_string(), "33 positions do not fit the context of 32");
}
