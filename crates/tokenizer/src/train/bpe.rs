//! Learning merges: the most frequent pair of adjacent symbols becomes a symbol, again and again.
//!
//! The result equals that of the `tokenizers` library's trainer on the same words (a test compares them), ties and all:
//! of equally frequent pairs the one with the smaller ids merges first.

use super::{Progress, TrainConfig};
use crate::fast::bpe::key;
use rustc_hash::FxHashMap;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A vocabulary in the making.
#[derive(Debug)]
pub(super) struct Bpe {
    tokens: Vec<String>,
    ids: FxHashMap<String, u32>,
    /// What marks a piece that continues a word (`##` for WordPiece); it vanishes inside of a merged token.
    prefix: &'static str,
    merges: Vec<(u32, u32)>,
}

impl Bpe {
    pub(super) fn new(tokens: Vec<String>, prefix: &'static str) -> Self {
        let ids = tokens.iter().cloned().zip(0..).collect();
        Self { tokens, ids, prefix, merges: Vec::new() }
    }

    /// The id of a token, given one if it is new.
    pub(super) fn intern(&mut self, token: String) -> u32 {
        *self.ids.entry(token).or_insert_with_key(|token| {
            self.tokens.push(token.clone());
            self.tokens.len() as u32 - 1
        })
    }

    /// The symbols of a word: its characters, all but the first with the prefix.
    pub(super) fn pieces(&mut self, word: &str) -> Vec<u32> {
        let prefix = self.prefix;
        let chars = word.chars().enumerate();
        chars.map(|(i, c)| self.intern(if i == 0 { c.to_string() } else { format!("{prefix}{c}") })).collect()
    }

    /// Tokens by id.
    pub(super) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The merges by rank, as pairs of tokens. A pair that was merged twice keeps its later rank, as in the library.
    pub(super) fn merges(&self) -> Vec<[&str; 2]> {
        let last: FxHashMap<(u32, u32), usize> = self.merges.iter().enumerate().map(|(i, pair)| (*pair, i)).collect();
        let kept = self.merges.iter().enumerate().filter(|(i, pair)| last[*pair] == *i);
        kept.map(|(_, (l, r))| [self.tokens[*l as usize].as_str(), self.tokens[*r as usize].as_str()]).collect()
    }

    fn merge(&mut self, left: u32, right: u32) -> u32 {
        let tail = &self.tokens[right as usize];
        let tail = tail.strip_prefix(self.prefix).unwrap_or(tail);
        let token = format!("{}{tail}", self.tokens[left as usize]);
        self.merges.push((left, right));
        self.intern(token)
    }
}

/// A pair that may be merged next: how often it occurs, and in which words.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    count: i64,
    pair: Reverse<(u32, u32)>,
    words: Vec<u32>,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.count, self.pair).cmp(&(other.count, other.pair)).then_with(|| other.words.cmp(&self.words))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// All words in one array.
struct Words {
    symbols: Vec<u32>,
    /// Start, length and number of occurrences of each word.
    words: Vec<(usize, u32, i64)>,
}

/// How a merge changed a pair: by how much, and in which words it is new.
#[derive(Default)]
struct Change {
    count: i64,
    words: Vec<u32>,
}

type Changes = FxHashMap<u64, Change>;

/// Learns merges until the vocabulary is full or no pair is left.
pub(super) fn learn(
    mut bpe: Bpe,
    words: impl IntoIterator<Item = (Vec<u32>, u64)>,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Bpe {
    let mut words = Words::new(words);
    let mut counts: FxHashMap<u64, i64> = FxHashMap::default();
    let mut queue = BinaryHeap::new();
    apply(words.pairs(), &mut counts, &mut queue);
    let least = i64::try_from(config.min_frequency).unwrap_or(i64::MAX).max(1);
    while bpe.tokens.len() < config.vocab_size {
        let Some(mut top) = queue.pop() else { break };
        let Reverse((left, right)) = top.pair;
        let now = counts.get(&key(left, right)).copied().unwrap_or(0);
        if top.count != now {
            // Other merges have taken some of its occurrences since it was queued.
            top.count = now;
            queue.push(top);
            continue;
        }
        if now < least {
            break;
        }
        let new = bpe.merge(left, right);
        let mut changes = Changes::default();
        for word in top.words {
            words.merge(word, (left, right), new, &mut changes);
        }
        apply(changes, &mut counts, &mut queue);
        if bpe.merges.len().is_multiple_of(64) {
            progress(Progress::Learning { tokens: bpe.tokens.len(), of: config.vocab_size });
        }
    }
    progress(Progress::Learning { tokens: bpe.tokens.len(), of: config.vocab_size });
    bpe
}

/// Enters changed counts, and queues the pairs that have new places.
fn apply(changes: Changes, counts: &mut FxHashMap<u64, i64>, queue: &mut BinaryHeap<Candidate>) {
    for (pair, change) in changes {
        let count = counts.entry(pair).or_default();
        *count += change.count;
        if *count > 0 && !change.words.is_empty() {
            let pair = Reverse(((pair >> 32) as u32, pair as u32));
            queue.push(Candidate { count: *count, pair, words: change.words });
        }
    }
}

impl Change {
    fn add(&mut self, word: u32, n: i64) {
        self.count += n;
        // Words come one after the other, so a word seen before is the last one.
        if n > 0 && self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

impl Words {
    fn new(list: impl IntoIterator<Item = (Vec<u32>, u64)>) -> Self {
        let (mut symbols, mut words) = (Vec::new(), Vec::new());
        for (word, n) in list {
            words.push((symbols.len(), word.len() as u32, i64::try_from(n).unwrap_or(i64::MAX)));
            symbols.extend(word);
        }
        Self { symbols, words }
    }

    /// Every pair of every word.
    fn pairs(&self) -> Changes {
        let mut pairs = Changes::default();
        for (i, &(start, len, n)) in self.words.iter().enumerate() {
            for pair in self.symbols[start..start + len as usize].windows(2) {
                pairs.entry(key(pair[0], pair[1])).or_default().add(i as u32, n);
            }
        }
        pairs
    }

    /// Merges a pair in one word, left to right, and notes how its neighbours' pairs change.
    fn merge(&mut self, word: u32, (left, right): (u32, u32), new: u32, changes: &mut Changes) {
        let (start, len, n) = self.words[word as usize];
        let symbols = &mut self.symbols[start..start + len as usize];
        let mut add = |l: u32, r: u32, n: i64| changes.entry(key(l, r)).or_default().add(word, n);
        let (mut read, mut write) = (0, 0);
        while read < symbols.len() {
            if symbols[read] != left || symbols.get(read + 1) != Some(&right) {
                symbols[write] = symbols[read];
                (read, write) = (read + 1, write + 1);
                continue;
            }
            if write > 0 {
                add(symbols[write - 1], left, -n);
                add(symbols[write - 1], new, n);
            }
            if let Some(&after) = symbols.get(read + 2) {
                add(right, after, -n);
                add(new, after, n);
            }
            symbols[write] = new;
            (read, write) = (read + 2, write + 1);
        }
        self.words[word as usize].1 = write as u32;
    }
}
