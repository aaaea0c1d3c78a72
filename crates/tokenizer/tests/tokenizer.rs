//! Training, saving, loading, decoding, and each way of being given something unusable.
#![allow(clippy::unwrap_used, reason = "a failing helper of a test may panic")]

mod common;

use common::{Rng, nasty, prose};
use loam_tokenizer::{
    ChatTemplate, DirectoryOptions, Error, Progress, Special, Tokenizer, TrainConfig, TrainKind, save_directory, train,
    train_files,
};
use std::fs;

fn config(kind: TrainKind, vocab_size: usize) -> TrainConfig {
    TrainConfig { vocab_size, ..TrainConfig::new(kind) }
}

fn trained(kind: TrainKind, vocab_size: usize) -> Tokenizer {
    train([Ok::<_, Error>(prose(1, 1500))], &config(kind, vocab_size), &mut |_| {}).unwrap()
}

const KINDS: [TrainKind; 4] = [TrainKind::ByteBpe, TrainKind::WordPiece, TrainKind::Unigram, TrainKind::Char];

#[test]
fn byte_level_bpe_gives_every_text_back() {
    let tokenizer = trained(TrainKind::ByteBpe, 600);
    assert_eq!(tokenizer.vocab_size(), 600);
    let mut rng = Rng(3);
    for pieces in 0..200 {
        let text = nasty(&mut rng, pieces % 40);
        let ids = tokenizer.encode(&text, Special::Ignore).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert!(tokenizer.bytes_per_token(&prose(2, 50)).unwrap() > 2.0);
}

#[test]
fn characters_are_tokens_and_only_unseen_ones_are_unknown() {
    let tokenizer = train([Ok::<_, Error>("ab c\nd\t".to_owned())], &config(TrainKind::Char, 0), &mut |_| {}).unwrap();
    let special = 2;
    assert_eq!(tokenizer.vocab_size(), special + 7);
    let text = "a b\n\nc\td";
    let ids = tokenizer.encode(text, Special::Add).unwrap();
    assert_eq!(ids.len(), text.chars().count());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    let unknown = tokenizer.encode("aéb", Special::Add).unwrap();
    assert_eq!(unknown[1], tokenizer.unk_id().unwrap());
    assert!(unknown[0] != unknown[1] && unknown[2] != unknown[1]);
}

#[test]
fn word_piece_lowers_adds_its_tokens_and_joins_words_again() {
    let tokenizer = trained(TrainKind::WordPiece, 500);
    assert_eq!(tokenizer.vocab_size(), 500);
    let ids = tokenizer.encode("The FOX kalo", Special::Add).unwrap();
    let ends = [ids[0], ids[ids.len() - 1]].map(|id| tokenizer.id_to_token(id).unwrap());
    assert_eq!(ends, ["[CLS]", "[SEP]"]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the fox kalo");
    assert!(tokenizer.vocabulary().iter().any(|row| row.token.starts_with("##")));
}

#[test]
fn unigram_gives_words_back_with_their_spaces() {
    let tokenizer = trained(TrainKind::Unigram, 400);
    assert!(tokenizer.vocab_size() <= 400 && tokenizer.vocab_size() > 200);
    let text = "The fox doesn't see 12 boats";
    let ids = tokenizer.encode(text, Special::Parse).unwrap();
    assert!(ids.len() < text.len());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    assert!(tokenizer.vocabulary().iter().all(|row| row.score.is_some()));
}

#[test]
fn texts_end_with_the_end_token_where_a_configuration_wants_it() {
    for kind in [TrainKind::ByteBpe, TrainKind::Unigram, TrainKind::Char] {
        let config = TrainConfig { ends_texts: true, ..config(kind, 400) };
        let tokenizer = train([Ok::<_, Error>(prose(1, 1500))], &config, &mut |_| {}).unwrap();
        let (bare, full) = (Special::Ignore, Special::Add);
        let mut ids = tokenizer.encode("the fox", bare).unwrap();
        ids.push(tokenizer.eos_id().unwrap());
        assert_eq!(tokenizer.encode("the fox", full).unwrap(), ids, "{kind:?}");
    }
}

#[test]
fn a_saved_tokenizer_is_the_same_when_opened_and_saved_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    for kind in KINDS {
        let tokenizer = trained(kind, 500);
        tokenizer.save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let opened = Tokenizer::open(&path).unwrap();
        assert_eq!(opened.content_hash(), tokenizer.content_hash(), "{kind:?}");
        opened.save(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        let text = prose(4, 20);
        assert_eq!(opened.encode(&text, Special::Add).unwrap(), tokenizer.encode(&text, Special::Add).unwrap());
    }
}

#[test]
fn a_stream_gives_the_text_of_all_ids_and_never_half_a_character() {
    let mut rng = Rng(8);
    for kind in [TrainKind::ByteBpe, TrainKind::Unigram, TrainKind::Char, TrainKind::WordPiece] {
        let tokenizer = trained(kind, 400);
        for round in 0..100 {
            let text =
                if kind == TrainKind::ByteBpe { nasty(&mut rng, round % 30) } else { prose(round as u64 + 1, 2) };
            let ids = tokenizer.encode(&text, Special::Parse).unwrap();
            let mut stream = tokenizer.decode_stream(true);
            let mut streamed = String::new();
            for id in &ids {
                let piece = stream.step(*id);
                assert!(piece.as_deref().is_none_or(|p| !p.is_empty() && !p.contains('\u{fffd}')), "{text:?}");
                streamed.extend(piece);
            }
            streamed.extend(stream.finish());
            assert_eq!(streamed, tokenizer.decode(&ids, true).unwrap(), "{kind:?} {text:?}");
        }
    }
}

#[test]
fn a_stream_waits_for_a_character_that_begins_in_the_token_which_ends_another() {
    // Merged across two characters, as byte-level BPE does in scripts without spaces.
    let text = "\u{cde10}狒".repeat(40) + &prose(1, 50);
    let tokenizer = train([Ok::<_, Error>(text)], &config(TrainKind::ByteBpe, 300), &mut |_| {}).unwrap();
    let bytes = tokenizer.token_bytes().unwrap();
    let id = |wanted: &[u8]| bytes.iter().position(|bytes| bytes.as_deref() == Some(wanted)).map(|id| id as u32);
    let whole = "\u{cde10}狒".as_bytes();
    let (start, end) =
        (1..4).flat_map(|a| (5..7).map(move |b| (a, b))).find(|&(a, b)| id(&whole[a..b]).is_some()).unwrap();
    let ids: Vec<u32> = whole[..start]
        .iter()
        .map(std::slice::from_ref)
        .chain([&whole[start..end]])
        .chain(whole[end..].iter().map(std::slice::from_ref))
        .map(|bytes| id(bytes).unwrap())
        .collect();
    let mut stream = tokenizer.decode_stream(true);
    let mut streamed: String = ids.iter().filter_map(|&id| stream.step(id)).collect();
    streamed.extend(stream.finish());
    assert_eq!(streamed, "\u{cde10}狒", "{ids:?}");
}

#[test]
fn a_stream_survives_bytes_that_are_no_text_and_ids_that_are_no_tokens() {
    let tokenizer = trained(TrainKind::ByteBpe, 300);
    let emoji = tokenizer.encode("😀", Special::Ignore).unwrap();
    let mut stream = tokenizer.decode_stream(true);
    let mut text = String::new();
    text.extend(stream.step(emoji[0]));
    for id in tokenizer.encode("ok then", Special::Ignore).unwrap() {
        text.extend(stream.step(id));
    }
    text.extend(stream.step(999_999));
    text.extend(stream.finish());
    assert_eq!(text, "\u{fffd}ok then");
    let mut half = tokenizer.decode_stream(true);
    assert_eq!(half.step(emoji[0]), None);
    assert_eq!(half.finish().as_deref(), Some("\u{fffd}"));
}

#[test]
fn special_tokens_are_recognised_or_ignored_as_asked() {
    let tokenizer = trained(TrainKind::ByteBpe, 400);
    let text = "hi<|im_end|>";
    let end = tokenizer.token_to_id("<|im_end|>").unwrap();
    assert_eq!(tokenizer.encode(text, Special::Parse).unwrap().last(), Some(&end));
    let plain = tokenizer.encode(text, Special::Ignore).unwrap();
    assert!(!plain.contains(&end));
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
    let ids = tokenizer.encode(text, Special::Parse).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hi");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.stop_ids(), [0, end]);
    assert!(tokenizer.is_special(end) && !tokenizer.is_special(plain[0]));
}

#[test]
fn a_split_covers_the_text_and_merges_make_the_vocabulary() {
    let tokenizer = trained(TrainKind::ByteBpe, 500);
    let text = "The fox 小猫 12";
    let pieces = tokenizer.split(text).unwrap();
    assert_eq!((pieces[0].start, pieces[pieces.len() - 1].end), (0, text.len()));
    assert!(pieces.windows(2).all(|w| w[1].start <= w[0].end && w[0].start <= w[1].start));
    let merges = tokenizer.merges();
    let rows = tokenizer.vocabulary();
    assert_eq!((rows.len(), merges.len()), (500, 500 - 256 - 3));
    assert_eq!(rows[259].merge, Some(0));
    assert_eq!(rows[259].token, format!("{}{}", merges[0].0, merges[0].1));
    assert!(rows[0].special && rows[0].merge.is_none());
    assert_eq!(tokenizer.model_kind(), "BPE");
}

#[test]
fn a_directory_keeps_roles_template_and_stop_ids() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = trained(TrainKind::ByteBpe, 400);
    let template = ChatTemplate::chatml();
    let options = DirectoryOptions { template: Some(&template), model_max_length: Some(512) };
    save_directory(dir.path(), &tokenizer, options).unwrap();
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [0, 2]}"#).unwrap();
    let opened = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(opened.special().eos.as_deref(), Some("<|endoftext|>"));
    assert_eq!((opened.eos_id(), opened.bos_id(), opened.stop_ids()), (Some(0), None, vec![0, 2]));
    assert_eq!(opened.content_hash(), tokenizer.content_hash());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("chat_template.jinja"), template.source());
    let saved: serde_json::Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
    assert_eq!(saved["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(saved["model_max_length"], 512);
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"eos_token": {"content": "<|im_end|>"}, "pad_token": null}"#,
    )
    .unwrap();
    let other = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((other.eos_id(), other.pad_id()), (Some(2), None));
}

#[test]
fn files_are_read_in_pieces_with_the_result_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let part = prose(6, 4000);
    let text = part.repeat((10 << 20) / part.len());
    fs::write(&path, &text).unwrap();
    let config = config(TrainKind::ByteBpe, 700);
    let mut seen = Vec::new();
    let from_file = train_files(&[&path], &config, &mut |p| seen.push(p)).unwrap();
    let from_text = train([Ok::<_, Error>(text.clone())], &config, &mut |_| {}).unwrap();
    assert_eq!(from_file.content_hash(), from_text.content_hash());
    assert!(seen.contains(&Progress::Reading { bytes: text.len() as u64 }));
    assert!(seen.contains(&Progress::Learning { tokens: 700, of: 700 }));
}

#[test]
fn text_that_is_missing_empty_or_not_utf8_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.txt");
    let attempt = |kind| train_files(&[&path], &config(kind, 400), &mut |_| {}).unwrap_err();
    assert!(attempt(TrainKind::ByteBpe).to_string().contains("bad.txt does not exist"));
    fs::write(&path, "").unwrap();
    for kind in KINDS {
        assert!(matches!(attempt(kind), Error::EmptyText), "{kind:?}");
    }
    fs::write(&path, b"fine\n\xff\xfe").unwrap();
    let error = attempt(TrainKind::Char);
    assert!(matches!(error, Error::NotUtf8 { offset: 5, .. }), "{error}");
    fs::write(&path, b"cut short \xe5\xb0").unwrap();
    assert!(matches!(attempt(TrainKind::ByteBpe), Error::NotUtf8 { offset: 10, .. }));
    let failing = [Ok("x".to_owned()), Err("the disk went away")];
    let error = train(failing, &config(TrainKind::ByteBpe, 400), &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the training text: the disk went away");
}

#[test]
fn settings_without_meaning_are_refused() {
    let attempt = |config: TrainConfig| {
        let error = train([Ok::<_, Error>(prose(1, 100))], &config, &mut |_| {}).unwrap_err();
        (error.to_string(), error.hint())
    };
    let (message, hint) = attempt(config(TrainKind::ByteBpe, 100));
    assert!(message.contains("vocab_size 100 is too small") && message.contains("at least 259") && hint.is_some());
    assert!(attempt(config(TrainKind::WordPiece, 20)).0.contains("too small"));
    assert!(attempt(config(TrainKind::Unigram, 20)).0.contains("too small"));
    let twice = TrainConfig { special_tokens: vec!["<a>".into(), "<a>".into()], ..config(TrainKind::ByteBpe, 400) };
    assert!(attempt(twice).0.contains("'<a>' is given twice"));
    let empty = TrainConfig { special_tokens: vec![String::new()], ..config(TrainKind::ByteBpe, 400) };
    assert!(attempt(empty).0.contains("special token is empty"));
}

#[test]
fn damaged_tokenizer_files_are_refused_and_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let tokenizer = trained(TrainKind::ByteBpe, 300);
    tokenizer.save(&path).unwrap();
    let good = fs::read(&path).unwrap();
    let message = |bytes: &[u8]| Tokenizer::from_bytes(bytes).unwrap_err().to_string();
    assert!(message(b"").contains("not a valid tokenizer"));
    assert!(message(b"{}").contains("no object 'model'"));
    assert!(message(b"\xff").contains("not UTF-8"));
    assert!(message(br#"{"model": {"type": "Mystery", "vocab": {}}}"#).contains("Mystery"));
    let mut rng = Rng(2);
    for _ in 0..200 {
        assert!(Tokenizer::from_bytes(&good[..rng.below(good.len())]).is_err());
    }
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..3 {
            let at = rng.below(bytes.len());
            bytes[at] = b"0\"[{},:a\x00\xff"[rng.below(10)];
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes) {
            let _ = tokenizer.encode("some text 123", Special::Add);
        }
    }
    let missing = Tokenizer::open(dir.path().join("absent.json")).unwrap_err();
    assert!(missing.to_string().contains("absent.json does not exist") && missing.hint().is_some());
    let unknown = tokenizer.decode(&[5, 100_000], false).unwrap_err();
    assert!(unknown.to_string().contains("token id 100000 is not in the vocabulary of 300"));
}
