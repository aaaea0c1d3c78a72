//! LoRA in GGUF files: what a file says of a tensor is how that tensor changes, and it opens as the same adapter.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::sync::Arc;

use loam_formats::{Gguf, GgufTensor};
use loam_kernels::quant::dequantise_rows;
use loam_models::{Forward, GgufSettings, Hooks, Input, LanguageModel};
use loam_peft::{Adapter, AdapterSet, merge};
use loam_tensor::no_grad;
use loam_testkit::{Golden, assert_close, golden_dir, workspace_root};

fn opened(case: &str) -> (LanguageModel, Arc<Adapter>) {
    let dir = workspace_root().join("crates/testkit/peft").join(case);
    let golden = Golden::read(&dir.join("golden.safetensors"));
    let model = LanguageModel::open(golden_dir(golden.metadata("base"))).unwrap();
    let adapter = Arc::new(Adapter::open(&model, &dir).unwrap());
    (model, adapter)
}

fn values(file: &Gguf, tensor: &GgufTensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.elements()];
    dequantise_rows(tensor.ty, file.bytes(tensor), &mut values);
    values
}

fn logits(model: &LanguageModel, adapter: &Arc<Adapter>) -> Vec<f32> {
    let set = AdapterSet::attach(model, vec![adapter.clone()]);
    let forward = Forward { hooks: Hooks::On, ..Forward::default() };
    let logits = no_grad(|| model.logits(&Input::rows(&[5, 3, 8, 1], 2), forward).unwrap().to_vec());
    set.detach();
    logits
}

#[test]
fn a_file_says_how_each_tensor_of_the_models_own_file_changes_and_opens_as_the_same_adapter() {
    for case in [
        "llama-lora",
        "llama-lora-patterns",
        "llama-lora-regex",
        "llama-pissa",
        "llama-olora",
        "gpt2-lora",
        "gpt2-lora-all",
    ] {
        let (model, adapter) = opened(case);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lora.gguf");
        adapter.save_gguf(&model, &path).unwrap();
        let save = |name: &str| {
            model.save_gguf(&dir.path().join(name), GgufSettings::default()).unwrap();
            Gguf::open(dir.path().join(name)).unwrap()
        };
        let plain = save("plain.gguf");
        let merged_weights = merge(&model, &adapter).unwrap();
        let merged = save("merged.gguf");
        merged_weights.unmerge();
        let lora = Gguf::open(&path).unwrap();
        assert_eq!(lora.text("general.type").unwrap(), Some("adapter"));
        assert_eq!(lora.text("adapter.type").unwrap(), Some("lora"));
        let alpha = lora.number("adapter.lora.alpha").unwrap().unwrap();
        let mut changed = 0;
        for tensor in plain.tensors() {
            let mut expected = values(&plain, tensor);
            if let Some(a) = lora.find(&format!("{}.lora_a", tensor.name)) {
                let b = lora.get(&format!("{}.lora_b", tensor.name)).unwrap();
                let (r, width) = (a.shape[0], a.shape[1]);
                let (a, b) = (values(&lora, a), values(&lora, b));
                // What llama.cpp computes: alpha over the tensor's rank times B A.
                for (row, out) in expected.chunks_exact_mut(width).enumerate() {
                    for (column, x) in out.iter_mut().enumerate() {
                        let product: f64 =
                            (0..r).map(|k| f64::from(b[row * r + k]) * f64::from(a[k * width + column])).sum();
                        *x = (f64::from(*x) + alpha / r as f64 * product) as f32;
                    }
                }
                changed += 1;
            }
            let found = values(&merged, merged.get(&tensor.name).unwrap());
            assert_close(&format!("{case}: {}", tensor.name), &found, &expected, 1e-5);
        }
        assert!(changed > 0 && 2 * changed == lora.tensors().len(), "{case}: {changed}");
        let again = Arc::new(Adapter::open(&model, &path).unwrap());
        assert_close(case, &logits(&model, &again), &logits(&model, &adapter), 2e-5);
    }
}

#[test]
fn what_is_no_lora_or_for_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.gguf");
    for (case, problem) in
        [("llama-dora", "this is DoRA"), ("llama-ia3", "this is IA3"), ("llama-modules", "trained as a whole")]
    {
        let (model, adapter) = opened(case);
        let error = adapter.save_gguf(&model, &path).unwrap_err().to_string();
        assert!(error.contains(problem) && !path.exists(), "{error}");
    }
    let (model, adapter) = opened("llama-lora");
    adapter.save_gguf(&model, &path).unwrap();
    let (other, _) = opened("gpt2-lora");
    let error = Adapter::open(&other, &path).unwrap_err();
    assert!(error.to_string().contains("is for llama models, this is one of gpt2"), "{error}");
    let whole = dir.path().join("model.gguf");
    model.save_gguf(&whole, GgufSettings::default()).unwrap();
    assert!(Adapter::open(&model, &whole).unwrap_err().to_string().contains("holds no LoRA"));
    fs::write(&path, b"GGUF").unwrap();
    assert!(Adapter::open(&model, &path).is_err());
}
