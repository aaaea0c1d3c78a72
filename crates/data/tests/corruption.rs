//! From token shards to damaged texts in batches.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use loam_data::corrupt::continues_word;
use loam_data::seq2seq::{Pairs, Truncated};
use loam_data::source::{ReadOptions, TextSplit};
use loam_data::{Corrupted, Holdout, Infilling, MaskedLm, Seq2SeqConfig, Seq2SeqLoader, SpanCorruption};
use loam_data::{Part, PrepareConfig, TokenSet, prepare};
use loam_tokenizer::{Tokenizer, TrainConfig, TrainKind, train};

const SENTINELS: usize = 20;

fn tokenizer(kind: TrainKind, special: impl Iterator<Item = String>) -> Tokenizer {
    let mut config = TrainConfig { vocab_size: 400, ..TrainConfig::new(kind) };
    config.special_tokens.extend(special);
    train([Ok::<_, loam_tokenizer::Error>("abcdefghijklmnopqrstuvwxyz 0123456789".into())], &config, &mut |_| {})
        .unwrap()
}

fn t5() -> Tokenizer {
    tokenizer(TrainKind::Char, (0..SENTINELS).map(|i| format!("<extra_id_{i}>")))
}

/// Documents of 10 to 100 tokens and one of 2000, each ended by the end token.
fn corpus(tokenizer: &Tokenizer) -> Arc<TokenSet> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let text = |i: usize| format!("text {i} {}\n\n", "abc ".repeat(if i == 7 { 500 } else { 1 + i * 7 % 23 }));
    fs::write(&path, (0..60).map(text).collect::<String>()).unwrap();
    let config = PrepareConfig {
        sources: vec![path.to_str().unwrap().to_string()],
        read: ReadOptions { text_split: TextSplit::EmptyLine, ..ReadOptions::default() },
        holdout: Holdout::None,
        ..PrepareConfig::default()
    };
    let prepared = prepare(&config, tokenizer, dir.path(), &mut |_| {}).unwrap();
    Arc::new(TokenSet::open(&prepared.dir, Part::Train, None).unwrap())
}

fn config(tokenizer: &Tokenizer) -> Seq2SeqConfig {
    let eos = tokenizer.eos_id().unwrap();
    Seq2SeqConfig { batch_tokens: 384, source_len: 128, target_len: 64, seed: 9, decoder_start_token_id: 0, eos }
}

#[test]
fn every_document_is_damaged_anew_in_each_epoch_and_fits_its_rows() {
    let tokenizer = t5();
    let set = corpus(&tokenizer);
    let noise = SpanCorruption::new(&tokenizer).unwrap();
    assert_eq!(noise.sentinels.len(), SENTINELS);
    let corrupted = Corrupted::new(set.clone(), noise.clone(), 128, tokenizer.eos_id(), 9);
    let tokens = set.counts().tokens - set.counts().documents;
    let mut kept = 0;
    for index in 0..corrupted.count() {
        let pair = corrupted.pair(index, 0);
        assert_eq!([pair.source.len(), pair.target.len()], corrupted.sizes(index));
        assert_eq!(pair, corrupted.pair(index, 0));
        let ordinary = |token: &&u32| !noise.sentinels.contains(token) && **token != noise.eos;
        kept += pair.source.iter().chain(&pair.target).filter(ordinary).count() as u64;
    }
    assert_eq!(kept, tokens, "every token of the corpus is on one side");
    let epoch = |epoch| (0..corrupted.count()).map(|index| corrupted.pair(index, epoch)).collect::<Vec<_>>();
    assert_ne!(epoch(0), epoch(1));

    let loader = Seq2SeqLoader::new(corrupted, config(&tokenizer)).unwrap();
    assert_eq!(loader.truncated(), Truncated::default());
    assert_eq!(loader.batch(0).rows, 2);
    assert_ne!(loader.batch_in_order(0).source_tokens, loader.batch(0).source_tokens);
    assert_eq!(loader.batch_in_order(0), loader.batch_in_order(0), "measuring damages in one way");
}

#[test]
fn any_step_is_the_same_on_any_thread_and_without_the_steps_before_it() {
    let tokenizer = t5();
    let set = corpus(&tokenizer);
    let loader = || {
        let noise = SpanCorruption::new(&tokenizer).unwrap();
        let pairs = Corrupted::new(set.clone(), noise, 128, tokenizer.eos_id(), 9);
        Seq2SeqLoader::new(pairs, config(&tokenizer)).unwrap()
    };
    let first = loader();
    let all: Vec<_> = (0..30).map(|step| first.batch(step)).collect();
    let resumed = loader();
    assert_eq!(resumed.batch(29), all[29]);
    std::thread::scope(|scope| {
        for (step, expected) in all.iter().enumerate() {
            let (first, resumed) = (&first, &resumed);
            scope.spawn(move || assert_eq!(if step % 2 == 0 { first } else { resumed }.batch(step as u64), *expected));
        }
    });
}

#[test]
fn infilling_asks_for_the_whole_text() {
    let tokenizer = t5();
    let set = corpus(&tokenizer);
    let eos = tokenizer.eos_id().unwrap();
    let mask = tokenizer.token_to_id("<extra_id_0>").unwrap();
    let corrupted = Corrupted::new(set.clone(), Infilling::new(mask, None, eos), 64, Some(eos), 9);
    let targets: usize = (0..corrupted.count()).map(|index| corrupted.pair(index, 3).target.len() - 1).sum();
    assert_eq!(targets as u64, set.counts().tokens - set.counts().documents);
    let loader = Seq2SeqLoader::new(corrupted, config(&tokenizer)).unwrap();
    assert_eq!(loader.truncated(), Truncated::default());
}

#[test]
fn a_tokenizer_without_the_tokens_of_a_task_is_refused() {
    let plain = tokenizer(TrainKind::Char, std::iter::empty());
    let error = SpanCorruption::new(&plain).unwrap_err();
    assert_eq!(error.to_string(), "the tokenizer has no token <extra_id_0>, which span corruption needs");
    let error = MaskedLm::new(&plain, 0.15, false).unwrap_err();
    assert_eq!(error.to_string(), "the tokenizer has no token [MASK], which masked_lm needs");
    assert!(error.hint().is_some());
    assert!(continues_word(&plain).is_err());
}

#[test]
fn pieces_of_words_are_known_by_their_signs() {
    let tokenizer = tokenizer(TrainKind::WordPiece, std::iter::empty());
    let continues = continues_word(&tokenizer).unwrap();
    for (id, &continues) in continues.iter().enumerate() {
        assert_eq!(continues, tokenizer.id_to_token(id as u32).unwrap().starts_with("##"));
    }
    let masking = MaskedLm::new(&tokenizer, 0.15, true).unwrap();
    let ids = tokenizer.encode("abc 012 zyxw", loam_tokenizer::Special::Add).unwrap();
    let words = masking.words(&ids).unwrap();
    assert_eq!(words.iter().collect::<HashSet<_>>().len(), 5, "three words between [CLS] and [SEP]");
}
