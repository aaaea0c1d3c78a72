//! Whole models: calibration, the methods and structured pruning on tiny ones.

use loam_compress::*;
use loam_models::{Forward, Input, LanguageModel, Mix};
use loam_testkit::assert_close;
use serde_json::{Value, json};

fn config(family: &str) -> Value {
    json!({
        "model_type": family, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 48, "tie_word_embeddings": false,
        "max_position_embeddings": 64,
    })
}

fn model(family: &str) -> LanguageModel {
    LanguageModel::new(&config(family), 3).expect("a valid configuration")
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i / 3) % 48).collect()
}

fn calibration() -> Calibration {
    Calibration::new(&tokens(2000), 32, 24).expect("a text")
}

fn nobody(_: usize, _: usize) {}

fn logits(model: &LanguageModel) -> Vec<f32> {
    model.logits(&Input::rows(&tokens(20), 1), Forward::default()).expect("tokens").to_vec()
}

fn mix(name: &str) -> Mix {
    name.parse().expect("a mix")
}

fn divergence(method: Method, name: &str) -> f64 {
    let (before, after) = (model("llama"), model("llama"));
    let done = quantise(&after, &Settings::new(mix(name), method), Some(&calibration()), None, &nobody).expect("done");
    assert_eq!(done.fallen_back, Vec::<String>::new());
    let windows = Windows::new(&tokens(900)[400..], 32, 1000).expect("a text");
    compare(&before, &after, &windows, &nobody).expect("one vocabulary").kl_divergence
}

#[test]
fn block_by_block_is_the_pass_itself() {
    for family in ["llama", "qwen3", "gemma2", "gpt_neox"] {
        let model = model(family);
        let (tokens, layers) = (tokens(20), model.spec().stack.layers.len());
        let input = Input::rows(&tokens, 2);
        let mut x = model.first_states(&input).expect("tokens");
        (0..layers).for_each(|index| x = model.through_block(index, &x, &input));
        let whole = model.hidden(&input, Forward::default()).expect("tokens").to_vec();
        assert_eq!(model.last_states(&x).to_vec(), whole, "{family}");
    }
}

#[test]
fn the_methods_lose_less_than_rounding_to_the_nearest() {
    let plain = divergence(Method::Rtn, "q4_0");
    for method in [Method::Imatrix, Method::Gptq, Method::Awq] {
        let other = divergence(method, "q4_0");
        assert!(other < plain, "{method:?}: {other} is not less than {plain}");
    }
}

#[test]
fn smoothing_changes_no_output_but_by_rounding() {
    for family in ["llama", "gemma2", "gpt_neox"] {
        let (before, after) = (model(family), model(family));
        let settings = Settings::new(mix("q8_0"), Method::SmoothQuant);
        quantise(&after, &settings, Some(&calibration()), None, &nobody).expect("done");
        assert_close(family, &logits(&after), &logits(&before), 0.02);
        round_activations(&after, true);
        let rounded = logits(&after);
        round_activations(&after, false);
        assert_close(family, &rounded, &logits(&before), 0.04);
        assert_ne!(rounded, logits(&after), "rounding activations changes something");
    }
    let refused = quantise(
        &model("llama"),
        &Settings::new(mix("q4_0"), Method::SmoothQuant),
        Some(&calibration()),
        None,
        &nobody,
    );
    assert!(refused.unwrap_err().to_string().contains("eight bits"));
}

#[test]
fn pruned_models_have_the_zeros_that_were_asked_for() {
    for (method, text) in [(Pruning::Magnitude, "0.5"), (Pruning::Wanda, "2:4"), (Pruning::SparseGpt, "0.5")] {
        let model = model("qwen3");
        prune(&model, method, text.parse().expect("a sparsity"), Some(&calibration()), &nobody).expect("done");
        assert!((sparsity_of(&model) - 0.5).abs() < 0.01, "{method:?}: {}", sparsity_of(&model));
        assert!(logits(&model).iter().all(|x| x.is_finite()));
    }
    let refused = prune(&model("qwen3"), Pruning::Wanda, Sparsity::Share(0.5), None, &nobody);
    assert!(refused.unwrap_err().to_string().contains("inputs of every layer"));
}

#[test]
fn shrunk_models_are_smaller_and_keep_what_they_keep() {
    let big = model("llama");
    let shape = Shape { layers: Some(2), heads: Some(2), width: Some(64) };
    let (small, shrunk) = shrink(&big, shape, &calibration(), &nobody).expect("done");
    let layer = &small.spec().stack.layers[0];
    assert_eq!(small.spec().stack.layers.len(), 2);
    assert_eq!((layer.attention.num_attention_heads, layer.attention.num_key_value_heads), (2, 2));
    assert_eq!((layer.attention.head_dim, layer.feed_forward.intermediate_size), (16, 64));
    assert!(shrunk.parameters_after < shrunk.parameters_before && shrunk.layers.len() == 2);
    assert!(logits(&small).iter().all(|x| x.is_finite()));
    // All that is there leaves the model as it is.
    let whole = Shape { layers: Some(3), heads: Some(4), width: Some(96) };
    let (same, _) = shrink(&big, whole, &calibration(), &nobody).expect("done");
    assert_eq!(logits(&same), logits(&big));
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let refused = |shape: Shape| match shrink(&model("llama"), shape, &calibration(), &nobody) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{shape:?} was taken"),
    };
    assert!(refused(Shape { layers: Some(4), ..Shape::default() }).contains("--layers 4"));
    assert!(refused(Shape { heads: Some(0), ..Shape::default() }).contains("--heads 0"));
    assert!(refused(Shape::default()).contains("nothing says"));
    let neox = shrink(&model("gpt_neox"), Shape { heads: Some(2), ..Shape::default() }, &calibration(), &nobody);
    assert!(neox.is_err(), "its heads share the width of the model");
    assert!(Calibration::new(&[1, 2, 3], 8, 4).is_err());
}

#[test]
fn importance_matrices_go_through_files_of_llama_cpp() {
    let model = model("llama");
    let importance = calibration().importance(&model, &nobody).expect("a text");
    assert_eq!(importance.len(), 3 * 7 + 1, "seven layers a block, and the head");
    let file = ImatrixFile::of(&model, &importance, "text", 24, 32).expect("llama is in GGUF");
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["m.gguf", "m.dat"] {
        let path = dir.path().join(name);
        file.write(&path).expect("written");
        let read = ImatrixFile::read(&path).expect("read").importance(&model, &path).expect("of this model");
        for (key, values) in &importance {
            assert_close(key, &read[key], values, values.iter().fold(0.0_f32, |a, b| a.max(*b)) * 1e-6);
        }
    }
    let other =
        LanguageModel::new(&json!({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 9}), 1);
    let path = dir.path().join("m.gguf");
    let refused = ImatrixFile::read(&path).expect("read").importance(&other.expect("a model"), &path);
    assert!(refused.is_err(), "of another model");
}
