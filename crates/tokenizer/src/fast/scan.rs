//! Cutting text into words, before any merging: the two splits that byte-level tokenizers use.
//!
//! A `tokenizer.json` states the split as a regular expression with look-ahead, which a general engine runs at a few
//! megabytes per second. These hand-written scanners give the same pieces (a test compares them with the engine on
//! random text) an order of magnitude faster. Character classes come from the regex engine's own Unicode tables.

use regex_syntax::hir::{Class, HirKind};
use std::sync::LazyLock;

/// The split of GPT-2, built into the `ByteLevel` pre-tokenizer.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The split of GPT-4 and Llama 3: numbers in groups of at most three digits.
pub(crate) const DIGITS_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with every digit by itself, as in Qwen 2.
pub(crate) const DIGITS_1: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A known split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scanner {
    Gpt2,
    Gpt4 { digits: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    Letter,
    Number,
    Space,
}

/// The kind of every code point. A flat table: looked up per character, and only the rows of the scripts in use are
/// ever touched.
static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let mut table = vec![Kind::Other; char::MAX as usize + 1];
    for (pattern, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)] {
        let hir = regex_syntax::parse(pattern).expect("a fixed, valid pattern");
        let HirKind::Class(Class::Unicode(class)) = hir.kind() else {
            unreachable!("the pattern is a character class")
        };
        for range in class.ranges() {
            table[range.start() as usize..=range.end() as usize].fill(kind);
        }
    }
    table
});

/// Text being scanned.
struct Cursor<'a> {
    text: &'a str,
    kinds: &'static [Kind],
}

impl Cursor<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// Kind and length of the character at `at`, which is a character boundary.
    fn at(&self, at: usize) -> Option<(Kind, usize)> {
        let byte = self.byte(at)?;
        if byte < 128 {
            return Some((self.kinds[usize::from(byte)], 1));
        }
        let c = self.text[at..].chars().next()?;
        Some((self.kinds[c as usize], c.len_utf8()))
    }

    /// The end of the run of characters of one kind that starts at `at`.
    fn run(&self, mut at: usize, kind: Kind) -> usize {
        while let Some((k, len)) = self.at(at) {
            if k != kind {
                break;
            }
            at += len;
        }
        at
    }

    fn newlines(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), Some(b'\r' | b'\n')) {
            at += 1;
        }
        at
    }

    /// The end of a white-space piece: the run, less its last character if a word follows that may take it.
    fn spaces(&self, start: usize) -> usize {
        let end = self.run(start, Kind::Space);
        if end == self.text.len() {
            return end;
        }
        let last = self.text[start..end].char_indices().next_back().map_or(0, |(i, _)| i);
        if last == 0 { end } else { start + last }
    }

    /// The length of an English contraction at `at`, or 0.
    fn contraction(&self, at: usize, any_case: bool) -> usize {
        let fold = |b: Option<u8>| b.map(|b| if any_case { b.to_ascii_lowercase() } else { b });
        if self.byte(at) != Some(b'\'') {
            return 0;
        }
        match (fold(self.byte(at + 1)), fold(self.byte(at + 2))) {
            (Some(b's' | b't' | b'm' | b'd'), _) => 2,
            (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => 3,
            // The long s folds to s.
            _ if any_case && self.text[at + 1..].starts_with('ſ') => 1 + 'ſ'.len_utf8(),
            _ => 0,
        }
    }

    fn gpt2(&self, start: usize) -> usize {
        let contraction = self.contraction(start, false);
        if contraction > 0 {
            return start + contraction;
        }
        let body = start + usize::from(self.byte(start) == Some(b' '));
        match self.at(body) {
            Some((kind, len)) if kind != Kind::Space => self.run(body + len, kind),
            _ => self.spaces(start),
        }
    }

    fn gpt4(&self, start: usize, digits: usize) -> usize {
        let contraction = self.contraction(start, true);
        let Some((kind, len)) = self.at(start) else { return start };
        if contraction > 0 {
            return start + contraction;
        }
        match kind {
            Kind::Letter => return self.run(start + len, Kind::Letter),
            Kind::Number => {
                let mut end = start + len;
                for _ in 1..digits {
                    match self.at(end) {
                        Some((Kind::Number, len)) => end += len,
                        _ => break,
                    }
                }
                return end;
            }
            Kind::Other | Kind::Space => {}
        }
        let first = self.byte(start);
        if !matches!(first, Some(b'\r' | b'\n')) && matches!(self.at(start + len), Some((Kind::Letter, _))) {
            return self.run(start + len, Kind::Letter);
        }
        let body = start + usize::from(first == Some(b' '));
        if matches!(self.at(body), Some((Kind::Other, _))) {
            return self.newlines(self.run(body, Kind::Other));
        }
        let end = self.run(start, Kind::Space);
        match self.text[start..end].rfind(['\r', '\n']) {
            Some(last) => start + last + 1,
            None => self.spaces(start),
        }
    }
}

impl Scanner {
    /// The scanner for a regular expression, if it is one of the known ones.
    pub(crate) fn for_pattern(pattern: &str) -> Option<Self> {
        match pattern {
            GPT2 => Some(Self::Gpt2),
            DIGITS_3 => Some(Self::Gpt4 { digits: 3 }),
            DIGITS_1 => Some(Self::Gpt4 { digits: 1 }),
            _ => None,
        }
    }

    /// Calls `word` with every piece of `text`, in order; together they are the text.
    pub(crate) fn words<'a>(self, text: &'a str, mut word: impl FnMut(&'a str)) {
        let cursor = Cursor { text, kinds: &KINDS };
        let mut start = 0;
        while start < text.len() {
            let end = match self {
                Self::Gpt2 => cursor.gpt2(start),
                Self::Gpt4 { digits } => cursor.gpt4(start, digits),
            };
            word(&text[start..end]);
            start = end;
        }
    }
}

/// Cuts `text` into parts of about `size` bytes that can be scanned apart with the same result as together: after a
/// single newline between two characters that are not white space. Where there is none, parts are longer.
pub(crate) fn parts(text: &str, size: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > size {
        let Some(cut) = safe_cut(rest, size) else { break };
        let (part, tail) = rest.split_at(cut);
        parts.push(part);
        rest = tail;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// The first place at or after `from` where a text can be cut; see [`parts`].
pub(crate) fn safe_cut(text: &str, from: usize) -> Option<usize> {
    let solid = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    let bytes = text.as_bytes();
    let mut newlines = (from..bytes.len()).filter(|&i| bytes[i] == b'\n');
    newlines.find(|&i| solid(text[..i].chars().next_back()) && solid(text[i + 1..].chars().next())).map(|i| i + 1)
}
