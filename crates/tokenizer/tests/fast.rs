//! The fast ways of encoding and training give what the `tokenizers` library gives.
#![allow(clippy::unwrap_used, reason = "a failing helper of a test may panic")]

mod common;

use common::{Rng, nasty, prose};
use loam_tokenizer::{Error, Special, Tokenizer, TrainConfig, TrainKind, train};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

fn trained(config: &TrainConfig) -> Tokenizer {
    train([Ok::<_, Error>(prose(1, 1500))], config, &mut |_| {}).unwrap()
}

fn byte_bpe(vocab_size: usize) -> TrainConfig {
    TrainConfig { vocab_size, ..TrainConfig::default() }
}

fn json_of(tokenizer: &Tokenizer) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    tokenizer.save(&path).unwrap();
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The same vocabulary with an edit of the file.
fn edited(tokenizer: &Tokenizer, edit: impl FnOnce(&mut Value)) -> Tokenizer {
    let mut json = json_of(tokenizer);
    edit(&mut json);
    Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

fn gpt2_split(json: &mut Value) {
    json["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
}

/// One tokenizer of every kind that is encoded the fast way.
fn fast_tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let base = trained(&byte_bpe(700));
    let digits = trained(&TrainConfig { split_digits: true, ..byte_bpe(700) });
    let gpt2 = edited(&base, gpt2_split);
    let nfc = edited(&base, |json| json["normalizer"] = json!({"type": "NFC"}));
    let whole = edited(&base, |json| {
        json["model"]["ignore_merges"] = json!(true);
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        // Without some merges, words of the vocabulary can only be had whole.
        merges.truncate(200);
    });
    let around = edited(&base, |json| {
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
                "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
            }
        });
    });
    let chars = trained(&TrainConfig::new(TrainKind::Char));
    vec![
        ("gpt4 split", base),
        ("single digits", digits),
        ("gpt2 split", gpt2),
        ("NFC", nfc),
        ("whole words", whole),
        ("tokens around", around),
        ("characters", chars),
    ]
}

#[test]
fn fast_ids_equal_the_library_s_on_nasty_text() {
    let mut rng = Rng(11);
    for (name, tokenizer) in fast_tokenizers() {
        assert!(tokenizer.is_fast(), "{name} is not encoded the fast way");
        for _ in 0..1500 {
            let pieces = rng.below(24);
            let mut text = nasty(&mut rng, pieces);
            if rng.below(4) == 0 {
                text.insert_str(0, "<|im_start|>x<|endoftext|><|im_end|>\n");
            }
            for special in [Special::Add, Special::Parse, Special::Ignore] {
                let fast = tokenizer.encode(&text, special).unwrap();
                let general = tokenizer.encode_with_offsets(&text, special).unwrap().ids;
                assert_eq!(fast, general, "{name}, {special:?}: {text:?}");
            }
        }
    }
}

#[test]
fn long_texts_cut_for_the_threads_and_long_words_give_the_same_ids() {
    let mut rng = Rng(5);
    let mut text = prose(3, 20_000);
    for _ in 0..300 {
        let (at, piece) = (rng.below(text.len()), nasty(&mut rng, 12));
        if text.is_char_boundary(at) {
            text.insert_str(at, &piece);
        }
    }
    text.push_str(&"kalo".repeat(400));
    assert!(text.len() > 600_000, "{}", text.len());
    for (name, tokenizer) in fast_tokenizers() {
        let general = tokenizer.encode_with_offsets(&text, Special::Parse).unwrap().ids;
        assert!(tokenizer.encode(&text, Special::Parse).unwrap() == general, "{name}");
    }
}

#[test]
fn a_tokenizer_of_another_kind_is_left_to_the_library() {
    let base = trained(&byte_bpe(400));
    let edits: [fn(&mut Value); 5] = [
        |json| json["normalizer"] = json!({"type": "Lowercase"}),
        |json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\w+|\W+"),
        |json| json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true),
        |json| json["added_tokens"][0]["lstrip"] = json!(true),
        |json| json["model"]["fuse_unk"] = json!(true),
    ];
    for edit in edits {
        let other = edited(&base, edit);
        assert!(!other.is_fast());
        let text = "Two  WORDS <|endoftext|> end";
        let general = other.encode_with_offsets(text, Special::Parse).unwrap().ids;
        assert_eq!(other.encode(text, Special::Parse).unwrap(), general);
    }
}

#[test]
fn learned_merges_equal_those_of_the_library() {
    let texts: Vec<String> = (1..6).map(|seed| prose(seed, 300)).chain(["aaaa aaa aaaaaaa".into()]).collect();
    for (vocab_size, min_frequency) in [(300, 0), (900, 0), (5000, 3)] {
        let config = TrainConfig { min_frequency, ..byte_bpe(vocab_size) };
        let ours = train(texts.iter().cloned().map(Ok::<_, Error>), &config, &mut |_| {}).unwrap();
        let mut theirs = tokenizers::Tokenizer::new(BPE::default());
        let split: tokenizers::PreTokenizerWrapper =
            serde_json::from_value(json_of(&ours)["pre_tokenizer"].clone()).unwrap();
        theirs.with_pre_tokenizer(Some(split));
        let special = config.special_tokens.iter().map(|t| tokenizers::AddedToken::from(t, true)).collect();
        let mut trainer = tokenizers::models::TrainerWrapper::from(
            BpeTrainer::builder()
                .vocab_size(vocab_size)
                .min_frequency(min_frequency)
                .show_progress(false)
                .special_tokens(special)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .build(),
        );
        theirs.train(&mut trainer, texts.iter()).unwrap();
        let theirs: Value = serde_json::from_str(&theirs.to_string(false).unwrap()).unwrap();
        let ours = json_of(&ours);
        assert_eq!(ours["model"]["merges"], theirs["model"]["merges"]);
        assert_eq!(ours["model"]["vocab"], theirs["model"]["vocab"]);
    }
}

#[test]
fn one_thread_and_several_train_and_encode_the_same() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let kinds = [TrainKind::ByteBpe, TrainKind::WordPiece, TrainKind::Unigram, TrainKind::Char];
            let hashes = kinds.map(|kind| {
                let config = TrainConfig { vocab_size: 400, ..TrainConfig::new(kind) };
                let texts = (1..4).map(|seed| Ok::<_, Error>(prose(seed, 100)));
                train(texts, &config, &mut |_| {}).unwrap().content_hash().to_owned()
            });
            let lines: Vec<String> = prose(9, 500).lines().map(str::to_owned).collect();
            (hashes, trained(&byte_bpe(600)).encode_batch(&lines, Special::Parse).unwrap())
        })
    };
    let (one, three) = (run(1), run(3));
    assert_eq!(one.0, three.0);
    assert!(one.1 == three.1, "ids differ");
}
