//! How text is cut into words before the merges, by the names that llama.cpp gives to it.

use crate::fast::scan::{DIGITS_1, DIGITS_3, GPT2};
use serde_json::{Value, json};

/// One way to cut: patterns, applied one after the other to what the ones before left.
pub(super) struct Pre {
    /// The first is the one that is written.
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// Whether a word of the vocabulary is taken as it is.
    pub(super) ignore_merges: bool,
    /// Whether its original normalises to NFC.
    pub(super) nfc: bool,
}

const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const ONE_DIGIT: &str = r"\p{N}";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const fn pre(names: &'static [&'static str], patterns: &'static [&'static str]) -> Pre {
    Pre { names, patterns, ignore_merges: false, nfc: false }
}

static TABLE: &[Pre] = &[
    pre(
        &["gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "jais", "exaone4"],
        &[GPT2],
    ),
    Pre {
        ignore_merges: true,
        ..pre(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "glm4"], &[DIGITS_3])
    },
    pre(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[DIGITS_3]),
    Pre { nfc: true, ..pre(&["qwen2", "deepseek-r1-qwen", "megrez"], &[DIGITS_1]) },
    pre(&["stablelm2", "hunyuan", "grok-2", "solar-open"], &[DIGITS_1]),
    Pre { nfc: true, ..pre(&["qwen35"], &[QWEN35]) },
    pre(
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[ONE_DIGIT, GPT2],
    ),
    pre(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Pre { ignore_merges: true, ..pre(&["tekken"], &[TEKKEN]) },
    pre(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], &[GPT_4O]),
    pre(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_3]),
    pre(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
    pre(&["default"], &[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

/// The way of that name.
pub(super) fn by_name(name: &str) -> Option<&'static Pre> {
    TABLE.iter().find(|pre| pre.names.contains(&name))
}

/// Every name.
pub(super) fn names() -> String {
    TABLE.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
}

/// The name of the way that a `tokenizer.json` cuts byte-level text, if it has one.
pub(super) fn name_of(pre_tokenizer: &Value, ignore_merges: bool, nfc: bool) -> Option<&'static str> {
    let patterns = patterns_of(pre_tokenizer)?;
    let fits = |pre: &&Pre| pre.patterns == patterns && pre.ignore_merges == ignore_merges;
    let found = TABLE.iter().filter(fits).find(|pre| pre.nfc == nfc).or_else(|| TABLE.iter().find(fits));
    found.map(|pre| pre.names[0])
}

/// The patterns of a pre-tokenizer that ends with the byte-level alphabet.
fn patterns_of(pre_tokenizer: &Value) -> Option<Vec<&str>> {
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let (last, steps) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != json!(false) {
        return None;
    }
    let pattern = |step: &Value| match step["type"].as_str()? {
        "Split" if step["behavior"] == "Isolated" && step["invert"] == json!(false) => {
            step["pattern"]["Regex"].as_str().map(str::to_owned)
        }
        "Digits" if step["individual_digits"] == json!(true) => Some(ONE_DIGIT.to_owned()),
        _ => None,
    };
    let mut patterns = steps.iter().map(pattern).collect::<Option<Vec<String>>>()?;
    if last.get("use_regex").is_none_or(|value| value == &json!(true)) {
        patterns.push(GPT2.to_owned());
    }
    // Only known patterns matter.
    let known = TABLE.iter().flat_map(|pre| pre.patterns).copied();
    let known: Vec<&'static str> = known.collect();
    patterns.iter().map(|pattern| known.iter().find(|known| *known == pattern).copied()).collect()
}

impl Pre {
    /// The pre-tokenizer of a `tokenizer.json`.
    pub(super) fn to_json(&self) -> Value {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        // The byte level's own pattern is that of GPT-2.
        let (patterns, use_regex) = match self.patterns {
            [first @ .., last] if *last == GPT2 => (first, true),
            all => (all, false),
        };
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Value> = patterns.iter().map(split).collect();
        if steps.is_empty() {
            return byte_level(use_regex);
        }
        steps.push(byte_level(use_regex));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_recognised_by_what_it_writes() {
        for pre in TABLE {
            assert_eq!(name_of(&pre.to_json(), pre.ignore_merges, pre.nfc), Some(pre.names[0]));
            for name in pre.names {
                assert!(std::ptr::eq(by_name(name).unwrap(), pre), "{name} is given twice");
            }
        }
        assert_eq!(name_of(&json!({"type": "Whitespace"}), false, false), None);
    }
}
