//! Counting the words of a text of any size, in parallel.

use super::Progress;
use crate::fast::scan::{self, Scanner};
use crate::fast::short;
use crate::{Error, Result};
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

/// Words and how often each occurs, sorted by word so that nothing depends on a hash.
pub(super) type Counts = Vec<(Box<[u8]>, u64)>;

/// Counts in the making.
#[derive(Default)]
struct Map {
    short: FxHashMap<u128, u64>,
    long: FxHashMap<Box<[u8]>, u64>,
}

impl Map {
    fn add(&mut self, word: &[u8], n: u64) {
        if let Some(packed) = short::pack(word) {
            *self.short.entry(packed).or_default() += n;
        } else if let Some(count) = self.long.get_mut(word) {
            *count += n;
        } else {
            self.long.insert(word.into(), n);
        }
    }

    fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// The counts of both; the larger one is kept and the other entered into it.
    fn merge(mut self, mut other: Self) -> Self {
        if self.len() < other.len() {
            std::mem::swap(&mut self, &mut other);
        }
        for (word, n) in other.short {
            *self.short.entry(word).or_default() += n;
        }
        for (word, n) in other.long {
            *self.long.entry(word).or_default() += n;
        }
        self
    }

    fn sorted(self) -> Counts {
        let mut counts: Counts = self.short.into_iter().map(|(word, n)| (short::unpack(word), n)).collect();
        counts.extend(self.long);
        counts.par_sort_unstable();
        counts
    }
}

/// Text is gathered to this size before the threads share it out.
const BATCH: usize = 64 << 20;
/// What one thread takes at a time.
const PART: usize = 1 << 20;
/// A file is read in pieces of about this size.
const CHUNK: usize = 8 << 20;

/// Counts the words that a scanner cuts.
pub(super) fn count(
    texts: impl Iterator<Item = Result<String>>,
    scanner: Scanner,
    progress: &mut dyn FnMut(Progress),
) -> Result<Counts> {
    gather(texts, progress, |part, map| {
        scanner.words(part, |word| map.add(word.as_bytes(), 1));
        Ok(())
    })
}

/// Counts the words that a tokenizer's own normaliser and pre-tokenizer cut.
pub(super) fn count_general(
    texts: impl Iterator<Item = Result<String>>,
    tokenizer: &tokenizers::Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<Counts> {
    let fail = |e: tokenizers::Error| Error::Encode(e.to_string());
    gather(texts, progress, |part, map| {
        // By lines, because the library keeps a record of every character of what it is given.
        for line in part.split_inclusive('\n') {
            let mut text = NormalizedString::from(line);
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut text).map_err(fail)?;
            }
            let mut words = PreTokenizedString::from(text);
            if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut words).map_err(fail)?;
            }
            for (word, _, _) in words.get_splits(OffsetReferential::Original, OffsetType::Byte) {
                map.add(word.as_bytes(), 1);
            }
        }
        Ok(())
    })
}

/// Counts characters, in the order of their code points.
pub(super) fn count_chars(
    texts: impl Iterator<Item = Result<String>>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<(char, u64)>> {
    let counts = gather(texts, progress, |part, map| {
        let mut chars: FxHashMap<char, u64> = FxHashMap::default();
        part.chars().for_each(|c| *chars.entry(c).or_default() += 1);
        chars.into_iter().for_each(|(c, n)| map.add(c.encode_utf8(&mut [0; 4]).as_bytes(), n));
        Ok(())
    })?;
    // UTF-8 sorts as code points do.
    let char = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|s| s.chars().next());
    Ok(counts.iter().filter_map(|(bytes, n)| char(bytes).map(|c| (c, *n))).collect())
}

/// Runs `work` over all texts in parallel, cut into parts, and adds up the counts.
fn gather(
    texts: impl Iterator<Item = Result<String>>,
    progress: &mut dyn FnMut(Progress),
    work: impl Fn(&str, &mut Map) -> Result<()> + Sync,
) -> Result<Counts> {
    let mut total = Map::default();
    let mut bytes = 0_u64;
    let mut batch = Vec::new();
    let mut waiting = 0;
    let mut texts = texts.fuse();
    loop {
        let text = texts.next().transpose()?;
        let ended = text.is_none();
        if let Some(text) = text {
            waiting += text.len();
            batch.push(text);
        }
        if ended || waiting >= BATCH {
            total = total.merge(count_batch(&batch, &work)?);
            bytes += waiting as u64;
            progress(Progress::Reading { bytes });
            batch.clear();
            waiting = 0;
        }
        if ended {
            break;
        }
    }
    if total.len() == 0 {
        return Err(Error::EmptyText);
    }
    Ok(total.sorted())
}

fn count_batch(batch: &[String], work: &(impl Fn(&str, &mut Map) -> Result<()> + Sync)) -> Result<Map> {
    let parts: Vec<&str> = batch.par_iter().flat_map_iter(|text| scan::parts(text, PART)).collect();
    // Many short texts share a map, too: rayon splits the list only as far as there are threads to steal.
    parts
        .par_iter()
        .with_min_len(parts.len().div_ceil(64))
        .try_fold(Map::default, |mut map, part| work(part, &mut map).map(|()| map))
        .try_reduce(Map::default, |a, b| Ok(a.merge(b)))
}

/// Reads a UTF-8 file in pieces that can be tokenized apart; see the scanner's rule for where to cut.
pub fn read_chunks(path: &Path) -> impl Iterator<Item = Result<String>> + use<> {
    let mut chunks = Chunks { path: path.to_path_buf(), file: None, rest: Vec::new(), offset: 0, ended: false };
    std::iter::from_fn(move || {
        let next = chunks.next().transpose();
        chunks.ended |= matches!(next, Some(Err(_)));
        next
    })
}

struct Chunks {
    path: PathBuf,
    file: Option<File>,
    /// Read but not yet handed out.
    rest: Vec<u8>,
    /// Where `rest` starts in the file.
    offset: u64,
    ended: bool,
}

impl Chunks {
    fn next(&mut self) -> Result<Option<String>> {
        let mut wanted = CHUNK;
        while !self.ended {
            self.fill(wanted)?;
            let valid = self.valid_length()?;
            let text = std::str::from_utf8(&self.rest[..valid]).expect("the length was just checked");
            let cut = if self.ended { Some(valid) } else { scan::safe_cut(text, valid.saturating_sub(PART)) };
            match cut.filter(|cut| *cut > 0) {
                Some(cut) => return Ok(Some(self.take(cut))),
                // No place to cut: read on.
                None => wanted = self.rest.len() + CHUNK,
            }
        }
        Ok(None)
    }

    fn fill(&mut self, wanted: usize) -> Result<()> {
        let io = |e| loam_formats::Error::io("read", &self.path, e);
        if self.file.is_none() {
            self.file = Some(File::open(&self.path).map_err(io)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let missing = wanted.saturating_sub(self.rest.len());
        let read = file.take(missing as u64).read_to_end(&mut self.rest).map_err(io)?;
        self.ended = read < missing;
        Ok(())
    }

    /// How much of `rest` is whole UTF-8; a character cut by the end of the piece is not an error.
    fn valid_length(&self) -> Result<usize> {
        match std::str::from_utf8(&self.rest) {
            Ok(text) => Ok(text.len()),
            Err(e) if e.error_len().is_none() && !self.ended => Ok(e.valid_up_to()),
            Err(e) => {
                let offset = self.offset + e.valid_up_to() as u64;
                Err(Error::NotUtf8 { path: self.path.clone(), offset })
            }
        }
    }

    fn take(&mut self, cut: usize) -> String {
        let tail = self.rest.split_off(cut);
        let piece = std::mem::replace(&mut self.rest, tail);
        self.offset += cut as u64;
        // Checked by `valid_length`.
        String::from_utf8(piece).unwrap_or_default()
    }
}
