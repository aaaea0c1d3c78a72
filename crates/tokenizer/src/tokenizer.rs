//! A tokenizer: text to ids and back.

use crate::fast::FastEncoder;
use crate::{DecodeStream, Error, Result};
use loam_formats::Gguf;
use loam_formats::hf_dir::TOKENIZER;
use rayon::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::Tokenizer as Inner;

/// What to do about special tokens when a text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Recognise special tokens in the text, and add those that the tokenizer puts around a text (such as `[CLS]` or a
    /// start token).
    Add,
    /// Recognise special tokens in the text, add none.
    Parse,
    /// Special tokens mean nothing: their names are encoded like any other text. For text that is not to be trusted.
    Ignore,
}

/// The special tokens by their role. Any may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Starts a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Fills up rows of a batch.
    pub pad: Option<String>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<String>,
    /// Further ids that end a generation, beside that of `eos`.
    pub also_stop: Vec<u32>,
}

/// Ids together with the places in the text that they come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id the byte range of its text; empty for ids that were added.
    pub offsets: Vec<(usize, usize)>,
}

/// A loaded tokenizer. It is immutable and may be shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) inner: Inner,
    fast: Option<FastEncoder>,
    /// A second copy for [`Special::Ignore`], made when first needed: the library keeps that choice in its state.
    plain: OnceLock<Box<Inner>>,
    special: SpecialTokens,
    vocab_size: usize,
    hash: OnceLock<String>,
}

impl Tokenizer {
    /// Opens a `tokenizer.json`, or a model directory or GGUF file that holds one; the latter two also say which special
    /// token has which role.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if Gguf::is_one(path) {
            return Self::from_gguf(&Gguf::open(path)?);
        }
        if path.is_dir() { crate::directory::open(path) } else { Self::from_file(path) }
    }

    /// Opens a `tokenizer.json`. The roles of special tokens are guessed from their usual names.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = loam_formats::Mapped::open(path).map_err(|error| match error {
            loam_formats::Error::Missing { path, .. } => {
                let hint = format!("give a {TOKENIZER} file or a model directory that holds one");
                loam_formats::Error::Missing { path, hint }
            }
            other => other,
        })?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Reads the content of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes, TOKENIZER)
    }

    pub(crate) fn parse(bytes: &[u8], origin: &str) -> Result<Self> {
        let invalid = |reason: String| Error::Invalid { origin: origin.to_owned(), reason };
        let text = std::str::from_utf8(bytes).map_err(|e| invalid(format!("the file is not UTF-8 text: {e}")))?;
        let outline: Outline = serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let model = outline.model.ok_or_else(|| invalid("there is no object 'model'".into()))?;
        let mut inner = Inner::from_bytes(bytes).map_err(|e| {
            let kind = model.r#type.as_deref().unwrap_or("without a type");
            invalid(format!("model {kind}: {e}"))
        })?;
        // A saved limit or padding would silently change what is encoded; both belong to whoever builds batches.
        inner.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        inner.with_padding(None);
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        if vocab_size == 0 {
            return Err(invalid("the vocabulary is empty".into()));
        }
        let fast = FastEncoder::from_json(bytes, added_around(&inner));
        let special = guess_special(&inner);
        Ok(Self { inner, fast, plain: OnceLock::new(), special, vocab_size, hash: OnceLock::new() })
    }

    /// The same tokenizer with other roles of its special tokens; a role's token must be in the vocabulary.
    pub fn with_special(mut self, special: SpecialTokens) -> Result<Self> {
        let named = [&special.bos, &special.eos, &special.pad, &special.unk];
        for token in named.into_iter().flatten() {
            if self.token_to_id(token).is_none() {
                return Err(Error::Setting(format!("the special token '{token}' is not in the vocabulary")));
            }
        }
        self.special = special;
        Ok(self)
    }

    /// Writes a `tokenizer.json` that every user of the format can open.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let text = self.inner.to_string(true).map_err(|e| Error::Encode(e.to_string()))?;
        Ok(loam_formats::atomic::write_file(path, text.as_bytes())?)
    }

    /// The ids of a text. A long text is encoded in parallel; the result does not depend on the number of threads.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        match self.fast.as_ref().and_then(|fast| fast.encode(text, special)) {
            Some(ids) => Ok(ids),
            None => self.encode_general(text, special),
        }
    }

    /// The ids of many texts, in parallel and in order.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S], special: Special) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text.as_ref(), special)).collect()
    }

    /// As [`encode`](Self::encode), with the place of each token in the text. Slower: always the general way.
    pub fn encode_with_offsets(&self, text: &str, special: Special) -> Result<Encoded> {
        let encoder = self.general(special);
        let encoding = encoder.encode(text, special == Special::Add).map_err(|e| Error::Encode(e.to_string()))?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    pub(crate) fn encode_general(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let encoder = self.general(special);
        let encoding = encoder.encode_fast(text, special == Special::Add).map_err(|e| Error::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn general(&self, special: Special) -> &Inner {
        if special != Special::Ignore {
            return &self.inner;
        }
        self.plain.get_or_init(|| {
            let mut plain = Box::new(self.inner.clone());
            plain.set_encode_special_tokens(true);
            plain
        })
    }

    /// The text of some ids. An id outside of the vocabulary is an error.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(&id) = ids.iter().find(|id| self.id_to_token(**id).is_none()) {
            return Err(Error::UnknownId { id, vocab_size: self.vocab_size });
        }
        Ok(self.decode_known(ids, skip_special))
    }

    /// The text of those ids that are in the vocabulary.
    pub(crate) fn decode_known(&self, ids: &[u32], skip_special: bool) -> String {
        // The library's decoders fail on nothing but a pattern of their own file, which loading has checked.
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }

    /// Turns ids into text one by one, as a model produces them.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// One more than the largest id: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, written as the vocabulary writes it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary writes it (for byte-level ones a space is `Ġ`); see [`decode`](Self::decode) for text.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The roles of the special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The id that starts a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// The id that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.special.eos.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// The id that fills up a row.
    pub fn pad_id(&self) -> Option<u32> {
        self.special.pad.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// The id that stands for the unknown.
    pub fn unk_id(&self) -> Option<u32> {
        self.special.unk.as_deref().and_then(|t| self.token_to_id(t))
    }

    /// Every id that ends a generation, sorted.
    pub fn stop_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.eos_id().into_iter().chain(self.special.also_stop.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Whether an id is that of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Whether texts are encoded the fast way.
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// SHA-256 of the tokenizer in its canonical form, in hexadecimal: equal exactly for equal tokenizers, whatever the
    /// layout of the file they came from.
    pub fn content_hash(&self) -> &str {
        self.hash.get_or_init(|| {
            let canonical = self.inner.to_string(false).unwrap_or_default();
            Sha256::digest(canonical).iter().map(|b| format!("{b:02x}")).collect()
        })
    }

    /// How many bytes of a text one token covers on average; 0 for an empty text.
    pub fn bytes_per_token(&self, text: &str) -> Result<f64> {
        let tokens = self.encode(text, Special::Parse)?.len();
        Ok(if tokens == 0 { 0.0 } else { text.len() as f64 / tokens as f64 })
    }
}

/// As much of a `tokenizer.json` as a clear error message needs.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    model: Option<OutlineModel>,
}

#[derive(Deserialize)]
struct OutlineModel {
    #[serde(default)]
    r#type: Option<String>,
}

/// What the post-processor puts before and after a text, found by encoding a probe both ways; `None` if the probe does
/// not come back whole.
fn added_around(inner: &Inner) -> Option<(Vec<u32>, Vec<u32>)> {
    if inner.get_post_processor().is_none() {
        return Some((Vec::new(), Vec::new()));
    }
    let ids = |add| inner.encode("a", add).ok().map(|e| e.get_ids().to_vec());
    let (bare, full) = (ids(false)?, ids(true)?);
    let at = (0..=full.len().checked_sub(bare.len())?).find(|&i| full[i..i + bare.len()] == bare)?;
    (!bare.is_empty()).then(|| (full[..at].to_vec(), full[at + bare.len()..].to_vec()))
}

fn guess_special(inner: &Inner) -> SpecialTokens {
    let vocabulary = inner.get_added_vocabulary();
    // Usual names, the more telling ones first.
    let first =
        |names: &[&str]| names.iter().find(|name| vocabulary.is_special_token(name)).map(|name| (*name).to_owned());
    SpecialTokens {
        bos: first(&["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"]),
        eos: first(&["<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]", "<|im_end|>"]),
        pad: first(&["<pad>", "[PAD]", "<|pad|>"]),
        unk: first(&["<unk>", "[UNK]"]),
        also_stop: Vec::new(),
    }
}
