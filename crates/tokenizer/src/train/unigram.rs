//! Training a Unigram model, by the `tokenizers` library.
//!
//! The library's result depends on the number of threads (sums of floats in chunks) and on the random order of a hash
//! set; both are taken out here.

use super::count::count_general;
use super::{Progress, TrainConfig, file, load, too_small, utf8};
use crate::{Error, Result, Tokenizer};
use serde_json::{Value, json};
use std::collections::HashSet;
use tokenizers::AddedToken;
use tokenizers::models::unigram::{Unigram, UnigramTrainer};

/// The library gives up on very long words; text without spaces is cut to this many characters.
const LONGEST: usize = 128;
/// The library gives characters that no piece covers the lowest score of all, and each next one this much more.
const PENALTY_STEP: f64 = 0.0001;

pub(super) fn train(
    texts: impl Iterator<Item = Result<String>>,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer> {
    // A model of the special tokens alone, to count words with the normaliser and the split of the final one.
    let special: Vec<(&str, f64)> = config.special_tokens.iter().map(|t| (t.as_str(), 0.0)).collect();
    let empty = load(&file::unigram(model(&special, config), config), config)?;
    let counts = utf8(count_general(texts, &empty.inner, progress)?);
    let counts: Vec<(String, u64)> = counts.into_iter().filter(|(_, n)| *n >= config.min_frequency).collect();
    let alphabet: HashSet<char> = counts.iter().flat_map(|(word, _)| word.chars()).collect();
    too_small(config, config.special_tokens.len() + alphabet.len() + 1, "the characters of the text")?;
    progress(Progress::Learning { tokens: config.special_tokens.len(), of: config.vocab_size });
    let trained = learn(words(&counts), config)?;
    let mut pieces: Vec<(&str, f64)> = trained.iter().map(|(piece, score)| (piece.as_str(), *score)).collect();
    canonical(&mut pieces[special.len()..]);
    let tokenizer = load(&file::unigram(model(&pieces, config), config), config)?;
    progress(Progress::Learning { tokens: tokenizer.vocab_size(), of: config.vocab_size });
    Ok(tokenizer)
}

/// The words as the library wants them: of bounded length, and with counts whose sums fit its 32 bits.
fn words(counts: &[(String, u64)]) -> Vec<(String, u32)> {
    let chars: u64 = counts.iter().map(|(word, n)| word.chars().count() as u64 * n).sum();
    let scale = chars / u64::from(u32::MAX / 2) + 1;
    let mut words = Vec::with_capacity(counts.len());
    for (word, n) in counts {
        let n = u32::try_from(n.div_ceil(scale)).unwrap_or(u32::MAX / 2);
        let chars: Vec<char> = word.chars().collect();
        words.extend(chars.chunks(LONGEST).map(|part| (part.iter().collect(), n)));
    }
    words
}

fn learn(words: Vec<(String, u32)>, config: &TrainConfig) -> Result<Unigram> {
    let fail = |reason: String| Error::Setting(format!("unigram training failed: {reason}"));
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(u32::try_from(config.vocab_size).unwrap_or(u32::MAX))
        .special_tokens(config.special_tokens.iter().map(|t| AddedToken::from(t, true)).collect())
        .unk_token(Some(file::UNKNOWN.to_owned()))
        .build()
        .map_err(|e| fail(e.to_string()))?;
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| fail(e.to_string()))?;
    let mut model = Unigram::default();
    one_thread.install(|| trainer.do_train(words, &mut model)).map_err(|e| fail(e.to_string()))?;
    Ok(model)
}

/// Hands the scores of characters that no piece covers out again, by code point, and sorts by score.
fn canonical(pieces: &mut [(&str, f64)]) {
    let lowest = pieces.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let is_step = |score: f64| {
        let steps = (score - lowest) / PENALTY_STEP;
        (steps - steps.round()).abs() < 1e-6
    };
    let is_char = |piece: &str| piece.chars().nth(1).is_none();
    let mut uncovered: Vec<&mut (&str, f64)> = pieces.iter_mut().filter(|p| is_char(p.0) && is_step(p.1)).collect();
    let mut scores: Vec<f64> = uncovered.iter().map(|p| p.1).collect();
    let mut chars: Vec<&str> = uncovered.iter().map(|p| p.0).collect();
    scores.sort_by(f64::total_cmp);
    chars.sort_unstable();
    for (slot, piece) in uncovered.iter_mut().zip(chars.into_iter().zip(scores)) {
        **slot = piece;
    }
    pieces.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(b.0)));
}

fn model(pieces: &[(&str, f64)], config: &TrainConfig) -> Value {
    let unknown = config.special_tokens.iter().position(|t| t == file::UNKNOWN);
    json!({"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": false})
}
