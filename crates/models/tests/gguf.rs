//! GGUF: every family of the goldens there and back, quantised blocks kept as they are, files of another meaning refused.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::collections::HashSet;
use std::path::Path;
use std::slice::from_ref;

use loam_formats::gguf::write;
use loam_formats::{Gguf, GgufOut, GgufValue, HfDir, HfWriter};
use loam_kernels::quant::reads_halves_as_bf16;
use loam_models::{Forward, GgufSettings, Input, LanguageModel, Memory, Mix, Task};
use loam_tensor::{DType, GgmlType, Precision, no_grad, with_precision};
use loam_testkit::{cases, golden_copy, golden_dir};
use serde_json::json;

const FAMILIES: [&str; 8] = ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"];

fn family(model: &LanguageModel) -> &'static str {
    model.spec().family
}

fn logits(model: &LanguageModel) -> Vec<f32> {
    let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + 3) % model.spec().vocab_size as u32).collect();
    let logits = |memory: Option<&Memory>| {
        model.logits(&Input { memory, ..Input::rows(&tokens, 2) }, Forward::default()).expect("valid input").to_vec()
    };
    no_grad(|| match model.spec().encoder {
        None => logits(None),
        Some(_) => logits(Some(&model.encode(&Input::rows(&tokens[2..10], 2), Forward::default()).expect("a source"))),
    })
}

/// The model through a file of its own.
fn through(model: &LanguageModel, dir: &Path, mix: Option<&str>) -> LanguageModel {
    let path = dir.join("model.gguf");
    let mix = mix.map(|name| name.parse::<Mix>().expect("a mix"));
    model.save_gguf(&path, GgufSettings { mix, ..GgufSettings::default() }).expect("a family that GGUF knows");
    LanguageModel::open(&path).expect("a file just written")
}

/// The tensors of a directory: name, dtype, shape, bytes.
fn tensors(dir: &Path) -> Vec<(String, String, Vec<usize>, Vec<u8>)> {
    let weights = HfDir::open(dir).unwrap().weights().unwrap();
    let read = |name: &str| {
        let view = weights.get(name).unwrap();
        (name.to_owned(), view.dtype.to_string(), view.shape.to_vec(), view.bytes.to_vec())
    };
    weights.names().map(read).collect()
}

#[test]
fn every_family_comes_back_from_a_file_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut done = Vec::new();
    for case in cases() {
        let model = LanguageModel::open(golden_dir(&case)).unwrap();
        if family(&model) == "bert" && model.spec().head.task != Task::LanguageModel {
            continue;
        }
        let known = family(&model) == "gpt2" || FAMILIES.contains(&family(&model));
        if !known {
            let refused = model.save_gguf(&dir.path().join("x.gguf"), GgufSettings::default()).unwrap_err();
            assert!(refused.to_string().contains("cannot be written as GGUF"), "{case}: {refused}");
            continue;
        }
        let read = through(&model, dir.path(), None);
        assert!(logits(&read) == logits(&model), "{case}: the same numbers in the same order");
        // And as a directory again: the bytes of the original's tensors, where the file held them as they were.
        let back = dir.path().join(&case);
        let mut read = read;
        read.set_config("dtype", json!(model.config().get("dtype").or(model.config().get("torch_dtype"))));
        read.save(&HfWriter::create(&back).unwrap(), None).unwrap();
        let again = dir.path().join("again");
        model.save(&HfWriter::create(&again).unwrap(), None).unwrap();
        let (found, expected) = (tensors(&back), tensors(&again));
        assert_eq!(found.len(), expected.len(), "{case}");
        for (found, expected) in found.iter().zip(&expected) {
            // One is added to Gemma's norms and taken away again, which rounds the last bits of an f32.
            if !(family(&model).starts_with("gemma") && found.0.ends_with("norm.weight")) {
                assert!(found == expected, "{case}: {}", found.0);
            }
        }
        assert_eq!(LanguageModel::open(&back).unwrap().spec(), read.spec(), "{case}");
        done.push(case);
    }
    for needed in ["llama-gqa", "llama-rope-llama3", "llama-rope-yarn", "llama-biases", "llama-bf16", "llama-sharded"] {
        assert!(done.iter().any(|case| case == needed), "{needed} of {done:?}");
    }
    for needed in
        ["mistral", "mixtral", "qwen2-window", "qwen3", "gemma2", "gemma3", "phi3", "gpt2-plain", "gpt2-untied"]
    {
        assert!(done.iter().any(|case| case == needed), "{needed} of {done:?}");
    }
}

#[test]
fn both_forms_of_t5_come_back_if_their_distances_are_the_formats() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["t5", "t5-gated"] {
        let refused = LanguageModel::open(golden_dir(case)).unwrap();
        let refused = refused.save_gguf(&dir.path().join("x.gguf"), GgufSettings::default()).unwrap_err().to_string();
        assert!(refused.contains("cannot be written as GGUF: it would be read as another one"), "{case}: {refused}");
        let copy = golden_copy(case);
        let path = copy.path().join("config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        let config =
            config.replace("\"relative_attention_max_distance\": 12", "\"relative_attention_max_distance\": 128");
        std::fs::write(&path, config).unwrap();
        let model = LanguageModel::open(copy.path()).unwrap();
        let read = through(&model, dir.path(), None);
        assert!(logits(&read) == logits(&model), "{case}");
        assert_eq!(read.config()["feed_forward_proj"], model.config()["feed_forward_proj"], "{case}");
    }
}

/// Hidden states and, of a classifier, scores.
fn of_encoder(model: &LanguageModel) -> (Vec<f32>, Vec<f32>) {
    let input = Input::rows(&[3, 17, 9, 30, 2, 2, 39], 1);
    let scores = |_| model.scores(&input, from_ref(&(0..7)), Forward::default()).expect("a classifier").to_vec();
    no_grad(|| {
        let hidden = model.hidden(&input, Forward::default()).expect("valid input").to_vec();
        let is_classifier = model.spec().head.task == Task::SequenceClassification;
        (hidden, Some(()).filter(|()| is_classifier).map(scores).unwrap_or_default())
    })
}

#[test]
fn bert_and_its_classifier_come_back_with_and_without_a_pooler() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["bert-model", "bert-classify"] {
        let mut model = LanguageModel::open(golden_dir(case)).unwrap();
        let labels: Vec<String> = ["good", "bad", "odd"].map(String::from).to_vec();
        if case == "bert-classify" {
            model.set_config("id2label", json!({"0": labels[0], "1": labels[1], "2": labels[2]}));
        }
        let mut read = through(&model, dir.path(), None);
        assert!(of_encoder(&read) == of_encoder(&model), "{case}");
        let path = dir.path().join("model.gguf");
        let gguf = Gguf::open(&path).unwrap();
        for (key, expected) in [("bert.attention.causal", "false"), ("tokenizer.ggml.token_type_count", "2")] {
            let value = gguf.flag(key).map(|x| x.map(|x| x.to_string()));
            let value = value.or_else(|_| gguf.size(key).map(|x| x.map(|x| x.to_string()))).unwrap();
            assert_eq!(value.as_deref(), Some(expected), "{case}: {key}");
        }
        for name in
            ["token_embd_norm.bias", "blk.0.attn_output_norm.weight", "blk.0.layer_output_norm.bias", "cls.bias"]
        {
            assert!(gguf.find(name).is_some(), "{case}: {name}");
        }
        let [back, again] = ["back", "again"].map(|name| dir.path().join(format!("{case}-{name}")));
        read.set_config("dtype", json!("float32"));
        read.save(&HfWriter::create(&back).unwrap(), None).unwrap();
        model.save(&HfWriter::create(&again).unwrap(), None).unwrap();
        assert!(tensors(&back) == tensors(&again), "{case}");
        if case == "bert-classify" {
            assert_eq!(read.config()["id2label"]["1"], "bad");
            assert_eq!(gguf.size("bert.pooling_type").unwrap(), Some(4), "the scores of a classifier");
        }
        // As llama.cpp's converter writes it.
        let outputs =
            gguf.tensors().iter().filter(|tensor| !["cls.weight", "cls.bias"].contains(&tensor.name.as_str()));
        let outputs: Vec<GgufOut<'_>> = outputs
            .map(|tensor| GgufOut::new(tensor.name.clone(), tensor.ty, &tensor.shape, gguf.bytes(tensor)))
            .collect();
        let bare = dir.path().join("bare.gguf");
        write(&bare, gguf.metadata(), &outputs).unwrap();
        let bare = LanguageModel::open(&bare).unwrap();
        assert_eq!(of_encoder(&bare).0, of_encoder(&model).0, "{case}");
        let saved = dir.path().join(format!("{case}-bare"));
        bare.save(&HfWriter::create(&saved).unwrap(), None).unwrap();
        assert!(!tensors(&saved).iter().any(|(name, ..)| name.contains("pooler")), "{case}");
        assert!(of_encoder(&LanguageModel::open(&saved).unwrap()) == of_encoder(&bare), "{case}");
    }
}

/// A mixture of experts wide enough for blocks of 256.
fn experts(family: &str) -> LanguageModel {
    LanguageModel::new(
        &json!({
            "model_type": family, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 64,
            "num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": false,
        }),
        7,
    )
    .unwrap()
}

#[test]
fn experts_lie_in_one_tensor_and_are_multiplied_where_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    for (name, architecture) in [("mixtral", "llama"), ("qwen3_moe", "qwen3moe")] {
        let model = experts(name);
        let plain = through(&model, dir.path(), None);
        assert!(logits(&plain) == logits(&model) && family(&plain) == name, "{name}");
        let path = dir.path().join("model.gguf");
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.text("general.architecture").unwrap(), Some(architecture));
        for (key, expected) in [("expert_count", 3), ("expert_used_count", 2), ("feed_forward_length", 256)] {
            assert_eq!(gguf.size(&format!("{architecture}.{key}")).unwrap(), Some(expected), "{name}: {key}");
        }
        let [back, again] = ["back", "again"].map(|end| dir.path().join(format!("{name}-{end}")));
        plain.save(&HfWriter::create(&back).unwrap(), None).unwrap();
        model.save(&HfWriter::create(&again).unwrap(), None).unwrap();
        assert!(tensors(&back) == tensors(&again), "{name}");
        for mix in ["q4_k_m", "mxfp4", "tq1_0"] {
            let read = through(&model, dir.path(), Some(mix));
            let other = experts(name);
            other.quantise(&other.plan(mix.parse().unwrap()), None).unwrap();
            assert!(logits(&read) == logits(&other), "{name} {mix}");
            let gguf = Gguf::open(&path).unwrap();
            let stack = gguf.get("blk.0.ffn_down_exps.weight").unwrap();
            assert_eq!(stack.shape, [3, 256, 256], "{name} {mix}");
            let parameters = read.parameters();
            let address = |expert: usize| {
                let end = format!("experts.{expert}.down_proj.weight");
                let (_, own) = parameters.iter().find(|(own, _)| own.ends_with(&end)).unwrap();
                own.value().as_quantised().expect("blocks").bytes.as_ptr() as usize
            };
            assert_eq!(address(2) - address(0), stack.byte_len() / 3 * 2, "{name} {mix}: one behind the other");
        }
        assert_eq!(Gguf::open(&path).unwrap().get("blk.0.ffn_gate_inp.weight").unwrap().ty, GgmlType::F32);
    }
}

/// Wide enough for blocks of 256, with grouped heads.
fn wide(family: &str) -> LanguageModel {
    LanguageModel::new(
        &json!({
            "model_type": family, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 96, "tie_word_embeddings": false,
        }),
        7,
    )
    .unwrap()
}

#[test]
fn quantised_blocks_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama", "phi3", "qwen2"] {
        for mix in ["q4_k_m", "q8_0", "q6_k", "q4_0", "iq4_xs", "f16", "bf16", "q2_k"] {
            let model = wide(name);
            let read = through(&model, dir.path(), Some(mix));
            assert!(read.is_quantised() && read.weight_bytes() * 5 < model.weight_bytes() * 3, "{name} {mix}");
            // The same rounding as in memory, save where tensors share the finest type of their parts.
            if name != "phi3" {
                model.quantise(&model.plan(mix.parse().unwrap()), None).unwrap();
                assert!(logits(&read) == logits(&model), "{name} {mix}");
            }
            let second = dir.path().join("second.gguf");
            read.save_gguf(&second, GgufSettings::default()).unwrap();
            let (first, second) = (Gguf::open(dir.path().join("model.gguf")).unwrap(), Gguf::open(second).unwrap());
            for tensor in first.tensors() {
                let copy = second.get(&tensor.name).unwrap();
                assert_eq!((copy.ty, &copy.shape), (tensor.ty, &tensor.shape), "{name} {mix} {}", tensor.name);
                assert!(first.bytes(tensor) == second.bytes(copy), "{name} {mix} {}", tensor.name);
            }
        }
    }
}

#[test]
fn halves_are_multiplied_as_bf16_where_products_are_and_else_kept() {
    let dir = tempfile::tempdir().unwrap();
    let kept = through(&wide("llama"), dir.path(), Some("f16"));
    let open = || LanguageModel::open(dir.path().join("model.gguf")).unwrap();
    let in_bf16 = |model: &LanguageModel| with_precision(Precision::Bf16, || logits(model));
    let rounded = with_precision(Precision::Bf16, open);
    let types = |model: &LanguageModel| -> HashSet<DType> {
        model.parameters().iter().map(|(_, parameter)| parameter.value().dtype()).filter(|ty| ty.is_packed()).collect()
    };
    assert_eq!(types(&kept), HashSet::from([DType::Ggml(GgmlType::F16)]));
    let mut plan = kept.plan("bf16".parse().unwrap());
    if reads_halves_as_bf16() {
        // Products round them one by one, and lookups have all their digits.
        assert_eq!(types(&rounded), types(&kept));
        assert!(logits(&rounded) == logits(&kept));
        plan.remove("embed_tokens.weight").expect("a table of embeddings");
        kept.quantise(&plan, None).unwrap();
    } else {
        assert_eq!(types(&rounded), HashSet::from([DType::Ggml(GgmlType::Bf16)]));
        kept.quantise(&plan, None).unwrap();
        assert!(logits(&rounded) == logits(&kept));
    }
    assert!(in_bf16(&rounded) == in_bf16(&kept) && logits(&rounded) != in_bf16(&rounded));
}

#[test]
fn weights_that_keep_their_place_are_the_files_own_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let settings = GgufSettings { mix: Some("q8_0".parse().unwrap()), ..GgufSettings::default() };
    wide("llama").save_gguf(&path, settings).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let model = LanguageModel::from_gguf(&gguf).unwrap();
    let parameters = model.parameters();
    let value = |name: &str| parameters.iter().find(|(own, _)| own == name).expect("a parameter").1.value();
    let address = |name: &str| value(name).as_quantised().expect("blocks").bytes.as_ptr();
    let file = |name: &str| gguf.bytes(gguf.get(name).unwrap()).as_ptr();
    for (own, name) in [
        ("layers.1.feed_forward.down_proj.weight", "blk.1.ffn_down.weight"),
        ("embed_tokens.weight", "token_embd.weight"),
        ("layers.0.attention.v_proj.weight", "blk.0.attn_v.weight"),
    ] {
        assert_eq!(address(own), file(name), "{own}");
    }
    assert_ne!(address("layers.0.attention.q_proj.weight"), file("blk.0.attn_q.weight"), "rows change places");
    assert_eq!(value("norm.weight").dtype(), DType::F32);
    assert_eq!(gguf.get("blk.0.attn_q.weight").unwrap().ty, GgmlType::Q8_0);
}

#[test]
fn queries_and_keys_of_llama_are_permuted_as_its_converter_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let model = wide("llama");
    model.save_gguf(&path, GgufSettings::default()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let bytes = gguf.bytes(gguf.get("blk.0.attn_k.weight").unwrap());
    let rows: Vec<&[u8]> = bytes.chunks_exact(4 * 256).collect();
    let parameters = model.parameters();
    let own = parameters.iter().find(|(name, _)| name == "layers.0.attention.k_proj.weight").unwrap().1.to_vec();
    // Heads of 32: features 0 and 16 of the second head lie side by side.
    for (file, here) in [(0, 0), (1, 16), (2, 1), (32, 32), (33, 48), (63, 63)] {
        let expected: Vec<u8> = own[here * 256..][..256].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(rows[file] == expected, "row {file} of the file is row {here}");
    }
}

/// Keys and values of a file.
type Keys = Vec<(String, GgufValue)>;

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    wide("qwen2").save_gguf(&path, GgufSettings::default()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let change = |keys: &dyn Fn(&mut Keys), skip: &str, extra: Option<&str>| {
        let mut metadata = gguf.metadata().to_vec();
        keys(&mut metadata);
        let one = [0_u8; 4];
        let mut tensors: Vec<GgufOut<'_>> = gguf
            .tensors()
            .iter()
            .filter(|tensor| tensor.name != skip)
            .map(|tensor| GgufOut::new(tensor.name.clone(), tensor.ty, &tensor.shape, gguf.bytes(tensor)))
            .collect();
        tensors.extend(extra.map(|name| GgufOut::new(name, GgmlType::F32, &[1], &one)));
        let changed = dir.path().join("changed.gguf");
        write(&changed, &metadata, &tensors).unwrap();
        LanguageModel::open(&changed).expect_err("a file that does not fit").to_string()
    };
    let same = |_: &mut Keys| {};
    let set = |key: &'static str, value: GgufValue| {
        move |all: &mut Keys| {
            all.iter_mut().find(|(own, _)| own == key).expect("a key").1 = value.clone();
        }
    };
    let said = change(&same, "blk.1.attn_q.weight", None);
    assert!(said.contains("`blk.1.attn_q.weight` is missing"), "{said}");
    let said = change(&same, "", Some("blk.0.attn_sinks"));
    assert!(said.contains("`blk.0.attn_sinks` has no place in a qwen2 model"), "{said}");
    let said = change(&set("general.architecture", "rwkv7".into()), "", None);
    assert!(said.contains("`rwkv7` is not known; loam reads llama, qwen2"), "{said}");
    let said = change(&set("qwen2.embedding_length", 128.into()), "", None);
    assert!(said.contains("has shape [96, 256], the configuration implies [96, 128]"), "{said}");
    let said = change(&set("qwen2.embedding_length", "wide".into()), "", None);
    assert!(said.contains("'qwen2.embedding_length' must be a whole number"), "{said}");
    let said = change(&set("qwen2.block_count", 0.into()), "", None);
    assert!(said.contains("num_hidden_layers"), "{said}");
    let said = change(&|all| all.retain(|(key, _)| key != "qwen2.block_count"), "", None);
    assert!(said.contains("the key 'qwen2.block_count' is missing"), "{said}");
    let said = change(&set("qwen2.attention.head_count", 0.into()), "", None);
    assert!(said.contains("num_attention_heads"), "{said}");
}
