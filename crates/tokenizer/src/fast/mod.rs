//! The fast way to encode: for the common kinds of tokenizer, ids identical to the library's at many times its speed.
//!
//! Two kinds are covered: byte-level BPE with one of the two usual splits (GPT-2, and GPT-4 as used by Llama 3 and
//! Qwen), and character-level. Words repeat, so the ids of each word are computed once and kept. Everything else goes
//! through the `tokenizers` library.

pub(crate) mod bpe;
mod file;
pub(crate) mod scan;
pub(crate) mod short;

use crate::Special;
use aho_corasick::{AhoCorasick, MatchKind};
use bpe::Merges;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use scan::Scanner;
use std::sync::{Mutex, PoisonError};
use unicode_normalization::{IsNormalized, is_nfc_quick};

/// Texts longer than this are cut and encoded in parallel.
const PART: usize = 1 << 18;
/// Longer words are rare and seldom repeat: not kept.
const LONGEST_KEPT: usize = 64;
/// A cache that has grown to this many words starts again.
const MOST_KEPT: usize = 1 << 20;

/// An encoder whose ids are identical to those of the general one.
#[derive(Debug)]
pub(crate) struct FastEncoder {
    kind: Kind,
    /// Whether the tokenizer normalises to NFC; only text that is normal already is handled here.
    nfc: bool,
    /// Every added token, and those that are not special (for text in which special ones mean nothing).
    added: Option<AddedTokens>,
    added_plain: Option<AddedTokens>,
    /// Added around a text by the post-processor.
    before: Vec<u32>,
    after: Vec<u32>,
    caches: Mutex<Vec<Cache>>,
}

#[derive(Debug)]
enum Kind {
    ByteBpe {
        scanner: Scanner,
        /// The id of each byte.
        bytes: Box<[u32; 256]>,
        merges: Merges,
        /// For tokenizers that take a word that is in the vocabulary as it is, whatever the merges say.
        whole_words: Option<FxHashMap<Box<[u8]>, u32>>,
    },
    Chars {
        ids: FxHashMap<char, u32>,
        unknown: Option<u32>,
    },
}

/// Literal tokens that are found in a text before anything else.
#[derive(Debug)]
struct AddedTokens {
    matcher: AhoCorasick,
    ids: Vec<u32>,
}

/// Ids of words seen before.
#[derive(Debug, Default)]
struct Cache {
    short: FxHashMap<u128, Ids>,
    long: FxHashMap<Box<[u8]>, Box<[u32]>>,
    symbols: Vec<u32>,
}

/// The ids of a short word: most have so few that they fit into the table itself.
#[derive(Debug)]
enum Ids {
    Few(u8, [u32; 3]),
    Many(Box<[u32]>),
}

impl Ids {
    fn new(ids: &[u32]) -> Self {
        let mut few = [0; 3];
        match few.get_mut(..ids.len()) {
            Some(slots) => {
                slots.copy_from_slice(ids);
                Self::Few(ids.len() as u8, few)
            }
            None => Self::Many(ids.into()),
        }
    }

    fn as_slice(&self) -> &[u32] {
        match self {
            Self::Few(len, ids) => &ids[..usize::from(*len)],
            Self::Many(ids) => ids,
        }
    }
}

impl AddedTokens {
    fn new(tokens: &[(String, u32)]) -> Option<Self> {
        if tokens.is_empty() {
            return None;
        }
        let texts = tokens.iter().map(|(text, _)| text);
        let matcher = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok()?;
        Some(Self { matcher, ids: tokens.iter().map(|(_, id)| *id).collect() })
    }
}

impl FastEncoder {
    /// The ids of a text, or `None` where only the general encoder knows.
    pub(crate) fn encode(&self, text: &str, special: Special) -> Option<Vec<u32>> {
        if self.nfc && !text.is_ascii() && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            return None;
        }
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        if special == Special::Add {
            ids.extend_from_slice(&self.before);
        }
        let added = if special == Special::Ignore { &self.added_plain } else { &self.added };
        let mut start = 0;
        if let Some(added) = added {
            for found in added.matcher.find_iter(text) {
                self.segment(&text[start..found.start()], &mut ids);
                ids.push(added.ids[found.pattern().as_usize()]);
                start = found.end();
            }
        }
        self.segment(&text[start..], &mut ids);
        if special == Special::Add {
            ids.extend_from_slice(&self.after);
        }
        Some(ids)
    }

    /// Encodes text without added tokens, in parallel if it is long.
    fn segment(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        if text.len() <= PART {
            return self.with_cache(|cache| self.part(text, cache, ids));
        }
        let parts: Vec<Vec<u32>> = scan::parts(text, PART)
            .into_par_iter()
            .map(|part| {
                let mut ids = Vec::with_capacity(part.len() / 4);
                self.with_cache(|cache| self.part(part, cache, &mut ids));
                ids
            })
            .collect();
        parts.iter().for_each(|part| ids.extend_from_slice(part));
    }

    /// Lends a cache out of a pool, so that its words outlive the call and no two threads share one.
    fn with_cache<T>(&self, work: impl FnOnce(&mut Cache) -> T) -> T {
        let pool = || self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = pool().pop().unwrap_or_default();
        let result = work(&mut cache);
        pool().push(cache);
        result
    }

    fn part(&self, text: &str, cache: &mut Cache, ids: &mut Vec<u32>) {
        match &self.kind {
            Kind::Chars { ids: known, unknown } => {
                ids.extend(text.chars().filter_map(|c| known.get(&c).copied().or(*unknown)));
            }
            Kind::ByteBpe { scanner, .. } => scanner.words(text, |word| self.word(word.as_bytes(), cache, ids)),
        }
    }

    fn word(&self, word: &[u8], cache: &mut Cache, ids: &mut Vec<u32>) {
        let packed = short::pack(word);
        let kept = match packed {
            Some(packed) => cache.short.get(&packed).map(Ids::as_slice),
            None => cache.long.get(word).map(AsRef::as_ref),
        };
        if let Some(kept) = kept {
            return ids.extend_from_slice(kept);
        }
        self.merge(word, &mut cache.symbols);
        ids.extend_from_slice(&cache.symbols);
        if cache.short.len() + cache.long.len() >= MOST_KEPT {
            cache.short.clear();
            cache.long.clear();
        }
        match packed {
            Some(packed) => drop(cache.short.insert(packed, Ids::new(&cache.symbols))),
            None if word.len() <= LONGEST_KEPT => drop(cache.long.insert(word.into(), cache.symbols.as_slice().into())),
            None => {}
        }
    }

    /// The ids of a word not seen before.
    fn merge(&self, word: &[u8], symbols: &mut Vec<u32>) {
        let Kind::ByteBpe { bytes, merges, whole_words, .. } = &self.kind else { return };
        symbols.clear();
        match whole_words.as_ref().and_then(|w| w.get(word)) {
            Some(&id) => symbols.push(id),
            None => {
                symbols.extend(word.iter().map(|b| bytes[usize::from(*b)]));
                merges.apply(symbols);
            }
        }
    }
}
