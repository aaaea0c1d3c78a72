//! Tokenizers through the keys of GGUF files, with and without the `tokenizer.json` that a file may hold.
#![allow(clippy::unwrap_used, reason = "a failing helper of a test may panic")]

mod common;

use common::{Rng, nasty, prose};
use loam_formats::{Gguf, GgufArray, GgufValue};
use loam_tokenizer::{Error, Special, Tokenizer, TrainConfig, TrainKind, train};

/// Keys and values of a file.
type Keys = Vec<(String, GgufValue)>;

const WHOLE: &str = "tokenizer.huggingface.json";

fn trained(kind: TrainKind, vocab_size: usize) -> Tokenizer {
    let config = TrainConfig { vocab_size, ..TrainConfig::new(kind) };
    train([Ok::<_, Error>(prose(1, 1500))], &config, &mut |_| {}).unwrap()
}

fn text_of<'a>(metadata: &'a [(String, GgufValue)], key: &str) -> Option<&'a str> {
    metadata.iter().find(|(own, _)| own == key).and_then(|(_, value)| value.as_text())
}

/// The tokenizer that the keys alone describe.
fn by_keys(mut metadata: Keys) -> Tokenizer {
    metadata.retain(|(key, _)| key != WHOLE);
    Tokenizer::from_gguf(&Gguf::from_metadata(metadata)).unwrap()
}

#[test]
fn every_kind_comes_back_whole() {
    for (kind, size, model) in [
        (TrainKind::ByteBpe, 600, "gpt2"),
        (TrainKind::WordPiece, 600, "bert"),
        (TrainKind::Unigram, 300, "t5"),
        (TrainKind::Char, 0, "none"),
    ] {
        let tokenizer = trained(kind, size);
        let metadata = tokenizer.gguf_metadata(tokenizer.vocab_size() + 3, Some("{{ messages }}")).unwrap();
        assert_eq!(text_of(&metadata, "tokenizer.ggml.model"), Some(model));
        let gguf = Gguf::from_metadata(metadata);
        assert_eq!(gguf.texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), tokenizer.vocab_size() + 3);
        let read = Tokenizer::from_gguf(&gguf).unwrap();
        assert_eq!(read.content_hash(), tokenizer.content_hash(), "{model}");
        assert_eq!(read.special(), tokenizer.special(), "{model}");
        assert_eq!(Tokenizer::gguf_chat_template(&gguf).unwrap().as_deref(), Some("{{ messages }}"));
    }
}

#[test]
fn the_keys_alone_give_the_same_ids() {
    let mut rng = Rng(11);
    for (kind, size) in [(TrainKind::ByteBpe, 600), (TrainKind::WordPiece, 600), (TrainKind::Unigram, 300)] {
        let tokenizer = trained(kind, size);
        let read = by_keys(tokenizer.gguf_metadata(tokenizer.vocab_size(), None).unwrap());
        for round in 0..100 {
            // Unigram as trained here normalises, which needs a table that the keys do not have.
            let text = if kind == TrainKind::Unigram { prose(round, 3) } else { nasty(&mut rng, round as usize % 40) };
            for special in [Special::Add, Special::Parse, Special::Ignore] {
                assert_eq!(
                    read.encode(&text, special).unwrap(),
                    tokenizer.encode(&text, special).unwrap(),
                    "{kind:?} {special:?} {text:?}"
                );
            }
        }
        assert_eq!(read.is_fast(), tokenizer.is_fast(), "{kind:?}");
    }
}

fn list(texts: &[&str]) -> GgufValue {
    GgufValue::Array(GgufArray::Text(texts.iter().map(|text| (*text).to_owned()).collect()))
}

/// A small SentencePiece vocabulary: three special tokens, all bytes, letters, and pieces with scores.
fn sentence_piece() -> Keys {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = [("▁a", -1.0), ("bc", -2.0), ("ab", -3.0), ("▁ab", -4.0), ("▁abc", -5.0), ("cc", -2.5)];
    tokens.extend(pieces.iter().map(|(piece, _)| (*piece).to_owned()));
    tokens.extend(["▁", "a", "b", "c", "é"].map(str::to_owned));
    let mut scores = vec![0.0; 259];
    scores.extend(pieces.iter().map(|&(_, score)| score));
    scores.extend([-100.0; 5]);
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    kinds.extend([1; 11]);
    let text: Vec<&str> = tokens.iter().map(String::as_str).collect();
    [
        ("model", "llama".into()),
        ("tokens", list(&text)),
        ("scores", GgufValue::Array(GgufArray::F32(scores))),
        ("token_type", GgufValue::Array(GgufArray::I32(kinds))),
        ("bos_token_id", 1.into()),
        ("eos_token_id", 2.into()),
        ("unknown_token_id", 0.into()),
    ]
    .map(|(key, value): (&str, GgufValue)| (format!("tokenizer.ggml.{key}"), value))
    .to_vec()
}

#[test]
fn sentence_piece_joins_by_score_and_falls_back_to_bytes() {
    let tokenizer = by_keys(sentence_piece());
    let pieces = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text, Special::Parse).unwrap();
        ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
    };
    // First `▁a`, then `bc`, then both.
    assert_eq!(pieces("abc"), ["▁abc"]);
    assert_eq!(pieces("bcab"), ["▁", "bc", "ab"]);
    assert_eq!(pieces("ab"), ["▁ab"]);
    assert_eq!(pieces("ccc"), ["▁", "cc", "c"], "of equal ones the leftmost");
    assert_eq!(pieces("é€"), ["▁", "é", "<0xE2>", "<0x82>", "<0xAC>"]);
    assert_eq!(pieces("a </s>"), ["▁a", "▁", "</s>"]);
    assert_eq!(tokenizer.encode("ab", Special::Add).unwrap()[0], 1);
    for text in ["abc ab", "é€ cc", "  a"] {
        let ids = tokenizer.encode(text, Special::Parse).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
    let special = tokenizer.special();
    assert_eq!((special.bos.as_deref(), special.eos.as_deref()), (Some("<s>"), Some("</s>")));
    // Written again, the order of the scores is that of the pieces.
    let again = by_keys(tokenizer.gguf_metadata(tokenizer.vocab_size(), None).unwrap());
    for text in ["abc ab", "é€ ccc", "  a", "bcabcc cab"] {
        assert_eq!(again.encode(text, Special::Add).unwrap(), tokenizer.encode(text, Special::Add).unwrap(), "{text}");
    }
}

#[test]
fn what_is_no_tokenizer_is_said() {
    let said = |change: &dyn Fn(&mut Keys)| {
        let mut metadata = sentence_piece();
        change(&mut metadata);
        Tokenizer::from_gguf(&Gguf::from_metadata(metadata)).unwrap_err().to_string()
    };
    let set = |key: &'static str, value: GgufValue| {
        move |all: &mut Keys| {
            all.retain(|(own, _)| own != key);
            all.push((key.to_owned(), value.clone()));
        }
    };
    assert!(said(&|all| all.clear()).contains("holds no tokenizer"));
    assert!(said(&set("tokenizer.ggml.model", "rwkv".into())).contains("'rwkv'; known are gpt2, llama, bert, t5"));
    assert!(said(&set("tokenizer.ggml.model", 3.into())).contains("must be a text"));
    let few = GgufValue::Array(GgufArray::F32(vec![0.0]));
    assert!(said(&set("tokenizer.ggml.scores", few)).contains("has 1 elements for 270 tokens"));
    assert!(said(&set("tokenizer.ggml.tokens", list(&[]))).contains("elements for 0 tokens"));
    let mut cut = sentence_piece();
    cut.retain(|(key, _)| key != "tokenizer.ggml.model");
    cut.push(("tokenizer.ggml.model".into(), "gpt2".into()));
    cut.push(("tokenizer.ggml.pre".into(), "kimi-k2".into()));
    let error = Tokenizer::from_gguf(&Gguf::from_metadata(cut)).unwrap_err().to_string();
    assert!(error.contains("'kimi-k2', which is not known; known are gpt-2"), "{error}");
}
