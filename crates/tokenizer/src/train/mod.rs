//! Training a tokenizer from text.
//!
//! Every kind ends as a `tokenizer.json` that is loaded like any other, so that what was trained is what will be used.
//! The same text and settings give the same bytes, whatever the number of threads.

mod bpe;
mod count;
mod file;
mod unigram;

use crate::bytes;
use crate::fast::scan::{DIGITS_1, DIGITS_3, Scanner};
use crate::{Error, Result, SpecialTokens, Tokenizer};
use bpe::{Bpe, learn};
use count::{Counts, count, count_chars, count_general};
use std::collections::HashSet;
use std::path::Path;

pub use count::read_chunks;

/// Kinds of tokenizer that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainKind {
    /// Byte-pair encoding over bytes: any text can be encoded, nothing is unknown. The usual choice for generating.
    ByteBpe,
    /// WordPiece as BERT uses it: lower-cased words in pieces. The usual choice for classifying.
    WordPiece,
    /// Unigram language model over text with visible spaces.
    Unigram,
    /// Every character is a token.
    Char,
}

/// How a tokenizer is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// The kind of tokenizer.
    pub kind: TrainKind,
    /// Tokens in the vocabulary, special ones included; not used by `char`, which takes every character it sees.
    pub vocab_size: usize,
    /// Pairs (for `char`: characters) that occur less often are not learned.
    pub min_frequency: u64,
    /// Special tokens, which get the first ids in this order.
    pub special_tokens: Vec<String>,
    /// For byte-level BPE: every digit is a token, instead of groups of up to three.
    pub split_digits: bool,
    /// Texts get the end token after them, as encoder-decoders want their sources; `WordPiece` always frames them.
    pub ends_texts: bool,
}

impl TrainConfig {
    /// The usual settings of a kind.
    pub fn new(kind: TrainKind) -> Self {
        let special: &[&str] = match kind {
            TrainKind::ByteBpe => &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            TrainKind::WordPiece => &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            TrainKind::Unigram => &["<pad>", "<unk>", "<s>", "</s>"],
            TrainKind::Char => &["<unk>", "<|endoftext|>"],
        };
        let special_tokens = special.iter().map(|s| (*s).to_owned()).collect();
        let vocab_size = if kind == TrainKind::WordPiece { 30_000 } else { 8_192 };
        Self { kind, vocab_size, min_frequency: 0, special_tokens, split_digits: false, ends_texts: false }
    }

    fn validate(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for token in &self.special_tokens {
            if token.is_empty() {
                return Err(Error::Setting("a special token is empty".into()));
            }
            if !seen.insert(token) {
                return Err(Error::Setting(format!("the special token '{token}' is given twice")));
            }
        }
        if u32::try_from(self.vocab_size).is_err() {
            return Err(Error::Setting(format!("vocab_size {} is more than ids can count", self.vocab_size)));
        }
        Ok(())
    }

    /// The token for what is not in the vocabulary, added to the special ones if missing.
    fn with_unknown(&self, token: &str) -> Self {
        let mut config = self.clone();
        if !config.special_tokens.iter().any(|t| t == token) {
            config.special_tokens.push(token.to_owned());
        }
        config
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self::new(TrainKind::ByteBpe)
    }
}

/// How far a training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Text is being read and its words counted.
    Reading {
        /// Bytes so far.
        bytes: u64,
    },
    /// Tokens are being learned from the words.
    Learning {
        /// Tokens in the vocabulary so far.
        tokens: usize,
        /// Tokens wanted.
        of: usize,
    },
}

/// Trains on texts from an iterator, whose errors are passed on. Only the counts of different words are kept in memory.
pub fn train<E>(
    texts: impl IntoIterator<Item = Result<String, E>>,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    config.validate()?;
    let texts = texts.into_iter().map(|text| text.map_err(|e| source_error(e.into())));
    match config.kind {
        TrainKind::ByteBpe => byte_bpe(texts, config, progress),
        TrainKind::WordPiece => word_piece(texts, &config.with_unknown(file::WORD_PIECE_UNKNOWN), progress),
        TrainKind::Unigram => unigram::train(texts, &config.with_unknown(file::UNKNOWN), progress),
        TrainKind::Char => chars(texts, &config.with_unknown(file::UNKNOWN), progress),
    }
}

/// Trains on UTF-8 text files, read in pieces.
pub fn train_files<P: AsRef<Path>>(
    files: &[P],
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer> {
    train(files.iter().flat_map(|file| read_chunks(file.as_ref())), config, progress)
}

/// An error of this crate passes through a source unchanged.
fn source_error(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => *own,
        Err(other) => Error::Source(other),
    }
}

fn too_small(config: &TrainConfig, needed: usize, alphabet: &str) -> Result<()> {
    if config.vocab_size >= needed {
        return Ok(());
    }
    let special = config.special_tokens.len();
    let reason = format!("it needs at least {needed} ({special} special tokens and {alphabet})");
    Err(Error::VocabTooSmall { vocab_size: config.vocab_size, reason })
}

fn byte_bpe(
    texts: impl Iterator<Item = Result<String>>,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer> {
    let special = config.special_tokens.len();
    too_small(config, special + 256, "256 bytes")?;
    let pattern = if config.split_digits { DIGITS_1 } else { DIGITS_3 };
    let scanner = Scanner::for_pattern(pattern).expect("both patterns are known ones");
    let counts = count(texts, scanner, progress)?;
    let alphabet = bytes::alphabet();
    let mut tokens = config.special_tokens.clone();
    tokens.extend(alphabet.iter().map(char::to_string));
    // A special token that is also a character of the alphabet keeps its one id.
    tokens.dedup();
    let mut symbol = [0; 256];
    for (i, c) in alphabet.iter().enumerate() {
        symbol[usize::from(bytes::char_to_byte(*c).expect("a character of the alphabet"))] = (special + i) as u32;
    }
    let words = counts.iter().map(|(word, n)| (word.iter().map(|b| symbol[usize::from(*b)]).collect(), *n));
    let bpe = learn(Bpe::new(tokens, ""), words, config, progress);
    load(&file::byte_bpe(&bpe, config, pattern), config)
}

fn word_piece(
    texts: impl Iterator<Item = Result<String>>,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer> {
    let empty = load(&file::word_piece(&config.special_tokens, config), config)?;
    let counts = count_general(texts, &empty.inner, progress)?;
    let counts: Vec<(String, u64)> = utf8(counts);
    let mut bpe = Bpe::new(config.special_tokens.clone(), file::WORD_PIECE_PREFIX);
    let (mut first, mut later) = (HashSet::new(), HashSet::new());
    for (word, _) in &counts {
        let mut chars = word.chars();
        first.extend(chars.next());
        later.extend(chars);
    }
    let sorted = |set: HashSet<char>| {
        let mut chars: Vec<char> = set.into_iter().collect();
        chars.sort_unstable();
        chars
    };
    let (first, later) = (sorted(first), sorted(later));
    too_small(config, config.special_tokens.len() + first.len() + later.len(), "the characters of the text")?;
    for c in first {
        bpe.intern(c.to_string());
    }
    for c in later {
        bpe.intern(format!("{}{c}", file::WORD_PIECE_PREFIX));
    }
    let words: Vec<(Vec<u32>, u64)> = counts.iter().map(|(word, n)| (bpe.pieces(word), *n)).collect();
    let bpe = learn(bpe, words, config, progress);
    load(&file::word_piece(bpe.tokens(), config), config)
}

fn chars(
    texts: impl Iterator<Item = Result<String>>,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer> {
    let counts = count_chars(texts, progress)?;
    let mut tokens = config.special_tokens.clone();
    let frequent = counts.into_iter().filter(|(_, n)| *n >= config.min_frequency);
    tokens.extend(frequent.map(|(c, _)| c.to_string()).filter(|c| !config.special_tokens.contains(c)));
    load(&file::chars(&tokens, config), config)
}

fn utf8(counts: Counts) -> Vec<(String, u64)> {
    let text = |bytes: Box<[u8]>| String::from_utf8(bytes.into_vec()).expect("words are cut from UTF-8 text");
    counts.into_iter().map(|(word, n)| (text(word), n)).collect()
}

/// Loads what was trained, with the roles of the special tokens by their usual names.
fn load(json: &serde_json::Value, config: &TrainConfig) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes())?;
    let mut special = tokenizer.special().clone();
    let has = |token: &str| config.special_tokens.iter().any(|t| t == token);
    // A chat turn ends with its own token; generation stops there too.
    let turn_end = Some("<|im_end|>").filter(|t| has(t)).and_then(|t| tokenizer.token_to_id(t));
    special.also_stop.extend(turn_end);
    special.pad = special.pad.or_else(|| special.eos.clone());
    let special = SpecialTokens { ..special };
    tokenizer.with_special(special)
}
