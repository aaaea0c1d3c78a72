//! Directories whose weights bitsandbytes has quantised: read, run and written as it does.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::fs;
use std::path::{Path, PathBuf};

use loam_formats::{HfDir, HfWriter, SafeTensors};
use loam_models::{Forward, GgufSettings, Input, LanguageModel};
use loam_tensor::{DType, no_grad};
use loam_testkit::assert_close;

/// `scripts/goldens_nf4.py` says what it holds.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama-nf4")
}

fn logits(model: &LanguageModel, tokens: &[u32]) -> Vec<f32> {
    no_grad(|| model.logits(&Input::rows(tokens, 2), Forward::default())).unwrap().to_vec()
}

fn tokens() -> Vec<u32> {
    let golden = SafeTensors::open(golden().join("golden.safetensors")).unwrap();
    let bytes = golden.get("tokens").unwrap().bytes.into_owned();
    bytes.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn parameter(model: &LanguageModel, name: &str) -> loam_tensor::Parameter {
    model.parameters().into_iter().find(|(own, _)| own == name).unwrap().1
}

#[test]
fn a_quantised_checkpoint_is_read_as_bitsandbytes_decodes_it() {
    let (model, expected) =
        (LanguageModel::open(golden()).unwrap(), SafeTensors::open(golden().join("golden.safetensors")).unwrap());
    let down = parameter(&model, "layers.0.feed_forward.down_proj.weight");
    assert_eq!((down.dtype(), down.is_trainable()), (DType::Nf4, false));
    let theirs = expected.get("down").unwrap().to_f32().unwrap();
    assert!(down.to_vec().iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()), "the same numbers");
    assert_eq!(parameter(&model, "embed_tokens.weight").dtype(), DType::F32);
    let theirs = expected.get("logits").unwrap().to_f32().unwrap();
    assert_close("logits", &logits(&model, &tokens()), &theirs, 2e-5);
}

#[test]
fn what_a_plan_says_of_a_quantised_checkpoint_is_what_it_takes() {
    let (model, dir) = (LanguageModel::open_to_run(golden()).unwrap(), HfDir::open(golden()).unwrap());
    let (memory, types) = model.stored_in_dir(&dir).unwrap();
    let typed = model.parameters().into_iter().filter(|(_, parameter)| parameter.dtype() != DType::F32);
    assert_eq!(typed.map(|(name, parameter)| (name, parameter.dtype())).collect::<loam_models::Plan>(), types);
    assert!(types.values().any(|ty| *ty == DType::Nf4));
    assert_eq!(memory.mapped + memory.copied, model.weight_bytes());
}

#[test]
fn a_quantised_model_is_written_as_it_was_read() {
    let (model, dir) = (LanguageModel::open(golden()).unwrap(), tempfile::tempdir().unwrap());
    model.save(&HfWriter::create(dir.path()).unwrap(), None).unwrap();
    let [theirs, own] = [golden(), dir.path().to_path_buf()].map(|dir| HfDir::open(dir).unwrap());
    let [weights, written] = [theirs.weights().unwrap(), own.weights().unwrap()];
    assert!(weights.names().eq(written.names()));
    for name in weights.names().filter(|name| !name.contains("quant_state")) {
        assert!(weights.get(name).unwrap() == written.get(name).unwrap(), "{name}");
    }
    for name in weights.names().filter(|name| name.contains("quant_state")) {
        let state = |weights: &loam_formats::Weights| -> serde_json::Value {
            serde_json::from_slice(&weights.get(name).unwrap().bytes).unwrap()
        };
        assert_eq!(state(&weights), state(&written), "{name}");
    }
    assert_eq!(own.config()["quantization_config"]["bnb_4bit_quant_type"], "nf4");
    let again = LanguageModel::open(dir.path()).unwrap();
    assert!(logits(&again, &tokens()) == logits(&model, &tokens()));
}

#[test]
fn rounding_here_gives_the_checkpoints_own_bytes() {
    // Decoded numbers are rounded to themselves where the sizes of blocks are not rounded.
    let (model, other) = (LanguageModel::open(golden()).unwrap(), LanguageModel::open(golden()).unwrap());
    let name = "layers.0.feed_forward.up_proj.weight";
    let up = parameter(&other, name);
    let values = loam_tensor::Raw::from_f32(&up.to_vec(), up.shape());
    up.replace(values);
    other.quantise(&[(name.to_owned(), DType::Nf4)].into(), None).unwrap();
    let codes = |model: &LanguageModel| parameter(model, name).value().as_nf4().unwrap().codes().to_vec();
    assert!(codes(&other) == codes(&model));
    let refused = GgufSettings { mix: Some("nf4".parse().unwrap()), ..GgufSettings::default() };
    let refused = model.save_gguf(Path::new("x.gguf"), refused).unwrap_err().to_string();
    assert!(refused.contains("the format has no nf4"), "{refused}");
}

#[test]
fn damaged_checkpoints_are_refused_by_name() {
    let name = "model.layers.0.mlp.down_proj.weight";
    let change = |what: &dyn Fn(&str, &mut Vec<u8>)| {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(golden().join("config.json"), dir.path().join("config.json")).unwrap();
        let source = SafeTensors::open(golden().join("model.safetensors")).unwrap();
        let read = |own: &str| {
            let view = source.get(own).unwrap();
            let mut bytes = view.bytes.to_vec();
            what(own.strip_prefix(name).unwrap_or("another"), &mut bytes);
            (own.to_owned(), view.dtype, view.shape.to_vec(), bytes)
        };
        let tensors: Vec<_> = source.names().map(read).collect();
        let out = tensors.iter().map(|(own, dtype, shape, bytes)| {
            let shape = if shape.len() == 1 { vec![bytes.len() / dtype.size()] } else { shape.clone() };
            loam_formats::TensorOut::new(own.clone(), *dtype, &shape, bytes)
        });
        loam_formats::safetensors::write(dir.path().join("model.safetensors"), &[], out.collect::<Vec<_>>()).unwrap();
        LanguageModel::open(dir.path()).map(drop).expect_err("a damaged checkpoint").to_string()
    };
    let state = ".quant_state.bitsandbytes__nf4";
    let replace = |from: &'static str, to: &'static str| {
        move |end: &str, bytes: &mut Vec<u8>| {
            if end == state {
                *bytes = String::from_utf8(bytes.clone()).unwrap().replace(from, to).into_bytes();
            }
        }
    };
    let said = change(&replace("\"blocksize\": 64", "\"blocksize\": 128"));
    assert!(said.contains(name) && said.contains("blocks other than 64"), "{said}");
    let said = change(&replace("[64, 128]", "[64, 130]"));
    assert!(said.contains(name) && said.contains("are not those of shape [64, 130]"), "{said}");
    let said = change(&replace("{", "["));
    assert!(said.contains("is no JSON"), "{said}");
    let said = change(&|end, bytes| bytes.truncate(if end == ".absmax" { 3 } else { bytes.len() }));
    assert!(said.contains("codes or absmax are not those of shape [64, 128]"), "{said}");
    let said = change(&|end, bytes| bytes[0] ^= u8::from(end == ".quant_map"));
    assert!(said.contains("quant_map is not that of NF4"), "{said}");
}
