//! Reading from a `tokenizer.json` whether, and how, the fast encoder can stand in for the general one.

use super::bpe::Merges;
use super::scan::{GPT2, Scanner};
use super::{AddedTokens, FastEncoder, Kind};
use crate::bytes::char_to_byte;
use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Mutex;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
    model: Bpe,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    r#type: String,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: FxHashMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

impl FastEncoder {
    /// The encoder for a valid `tokenizer.json`, if it is of a kind known here. `around` is what the post-processor
    /// puts before and after a text; `None` if that depends on the text.
    pub(crate) fn from_json(json: &[u8], around: Option<(Vec<u32>, Vec<u32>)>) -> Option<Self> {
        let (before, after) = around?;
        let file: File = serde_json::from_slice(json).ok()?;
        let nfc = match &file.normalizer {
            None => false,
            Some(n) if n["type"] == "NFC" => true,
            Some(_) => return None,
        };
        let simple = |t: &Added| !(t.single_word || t.lstrip || t.rstrip || t.content.is_empty());
        // Tokens that are matched after the others, against normalised text, would need a second pass.
        if !file.added_tokens.iter().all(|t| simple(t) && !t.normalized) {
            return None;
        }
        let added = |keep: fn(&Added) -> bool| -> Vec<(String, u32)> {
            file.added_tokens.iter().filter(|t| keep(t)).map(|t| (t.content.clone(), t.id)).collect()
        };
        let (all, plain) = (added(|_| true), added(|t| !t.special));
        let kind = kind(file.model, file.pre_tokenizer.as_ref())?;
        Some(Self {
            kind,
            nfc,
            added: AddedTokens::new(&all),
            added_plain: AddedTokens::new(&plain),
            before,
            after,
            caches: Mutex::default(),
        })
    }
}

fn kind(model: Bpe, pre_tokenizer: Option<&Value>) -> Option<Kind> {
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    let plain = model.r#type == "BPE"
        && model.dropout.is_none_or(|p| p == 0.0)
        && affixes.iter().all(|a| a.as_deref().is_none_or(str::is_empty))
        && !model.fuse_unk
        && !model.byte_fallback;
    if !plain {
        return None;
    }
    match pre_tokenizer {
        None if model.merges.is_empty() && !model.ignore_merges => chars(model),
        None => None,
        Some(value) => byte_bpe(model, scanner(value)?),
    }
}

fn chars(model: Bpe) -> Option<Kind> {
    let unknown = match &model.unk_token {
        Some(token) => Some(*model.vocab.get(token)?),
        None => None,
    };
    let single = |s: &str| s.chars().next().filter(|c| c.len_utf8() == s.len());
    let ids = model.vocab.iter().filter_map(|(token, id)| single(token).map(|c| (c, *id))).collect();
    Some(Kind::Chars { ids, unknown })
}

fn byte_bpe(model: Bpe, scanner: Scanner) -> Option<Kind> {
    let mut bytes = Box::new([u32::MAX; 256]);
    for c in crate::bytes::alphabet() {
        let byte = char_to_byte(c).expect("a character of the byte alphabet");
        bytes[usize::from(byte)] = *model.vocab.get(c.encode_utf8(&mut [0; 4]) as &str)?;
    }
    let mut merges = Vec::with_capacity(model.merges.len());
    for merge in &model.merges {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Joined(joined) => joined.split_once(' ')?,
        };
        let id = |token: &str| model.vocab.get(token).copied();
        merges.push((id(left)?, id(right)?, id(&format!("{left}{right}"))?));
    }
    let to_bytes = |token: &str| token.chars().map(char_to_byte).collect::<Option<Box<[u8]>>>();
    let whole_words = model
        .ignore_merges
        .then(|| model.vocab.iter().filter_map(|(token, id)| Some((to_bytes(token)?, *id))).collect());
    Some(Kind::ByteBpe { scanner, bytes, merges: Merges::new(merges), whole_words })
}

/// The split of a pre-tokenizer: `ByteLevel` with its own, or a `Split` by a known pattern before a `ByteLevel`
/// without.
fn scanner(pre_tokenizer: &Value) -> Option<Scanner> {
    let byte_level = |value: &Value, use_regex: bool| {
        value["type"] == "ByteLevel"
            && value["add_prefix_space"] == json!(false)
            && value.get("use_regex").unwrap_or(&json!(true)) == &json!(use_regex)
    };
    if byte_level(pre_tokenizer, true) {
        return Scanner::for_pattern(GPT2);
    }
    let [split, last] = pre_tokenizer["pretokenizers"].as_array()?.as_slice() else { return None };
    let isolated = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == json!(false);
    if !(isolated && byte_level(last, false)) {
        return None;
    }
    Scanner::for_pattern(split["pattern"]["Regex"].as_str()?)
}
