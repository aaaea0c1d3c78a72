//! Embeddings are those of sentence-transformers, whatever else is in the batch.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use loam_infer::{EmbedSettings, Embedder, Error, Pooling};
use loam_testkit::{assert_close, encoder, golden_dir};
use std::fs;
use std::path::Path;

const CASES: [&str; 3] = ["mean", "mean-old", "cls-max-dense"];
const TOLERANCE: f32 = 1e-5;

fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|x| x.to_bits()).collect()
}

/// A copy of an encoder that a test may change.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => fs::write(target, fs::read(path).unwrap()).unwrap(),
        }
    }
}

#[test]
fn token_ids_are_those_of_sentence_transformers_whatever_the_tokenizer_file_says_about_padding() {
    for case in CASES {
        let (dir, golden) = encoder(case);
        let ids = Embedder::open(dir).unwrap().tokens(&golden.texts).unwrap();
        for ((text, ids), expected) in golden.texts.iter().zip(&ids).zip(&golden.ids) {
            assert_eq!(ids, expected, "{case}: {text:?}");
        }
    }
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    for case in CASES {
        let (dir, golden) = encoder(case);
        let embedder = Embedder::open(dir).unwrap();
        assert!(embedder.is_described());
        let vectors = embedder.embed(&golden.texts).unwrap();
        assert_eq!(vectors.len(), golden.texts.len());
        for ((text, vector), expected) in golden.texts.iter().zip(&vectors).zip(&golden.embeddings) {
            assert_eq!(vector.len(), embedder.width());
            assert_close(&format!("{case}: {text:?}"), vector, expected, TOLERANCE);
        }
    }
}

#[test]
fn an_embedding_has_the_same_bits_alone_and_in_any_company() {
    let (dir, golden) = encoder("mean");
    let embedder = Embedder::open(dir).unwrap();
    // Enough for several passes.
    let many: Vec<&str> = (0..40).flat_map(|_| golden.texts.iter().map(String::as_str)).collect();
    let together = embedder.embed(&many).unwrap();
    for (index, text) in golden.texts.iter().enumerate() {
        let alone = bits(&embedder.embed(&[text]).unwrap()[0]);
        for round in 0..40 {
            assert_eq!(bits(&together[round * golden.texts.len() + index]), alone, "{text:?}");
        }
    }
    let mut done = Vec::new();
    embedder.embed_watched(&many, &mut |count| done.push(count)).unwrap();
    assert!(done.is_sorted() && done.len() > 1 && done.last() == Some(&many.len()), "{done:?}");
    assert!(embedder.embed::<&str>(&[]).unwrap().is_empty());
}

#[test]
fn settings_replace_those_of_the_files() {
    let (dir, golden) = encoder("mean");
    let mut embedder = Embedder::open(dir).unwrap();
    let stated = embedder.settings().clone();
    assert_eq!(stated, EmbedSettings { pooling: vec![Pooling::Mean], normalize: true, max_tokens: 16 });
    let mean = embedder.embed(&golden.texts).unwrap();
    embedder.set(EmbedSettings { normalize: false, ..stated.clone() }).unwrap();
    let plain = embedder.embed(&golden.texts).unwrap();
    for (mean, plain) in mean.iter().zip(&plain) {
        let norm = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert_close("scaled", mean, &plain.iter().map(|x| x / norm).collect::<Vec<_>>(), 1e-6);
    }
    let both = EmbedSettings { pooling: vec![Pooling::Cls, Pooling::LastToken], normalize: false, max_tokens: 4 };
    embedder.set(both).unwrap();
    assert_eq!((embedder.width(), embedder.embed(&["the cat"]).unwrap()[0].len()), (16, 16));
    let [cls, sep] = [2, 3];
    let ids = embedder.tokens(&["the cat sat"]).unwrap().remove(0);
    assert!(ids.len() == 4 && ids[0] == cls && ids[3] == sep, "{ids:?}");
    for max_tokens in [0, 2, 25] {
        let error = embedder.set(EmbedSettings { max_tokens, ..stated.clone() }).unwrap_err();
        assert!(error.to_string().contains("from 3 to 24 tokens"), "{error}");
    }
}

#[test]
fn a_model_without_a_description_takes_the_mean_of_what_its_window_holds() {
    let (dir, golden) = encoder("mean");
    let place = tempfile::tempdir().unwrap();
    copy(&dir, place.path());
    let described = Embedder::open(&dir).unwrap().embed(&golden.texts).unwrap();
    fs::remove_file(place.path().join("modules.json")).unwrap();
    let plain = Embedder::open(place.path()).unwrap();
    assert!(!plain.is_described());
    assert_eq!(plain.embed(&golden.texts).unwrap(), described);
}

#[test]
fn causal_models_embed_packed_texts_as_single_ones() {
    let (tokenizer, golden) = encoder("mean");
    for case in ["llama-gqa", "gpt2-plain"] {
        let place = tempfile::tempdir().unwrap();
        copy(&golden_dir(case), place.path());
        // The models know 64 tokens: letters suffice.
        let text = fs::read_to_string(tokenizer.join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.retain(|_, id| id.as_u64().unwrap() < 64);
        fs::write(place.path().join("tokenizer.json"), json.to_string()).unwrap();
        let mut embedder = Embedder::open(place.path()).unwrap();
        let settings = EmbedSettings { pooling: vec![Pooling::LastToken], normalize: true, max_tokens: 16 };
        embedder.set(settings).unwrap();
        let together = embedder.embed(&golden.texts).unwrap();
        for (text, vector) in golden.texts.iter().zip(&together) {
            assert_eq!(bits(vector), bits(&embedder.embed(&[text]).unwrap()[0]), "{case}: {text:?}");
        }
    }
}

#[test]
fn what_the_files_ask_for_and_loam_cannot_do_is_said() {
    let (dir, _) = encoder("cls-max-dense");
    let broken = |file: &str, from: &str, to: &str| -> Error {
        let place = tempfile::tempdir().unwrap();
        copy(&dir, place.path());
        let path = place.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} is {text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        Embedder::open(place.path()).unwrap_err()
    };
    let cases = [
        ("modules.json", "pooling.Pooling", "lstm.LSTM", "module 1 is a `"),
        ("modules.json", "[", "[[", "cannot embed texts"),
        ("1_Pooling/config.json", "\"cls\"", "\"median\"", "there is no pooling `median`; known are cls"),
        ("1_Pooling/config.json", "\"cls\",", "", "takes 16 features, pooling gives 8"),
        ("2_Dense/config.json", "activation.Tanh", "activation.GELU", "known are Tanh and Identity"),
    ];
    for (file, from, to, said) in cases {
        let error = broken(file, from, to);
        assert!(error.to_string().contains(said) && error.hint().is_some(), "{error}");
    }
    let place = tempfile::tempdir().unwrap();
    copy(&dir, place.path());
    fs::remove_file(place.path().join("tokenizer.json")).unwrap();
    let error = Embedder::open(place.path()).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json") && error.hint().is_some(), "{error}");
}
