//! From the keys of a GGUF file to a `tokenizer.json`.

use super::{base64, key, kind, pre};
use crate::{Error, Result};
use loam_formats::Gguf;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The vocabulary of a file.
struct Vocabulary<'a> {
    gguf: &'a Gguf,
    tokens: &'a [String],
    kinds: Vec<i32>,
    scores: Vec<f64>,
}

fn invalid(gguf: &Gguf, reason: String) -> Error {
    Error::Invalid { origin: gguf.path().display().to_string(), reason }
}

/// The `tokenizer.json` that a file describes.
pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Value> {
    let model = gguf.text(&key("model"))?.ok_or_else(|| invalid(gguf, "it holds no tokenizer".into()))?;
    let tokens = gguf.texts(&key("tokens"))?.unwrap_or_default();
    let list = |name: &str| -> Result<Option<Vec<f64>>> {
        let list = gguf.numbers(&key(name))?;
        match &list {
            Some(list) if list.len() != tokens.len() => {
                let reason = format!("'{}' has {} elements for {} tokens", key(name), list.len(), tokens.len());
                Err(invalid(gguf, reason))
            }
            _ => Ok(list),
        }
    };
    let kinds = list("token_type")?
        .map_or(vec![kind::NORMAL; tokens.len()], |kinds| kinds.into_iter().map(|kind| kind as i32).collect());
    let scores = list("scores")?.unwrap_or_else(|| vec![0.0; tokens.len()]);
    let vocabulary = Vocabulary { gguf, tokens, kinds, scores };
    match model {
        "gpt2" => vocabulary.byte_bpe(),
        "llama" => vocabulary.sentence_piece_bpe(),
        "bert" => vocabulary.word_piece(),
        "t5" => vocabulary.unigram(),
        other => {
            let reason = format!("its kind is '{other}'; known are gpt2, llama, bert, t5");
            Err(invalid(gguf, reason))
        }
    }
}

impl Vocabulary<'_> {
    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.gguf.flag(&key(name))?.unwrap_or(default))
    }

    fn id(&self, role: &str) -> Result<Option<usize>> {
        let id = self.gguf.size(&key(&format!("{role}_token_id")))?;
        Ok(id.filter(|&id| id < self.tokens.len()))
    }

    /// Token to id, without those that stand for unused rows; of equal ones the first.
    fn ids(&self, text: impl Fn(usize) -> String) -> Map<String, Value> {
        let mut ids = Map::new();
        for index in (0..self.tokens.len()).filter(|&index| self.kinds[index] != kind::UNUSED) {
            ids.entry(text(index)).or_insert_with(|| json!(index));
        }
        ids
    }

    /// Everything around the model: added tokens, and what is put around a text.
    fn file(&self, adds: [bool; 2]) -> Result<Value> {
        let is_added = |&index: &usize| {
            matches!(self.kinds[index], kind::CONTROL | kind::USER_DEFINED | kind::UNKNOWN)
                && !self.tokens[index].is_empty()
        };
        let added = |index: usize| {
            json!({
                "id": index, "content": self.tokens[index], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": self.kinds[index] != kind::USER_DEFINED
            })
        };
        let added: Vec<Value> = (0..self.tokens.len()).filter(is_added).map(added).collect();
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": null, "post_processor": self.around(adds)?, "decoder": null, "model": null
        }))
    }

    /// The post-processor. `adds` says whether a start and an end are added where the file does not.
    fn around(&self, adds: [bool; 2]) -> Result<Value> {
        let (mut before, mut after) = (self.id("bos")?, self.id("eos")?);
        if self.gguf.text(&key("model"))? == Some("bert") {
            before = self.id("cls")?.or(before);
            after = self.id("seperator")?.or(after);
        }
        let before = before.filter(|_| adds[0]);
        let after = after.filter(|_| adds[1]);
        let token = |id: usize| json!({"SpecialToken": {"id": self.tokens[id], "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let around = |name: &str| -> Vec<Value> {
            before.map(token).into_iter().chain([text(name)]).chain(after.map(token)).collect()
        };
        if before.is_none() && after.is_none() {
            return Ok(Value::Null);
        }
        let describe = |id: usize| {
            let text = &self.tokens[id];
            (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}))
        };
        let special: Map<String, Value> = before.into_iter().chain(after).map(describe).collect();
        let pair = [around("A"), around("B")].concat();
        Ok(json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": special}))
    }

    fn byte_bpe(&self) -> Result<Value> {
        let name = self.gguf.text(&key("pre"))?.unwrap_or("default");
        let pre = pre::by_name(name).ok_or_else(|| {
            invalid(self.gguf, format!("it cuts text the way '{name}', which is not known; known are {}", pre::names()))
        })?;
        let merges = self.gguf.texts(&key("merges"))?.unwrap_or_default();
        let merges = merges.iter().map(|merge| {
            // The first letter may be a space itself.
            let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            at.map(|at| json!([merge[..at], merge[at + 1..]]))
        });
        let merges: Option<Vec<Value>> = merges.collect();
        let merges =
            merges.ok_or_else(|| invalid(self.gguf, "a merge is not two tokens with a space between".into()))?;
        let starts = name.starts_with("llama") && self.gguf.value(&key("add_bos_token")).is_none();
        let mut file = self.file([self.flag("add_bos_token", starts)?, self.flag("add_eos_token", false)?])?;
        if pre.nfc {
            file["normalizer"] = json!({"type": "NFC"});
        }
        file["pre_tokenizer"] = pre.to_json();
        file["decoder"] =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        file["model"] = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges,
            "vocab": self.ids(|index| self.tokens[index].clone()), "merges": merges
        });
        Ok(file)
    }

    /// SentencePiece joins the neighbours whose union has the highest score. As merges: every way to cut a piece in two
    /// pieces, in the order of the pieces' scores.
    fn sentence_piece_bpe(&self) -> Result<Value> {
        let is_piece = |&index: &usize| self.kinds[index] == kind::NORMAL;
        let pieces: HashMap<&str, usize> =
            (0..self.tokens.len()).filter(is_piece).map(|index| (self.tokens[index].as_str(), index)).collect();
        let mut merges: Vec<(usize, &str, &str)> = Vec::new();
        for index in (0..self.tokens.len()).filter(is_piece) {
            let token = self.tokens[index].as_str();
            let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let mut own: Vec<_> = cuts.filter(|(a, b)| pieces.contains_key(a) && pieces.contains_key(b)).collect();
            own.sort_by_key(|(a, b)| (pieces[a], pieces[b]));
            merges.extend(own.into_iter().map(|(a, b)| (index, a, b)));
        }
        merges.sort_by(|a, b| self.scores[b.0].total_cmp(&self.scores[a.0]));
        let merges: Vec<Value> = merges.into_iter().map(|(_, a, b)| json!([a, b])).collect();
        let prefix = self.flag("add_space_prefix", true)?;
        let mut file = self.file([self.flag("add_bos_token", true)?, self.flag("add_eos_token", false)?])?;
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut normalizers = vec![replace(" ", "▁")];
        let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        file["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
        file["decoder"] = json!({"type": "Sequence", "decoders": decoders});
        let unknown = self.id("unknown")?.or_else(|| self.kinds.iter().position(|&kind| kind == kind::UNKNOWN));
        file["model"] = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| &self.tokens[id]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": self.kinds.contains(&kind::BYTE), "ignore_merges": false,
            "vocab": self.ids(|index| self.tokens[index].clone()), "merges": merges
        });
        Ok(file)
    }

    /// WordPiece as GGUF writes it: `▁` before what begins a word, nothing before what continues one.
    fn word_piece(&self) -> Result<Value> {
        let text = |index: usize| {
            let token = &self.tokens[index];
            match (self.kinds[index], token.strip_prefix('▁')) {
                (kind::CONTROL | kind::UNKNOWN | kind::USER_DEFINED, _) => token.clone(),
                (_, Some(start)) => start.to_owned(),
                (_, None) => format!("##{token}"),
            }
        };
        let unknown = self.id("unknown")?.map_or("[UNK]", |id| &self.tokens[id]);
        let mut file = self.file([true, true])?;
        file["normalizer"] = json!({
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true
        });
        file["pre_tokenizer"] = json!({"type": "BertPreTokenizer"});
        file["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        file["model"] = json!({
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": self.ids(text)
        });
        Ok(file)
    }

    fn unigram(&self) -> Result<Value> {
        let vocab: Vec<Value> =
            self.tokens.iter().zip(&self.scores).map(|(token, score)| json!([token, score])).collect();
        let unknown = self.id("unknown")?.or_else(|| self.kinds.iter().position(|&kind| kind == kind::UNKNOWN));
        let mut file = self.file([self.flag("add_bos_token", false)?, self.flag("add_eos_token", true)?])?;
        let map = self.gguf.value(&key("precompiled_charsmap")).and_then(|map| map.as_array()?.to_bytes());
        if let Some(map) = map {
            file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(&map)});
        }
        let scheme = if self.flag("add_space_prefix", true)? { "always" } else { "never" };
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
        file["pre_tokenizer"] = match self.flag("remove_extra_whitespaces", false)? {
            true => json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}),
            false => metaspace.clone(),
        };
        file["decoder"] = metaspace;
        file["model"] = json!({
            "type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": self.kinds.contains(&kind::BYTE)
        });
        Ok(file)
    }
}
