//! Removal of repeated documents: exactly equal ones by hash, nearly equal ones by MinHash.
//!
//! The first of several equal documents stays, in the order of the sources, so the result does not depend on threads.
//! Memory holds one hash per document, or one signature of 448 bytes with the default bands and rows; never a text.

use std::collections::HashSet;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::hash::hash64;
use crate::source::{BLOCK_BYTES, Chunk, ReadOptions, Source};
use crate::{Error, Result};

/// Which repeated documents to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dedup {
    /// None.
    #[default]
    Off,
    /// Those equal to an earlier document, byte for byte.
    Exact,
    /// Also those that share most of their word sequences with an earlier document.
    Near(MinHash),
}

/// MinHash with banding: two documents whose sets of `shingle`-word sequences have similarity `s` meet in a band with
/// probability `1 - (1 - s^rows)^bands`; with 14 bands of 8 rows that is one half at `s` = 0.72.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinHash {
    /// Words per shingle.
    pub shingle: usize,
    /// Bands.
    pub bands: usize,
    /// Hashes per band.
    pub rows: usize,
}

impl Default for MinHash {
    fn default() -> Self {
        Self { shingle: 5, bands: 14, rows: 8 }
    }
}

/// What deduplication found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DedupReport {
    /// Documents seen.
    pub documents: u64,
    /// Of those, exact repetitions.
    pub exact: u64,
    /// Of those, near repetitions that are not exact ones.
    pub near: u64,
}

/// Which documents of a row of sources stay.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    removed: Vec<bool>,
    /// The count of what was removed.
    pub report: DedupReport,
}

impl Kept {
    /// True if document `index`, counted over all sources, stays.
    pub fn keeps(&self, index: usize) -> bool {
        !self.removed.get(index).copied().unwrap_or(false)
    }
}

/// Bytes of text that are hashed in parallel before they are compared in order.
const BATCH_BYTES: usize = 16 * BLOCK_BYTES;

/// Reads all documents once and says which of them stay.
pub fn find_repeated(sources: &[Source], options: &ReadOptions, dedup: Dedup) -> Result<Kept> {
    if let Dedup::Near(min_hash) = dedup {
        min_hash.validate()?;
    }
    let mut finder = Finder::new(dedup);
    for source in sources {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for chunk in source.chunks(options)? {
            let chunk = chunk?;
            bytes += chunk.text.len();
            batch.push(chunk);
            if bytes >= BATCH_BYTES {
                finder.add(&batch);
                batch.clear();
                bytes = 0;
            }
        }
        finder.add(&batch);
    }
    Ok(finder.kept)
}

impl MinHash {
    fn validate(&self) -> Result<()> {
        for (key, value) in [("dedup.shingle", self.shingle), ("dedup.bands", self.bands), ("dedup.rows", self.rows)] {
            if !(1..=256).contains(&value) {
                return Err(Error::Setting { key, found: value.to_string(), expected: "a number from 1 to 256" });
            }
        }
        Ok(())
    }

    /// The smallest value of each hash function over all shingles; a text shorter than a shingle is one shingle.
    fn signature(&self, text: &str) -> Vec<u32> {
        let words = word_hashes(text);
        let width = self.shingle.min(words.len()).max(1);
        let mut smallest = vec![u32::MAX; self.bands * self.rows];
        for shingle in words.windows(width) {
            let shingle = shingle.iter().fold(0_u64, |hash, word| (hash.rotate_left(23) ^ word).wrapping_mul(ODD));
            for (i, smallest) in smallest.iter_mut().enumerate() {
                let hash = ((shingle ^ (shingle >> 29)).wrapping_mul(ODD.wrapping_mul(2 * i as u64 + 1)) >> 32) as u32;
                *smallest = hash.min(*smallest);
            }
        }
        smallest
    }
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes of the words, without case and punctuation; a character of a script without spaces is a word.
fn word_hashes(text: &str) -> Vec<u64> {
    let mut hashes = Vec::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        let stands_alone = matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x9fff | 0x20000..=0x3ffff);
        if c.is_alphanumeric() && !stands_alone {
            word.extend(c.to_lowercase());
            continue;
        }
        if !word.is_empty() {
            hashes.push(hash64(word.as_bytes()));
            word.clear();
        }
        if stands_alone {
            hashes.push(hash64(c.encode_utf8(&mut [0; 4]).as_bytes()));
        }
    }
    hashes
}

/// Compares documents in order.
struct Finder {
    dedup: Dedup,
    kept: Kept,
    exact: HashSet<u128>,
    /// Per band: the hash of its rows, and the earlier documents that stay and have it.
    bands: Vec<HashSet<u64>>,
    open: Fingerprint,
}

/// What a document, or the part of it that was read, is compared by.
#[derive(Default)]
struct Fingerprint {
    chunks: Vec<u8>,
    signature: Vec<u32>,
}

impl Finder {
    fn new(dedup: Dedup) -> Self {
        let bands = if let Dedup::Near(min_hash) = dedup { min_hash.bands } else { 0 };
        Self {
            dedup,
            kept: Kept::default(),
            exact: HashSet::new(),
            bands: vec![HashSet::new(); bands],
            open: Fingerprint::default(),
        }
    }

    fn add(&mut self, chunks: &[Chunk]) {
        let dedup = self.dedup;
        let prints: Vec<(u128, Vec<u32>)> = chunks
            .par_iter()
            .map(|chunk| {
                let signature =
                    if let Dedup::Near(min_hash) = dedup { min_hash.signature(&chunk.text) } else { Vec::new() };
                (XxHash3_128::oneshot(chunk.text.as_bytes()), signature)
            })
            .collect();
        for (chunk, (exact, signature)) in chunks.iter().zip(prints) {
            self.open.chunks.extend_from_slice(&exact.to_le_bytes());
            if self.open.signature.is_empty() {
                self.open.signature = signature;
            } else {
                self.open.signature.iter_mut().zip(signature).for_each(|(all, part)| *all = part.min(*all));
            }
            if chunk.ends_document {
                self.decide();
            }
        }
    }

    fn decide(&mut self) {
        let print = std::mem::take(&mut self.open);
        let exact = self.dedup != Dedup::Off && !self.exact.insert(XxHash3_128::oneshot(&print.chunks));
        let near = !exact && self.is_near(&print.signature);
        self.kept.report.documents += 1;
        self.kept.report.exact += u64::from(exact);
        self.kept.report.near += u64::from(near);
        self.kept.removed.push(exact || near);
    }

    /// True if an earlier document that stays has an equal band; else the bands are remembered.
    fn is_near(&mut self, signature: &[u32]) -> bool {
        let Dedup::Near(min_hash) = self.dedup else { return false };
        let hashes: Vec<u64> = signature
            .chunks(min_hash.rows)
            .map(|rows| hash64(&rows.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<u8>>()))
            .collect();
        let near = self.bands.iter().zip(&hashes).any(|(band, hash)| band.contains(hash));
        if !near {
            self.bands.iter_mut().zip(hashes).for_each(|(band, hash)| {
                band.insert(hash);
            });
        }
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LONG: &str = "the old clock in the hall strikes nine while the cat sleeps on the warm stone under the table and \
        the rain runs down the window of the small house near the river where nobody has lived for many quiet years";

    fn kept(texts: &[&str], dedup: Dedup) -> (Vec<bool>, DedupReport) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.jsonl");
        let lines: Vec<String> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        let sources = crate::source::find(&[path.to_str().unwrap()]).unwrap();
        let kept = find_repeated(&sources, &ReadOptions::default(), dedup).unwrap();
        ((0..texts.len()).map(|i| kept.keeps(i)).collect(), kept.report)
    }

    #[test]
    fn an_exact_repetition_is_removed_and_the_first_stays() {
        let (keeps, report) = kept(&["one", "two", "one", "One"], Dedup::Exact);
        assert_eq!(keeps, [true, true, false, true]);
        assert_eq!(report, DedupReport { documents: 4, exact: 1, near: 0 });
        assert_eq!(kept(&["one", "one"], Dedup::Off).0, [true, true]);
    }

    #[test]
    fn a_nearly_equal_text_is_removed_and_a_different_one_stays() {
        let changed = LONG.replace("years", "days").to_uppercase();
        let other = LONG.split(' ').rev().collect::<Vec<_>>().join(" ");
        let (keeps, report) = kept(&[LONG, &changed, &other, LONG], Dedup::Near(MinHash::default()));
        assert_eq!(keeps, [true, false, true, false]);
        assert_eq!((report.exact, report.near), (1, 1));
    }

    #[test]
    fn chinese_texts_are_compared_by_character() {
        let text =
            "从前有一座山，山里有一座庙，庙里有一个老和尚在给小和尚讲故事，故事讲的是从前的事情，大家都很喜欢听。";
        let (keeps, _) =
            kept(&[text, &text.replace("喜欢听。", "喜欢听！"), "今天天气很好。"], Dedup::Near(MinHash::default()));
        assert_eq!(keeps, [true, false, true]);
    }

    #[test]
    fn the_share_of_equal_rows_estimates_the_similarity() {
        let hash = MinHash { shingle: 1, bands: 32, rows: 8 };
        let text = |range: std::ops::Range<u32>| range.map(|i| format!("w{i} ")).collect::<String>();
        let (a, b) = (hash.signature(&text(0..300)), hash.signature(&text(100..400)));
        let equal = a.iter().zip(&b).filter(|(x, y)| x == y).count() as f64 / a.len() as f64;
        // Jaccard similarity 200 / 400; the estimate's standard deviation is 0.03.
        assert!((equal - 0.5).abs() < 0.13, "{equal}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let error = find_repeated(&[], &ReadOptions::default(), Dedup::Near(MinHash { rows: 0, ..MinHash::default() }));
        assert!(error.unwrap_err().to_string().contains("dedup.rows = 0"));
    }
}
