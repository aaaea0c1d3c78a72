//! The `tokenizer.json` of each kind that can be trained.

use super::TrainConfig;
use super::bpe::Bpe;
use serde_json::{Map, Value, json};

/// The token for the unknown, of character-level and Unigram tokenizers.
pub(super) const UNKNOWN: &str = "<unk>";
/// The token for the unknown, of WordPiece.
pub(super) const WORD_PIECE_UNKNOWN: &str = "[UNK]";
/// The tokens that end a text, of the kinds that do not frame it.
const ENDS: [&str; 2] = ["<|endoftext|>", "</s>"];
/// Marks a piece that continues a word.
pub(super) const WORD_PIECE_PREFIX: &str = "##";

pub(super) fn byte_bpe(bpe: &Bpe, config: &TrainConfig, pattern: &str) -> Value {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let mut file = common(config);
    file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, byte_level]});
    file["decoder"] = byte_level;
    file["model"] = bpe_model(bpe.tokens(), json!(bpe.merges()), Value::Null);
    file
}

/// BPE without merges and without a split: every character by itself, spaces and line breaks included.
pub(super) fn chars(tokens: &[String], config: &TrainConfig) -> Value {
    let mut file = common(config);
    file["decoder"] = json!({"type": "Fuse"});
    file["model"] = bpe_model(tokens, json!([]), json!(UNKNOWN));
    file
}

pub(super) fn word_piece(tokens: &[String], config: &TrainConfig) -> Value {
    let mut file = common(config);
    file["normalizer"] = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
        "lowercase": true
    });
    file["pre_tokenizer"] = json!({"type": "BertPreTokenizer"});
    file["decoder"] = json!({"type": "WordPiece", "prefix": WORD_PIECE_PREFIX, "cleanup": true});
    file["post_processor"] = around(config, "[CLS]", "[SEP]");
    file["model"] = json!({
        "type": "WordPiece", "unk_token": WORD_PIECE_UNKNOWN, "continuing_subword_prefix": WORD_PIECE_PREFIX,
        "max_input_chars_per_word": 100, "vocab": vocabulary(tokens)
    });
    file
}

/// Unigram over text whose spaces are written `▁`; `model` comes from the library's trainer.
pub(super) fn unigram(model: Value, config: &TrainConfig) -> Value {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let mut file = common(config);
    file["normalizer"] = json!({"type": "NFKC"});
    file["pre_tokenizer"] = metaspace.clone();
    file["decoder"] = metaspace;
    file["model"] = model;
    file
}

fn common(config: &TrainConfig) -> Value {
    let added = |(id, content): (usize, &String)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": config.special_tokens.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": null, "post_processor": ending(config), "decoder": null, "model": null
    })
}

fn bpe_model(tokens: &[String], merges: Value, unknown: Value) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocabulary(tokens), "merges": merges
    })
}

fn vocabulary(tokens: &[String]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
}

/// A post-processor that puts one token before and one after a text, if both are among the special tokens.
fn around(config: &TrainConfig, before: &str, after: &str) -> Value {
    let is_special = |token: &str| config.special_tokens.iter().any(|t| t == token);
    if !is_special(before) || !is_special(after) {
        return Value::Null;
    }
    let (start, end) = (|kind| special(before, kind), |kind| special(after, kind));
    let single = vec![start(0), sequence("A", 0), end(0)];
    let pair = [single.clone(), vec![sequence("B", 1), end(1)]].concat();
    template(config, &[before, after], single, pair)
}

/// A post-processor that puts the end token after a text, if the configuration wants it.
fn ending(config: &TrainConfig) -> Value {
    let end = config.special_tokens.iter().find(|token| ENDS.contains(&token.as_str()));
    match end.filter(|_| config.ends_texts) {
        None => Value::Null,
        Some(end) => {
            let single = vec![sequence("A", 0), special(end, 0)];
            let pair = [single.clone(), vec![sequence("B", 0), special(end, 0)]].concat();
            template(config, &[end], single, pair)
        }
    }
}

fn template(config: &TrainConfig, tokens: &[&str], single: Vec<Value>, pair: Vec<Value>) -> Value {
    let entry = |token: &&str| {
        let id = config.special_tokens.iter().position(|t| t == token);
        ((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
    };
    let tokens: Map<String, Value> = tokens.iter().map(entry).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

fn special(token: &str, kind: usize) -> Value {
    json!({"SpecialToken": {"id": token, "type_id": kind}})
}

fn sequence(name: &str, kind: usize) -> Value {
    json!({"Sequence": {"id": name, "type_id": kind}})
}
