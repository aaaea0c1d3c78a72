//! From a tokenizer to the keys of a GGUF file.

use super::{CHAT_TEMPLATE, HUGGING_FACE, base64, key, kind, pre};
use crate::{Error, Result, Special, SpecialTokens, Tokenizer};
use loam_formats::{Gguf, GgufArray, GgufValue};
use serde_json::Value;
use std::collections::HashMap;

/// The score of what is no piece that merges make.
const NO_PIECE: f32 = -1e6;

impl Tokenizer {
    /// The keys of this tokenizer and a chat template, for a model of `vocab_size` rows. Where the keys alone would be
    /// read as another tokenizer, its `tokenizer.json` is among them, too.
    pub fn gguf_metadata(&self, vocab_size: usize, template: Option<&str>) -> Result<Vec<(String, GgufValue)>> {
        let text = self.inner.to_string(false).map_err(|e| Error::Encode(e.to_string()))?;
        let file: Value = serde_json::from_str(&text).map_err(|e| Error::Encode(e.to_string()))?;
        let mut keys = Keys { tokenizer: self, file: &file, keys: Vec::new() };
        keys.vocabulary(vocab_size.max(self.vocab_size()))?;
        keys.roles()?;
        let mut metadata = keys.keys;
        let is_whole = Self::from_gguf(&Gguf::from_metadata(metadata.clone()))
            .is_ok_and(|read| read.content_hash() == self.content_hash());
        if !is_whole {
            metadata.push((HUGGING_FACE.to_owned(), text.as_str().into()));
        }
        if let Some(template) = template {
            metadata.push((CHAT_TEMPLATE.to_owned(), template.into()));
        }
        Ok(metadata)
    }
}

struct Keys<'a> {
    tokenizer: &'a Tokenizer,
    file: &'a Value,
    keys: Vec<(String, GgufValue)>,
}

impl Keys<'_> {
    fn put(&mut self, name: &str, value: impl Into<GgufValue>) {
        self.keys.push((key(name), value.into()));
    }

    fn vocabulary(&mut self, rows: usize) -> Result<()> {
        let (file, model) = (self.file, &self.file["model"]);
        let byte_level = || {
            let nfc = match file["normalizer"]["type"].as_str() {
                None => false,
                Some("NFC") => true,
                Some(_) => return None,
            };
            pre::name_of(&file["pre_tokenizer"], model["ignore_merges"] == true, nfc)
        };
        let mut tokens: Vec<String> = Vec::with_capacity(rows);
        let mut kinds: Vec<i32> = Vec::with_capacity(rows);
        let unknown =
            model["unk_token"].as_str().or_else(|| model["vocab"][model["unk_id"].as_u64()? as usize][0].as_str());
        let added = self.tokenizer.inner.get_added_vocabulary().get_added_tokens_decoder();
        for id in 0..rows {
            let token = u32::try_from(id).ok().and_then(|id| self.tokenizer.id_to_token(id));
            kinds.push(match (&token, added.get(&(id as u32))) {
                (None, _) => kind::UNUSED,
                (Some(token), _) if Some(token.as_str()) == unknown => kind::UNKNOWN,
                (_, Some(added)) if added.special => kind::CONTROL,
                (_, Some(_)) => kind::USER_DEFINED,
                (Some(token), None) if is_byte(token) => kind::BYTE,
                _ => kind::NORMAL,
            });
            tokens.push(token.unwrap_or_else(|| format!("[PAD{id}]")));
        }
        let mut scores = None;
        match model["type"].as_str() {
            Some("BPE") if byte_level().is_some() => {
                self.put("model", "gpt2");
                self.put("pre", byte_level().unwrap_or_default());
                let join = |merge: &Value| match merge.as_array().map(Vec::as_slice) {
                    Some([a, b]) => format!("{} {}", a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default()),
                    _ => merge.as_str().unwrap_or_default().to_owned(),
                };
                let merges = model["merges"].as_array().map(|all| all.iter().map(join).collect()).unwrap_or_default();
                self.put("merges", GgufValue::Array(GgufArray::Text(merges)));
                // Bytes that look like those of SentencePiece are words here.
                kinds.iter_mut().filter(|kind| **kind == kind::BYTE).for_each(|kind| *kind = kind::NORMAL);
            }
            Some("BPE") if model["byte_fallback"] == true => {
                self.put("model", "llama");
                self.put("pre", "default");
                scores = Some(scores_of_merges(model, &tokens));
                let prefix =
                    contains(&file["normalizer"], "Prepend") || file["pre_tokenizer"]["prepend_scheme"].is_string();
                self.put("add_space_prefix", prefix);
            }
            Some("WordPiece") => {
                self.put("model", "bert");
                self.put("pre", "default");
                for (token, _) in tokens.iter_mut().zip(&kinds).filter(|(_, kind)| **kind == kind::NORMAL) {
                    *token = match token.strip_prefix("##") {
                        Some(rest) => rest.to_owned(),
                        None => format!("▁{token}"),
                    };
                }
            }
            Some("Unigram") => {
                self.put("model", "t5");
                self.put("pre", "default");
                let score = |id: usize| model["vocab"][id][1].as_f64().map_or(NO_PIECE, |score| score as f32);
                scores = Some((0..rows).map(score).collect());
                let scheme = find(&file["pre_tokenizer"], "Metaspace").map(|metaspace| &metaspace["prepend_scheme"]);
                self.put("add_space_prefix", scheme.is_some_and(|scheme| scheme != "never"));
                self.put("remove_extra_whitespaces", contains(&file["pre_tokenizer"], "WhitespaceSplit"));
                let map = find(&file["normalizer"], "Precompiled");
                if let Some(map) = map.and_then(|map| base64::decode(map["precompiled_charsmap"].as_str()?)) {
                    self.put("precompiled_charsmap", GgufValue::Array(GgufArray::U8(map)));
                }
            }
            // Nothing that other programs know: the file alone says it.
            _ => self.put("model", "none"),
        }
        self.put("tokens", GgufValue::Array(GgufArray::Text(tokens)));
        self.put("token_type", GgufValue::Array(GgufArray::I32(kinds)));
        if let Some(scores) = scores {
            self.put("scores", GgufValue::Array(GgufArray::F32(scores)));
        }
        Ok(())
    }

    fn roles(&mut self) -> Result<()> {
        let tokenizer = self.tokenizer;
        let SpecialTokens { bos, eos, pad, unk, also_stop } = tokenizer.special();
        let id = |token: &Option<String>| token.as_deref().and_then(|token| tokenizer.token_to_id(token));
        let (first, last) = (id(bos), id(eos));
        for (role, id) in [("bos", first), ("eos", last), ("padding", id(pad)), ("unknown", id(unk))] {
            if let Some(id) = id {
                self.put(&format!("{role}_token_id"), id);
            }
        }
        for (role, &id) in ["eot", "eom"].iter().zip(also_stop.iter().filter(|&&id| Some(id) != last)) {
            self.put(&format!("{role}_token_id"), id);
        }
        if self.file["model"]["type"] == "WordPiece" {
            for (role, token) in [("cls", "[CLS]"), ("seperator", "[SEP]"), ("mask", "[MASK]")] {
                if let Some(id) = tokenizer.token_to_id(token) {
                    self.put(&format!("{role}_token_id"), id);
                }
            }
            return Ok(());
        }
        let (bare, full) = (tokenizer.encode("a", Special::Parse)?, tokenizer.encode("a", Special::Add)?);
        let at = full.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        self.put("add_bos_token", at > 0 && full.first().copied() == first);
        self.put("add_eos_token", full.len() > at + bare.len() && full.last().copied() == last);
        Ok(())
    }
}

/// `<0x41>`: a byte that no piece has.
fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') && u8::from_str_radix(&token[3..5], 16).is_ok()
}

/// The part of that type, at the top or in a sequence.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    if value["type"] == name {
        return Some(value);
    }
    let steps = ["pretokenizers", "normalizers"].iter().find_map(|key| value[*key].as_array());
    steps?.iter().find_map(|step| find(step, name))
}

fn contains(value: &Value, name: &str) -> bool {
    find(value, name).is_some()
}

/// SentencePiece's scores: the earlier a merge makes a piece, the higher.
fn scores_of_merges(model: &Value, tokens: &[String]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, merge) in model["merges"].as_array().into_iter().flatten().enumerate() {
        let joined = match merge.as_array().map(Vec::as_slice) {
            Some([a, b]) => format!("{}{}", a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default()),
            _ => merge.as_str().unwrap_or_default().replacen(' ', "", 1),
        };
        ranks.entry(joined).or_insert(rank);
    }
    tokens.iter().map(|token| ranks.get(token).map_or(NO_PIECE, |&rank| -(rank as f32))).collect()
}
