//! A look into a tokenizer: its vocabulary, its merges, how it splits a text.

use crate::{Result, Special, Tokenizer};
use serde_json::Value;
use std::collections::HashMap;

/// One row of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct VocabRow {
    /// The id.
    pub id: u32,
    /// The token as the vocabulary writes it.
    pub token: String,
    /// The text it stands for, where that is whole characters.
    pub text: String,
    /// Whether it is a special token.
    pub special: bool,
    /// For Unigram: its log-probability.
    pub score: Option<f64>,
    /// For BPE: the rank of the merge that makes it, 0 for the first.
    pub merge: Option<usize>,
}

/// A piece of a text and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The id.
    pub id: u32,
    /// The token as the vocabulary writes it.
    pub token: String,
    /// Where the piece starts in the text, in bytes.
    pub start: usize,
    /// Where it ends. Tokens that are parts of one character share its range.
    pub end: usize,
}

impl Tokenizer {
    /// The whole vocabulary, by id.
    pub fn vocabulary(&self) -> Vec<VocabRow> {
        let model = self.model_json();
        let mut merged = HashMap::new();
        for (rank, (left, right)) in merges(&model).into_iter().enumerate() {
            merged.entry(left + &right).or_insert(rank);
        }
        let row = |id: u32| {
            let token = self.id_to_token(id)?;
            let special = self.is_special(id);
            let score = model["vocab"][id as usize][1].as_f64();
            let merge = merged.get(&token).copied();
            Some(VocabRow { id, text: self.decode_known(&[id], false), token, special, score, merge })
        };
        (0..self.vocab_size() as u32).filter_map(row).collect()
    }

    /// The merges of a BPE tokenizer, in the order in which they apply; empty for other kinds.
    pub fn merges(&self) -> Vec<(String, String)> {
        merges(&self.model_json())
    }

    /// The kind of model, such as `BPE` or `Unigram`.
    pub fn model_kind(&self) -> &'static str {
        match self.inner.get_model() {
            tokenizers::ModelWrapper::BPE(_) => "BPE",
            tokenizers::ModelWrapper::WordPiece(_) => "WordPiece",
            tokenizers::ModelWrapper::WordLevel(_) => "WordLevel",
            tokenizers::ModelWrapper::Unigram(_) => "Unigram",
        }
    }

    /// The pieces a text is split into.
    pub fn split(&self, text: &str) -> Result<Vec<Piece>> {
        let encoded = self.encode_with_offsets(text, Special::Parse)?;
        let piece = |(id, (start, end)): (u32, (usize, usize))| {
            let token = self.id_to_token(id).unwrap_or_default();
            Piece { id, token, start, end }
        };
        Ok(encoded.ids.into_iter().zip(encoded.offsets).map(piece).collect())
    }

    fn model_json(&self) -> Value {
        serde_json::to_value(self.inner.get_model()).unwrap_or_default()
    }
}

fn merges(model: &Value) -> Vec<(String, String)> {
    let pair = |merge: &Value| match merge {
        Value::String(joined) => joined.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())),
        pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
    };
    model["merges"].as_array().map(|list| list.iter().filter_map(pair).collect()).unwrap_or_default()
}
