//! Tokenizers in GGUF files. Their keys describe less than a `tokenizer.json` does; where they cannot say all of it, a
//! file that is written holds the `tokenizer.json` beside them, under the key that the format has for that.

mod base64;
mod pre;
mod read;
mod write;

use crate::{Result, SpecialTokens, Tokenizer};
use loam_formats::Gguf;

/// The key of a whole `tokenizer.json`.
const HUGGING_FACE: &str = "tokenizer.huggingface.json";
/// The key of the chat template.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// Tokens that end a turn, which llama.cpp stops at wherever a vocabulary has them.
const ENDS_OF_TURN: [&str; 8] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "<|eom_id|>"];

/// What a token is, by its number in `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

impl Tokenizer {
    /// The tokenizer of a GGUF file, with the roles of its special tokens.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let origin = gguf.path().display().to_string();
        let tokenizer = match gguf.text(HUGGING_FACE)? {
            Some(text) => Self::parse(text.as_bytes(), &origin)?,
            None => Self::parse(read::tokenizer_json(gguf)?.to_string().as_bytes(), &origin)?,
        };
        let roles = roles(gguf, &tokenizer)?;
        tokenizer.with_special(roles)
    }

    /// The chat template of a GGUF file, if it has one.
    pub fn gguf_chat_template(gguf: &Gguf) -> Result<Option<String>> {
        Ok(gguf.text(CHAT_TEMPLATE)?.map(str::to_owned))
    }
}

/// The special tokens that a file names by their ids; the usual ones where it names none.
fn roles(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<SpecialTokens> {
    let id = |role: &str| -> Result<Option<u32>> {
        let id = gguf.size(&key(&format!("{role}_token_id")))?.and_then(|id| u32::try_from(id).ok());
        Ok(id.filter(|&id| tokenizer.id_to_token(id).is_some()))
    };
    let token = |role: &str| Ok::<_, crate::Error>(id(role)?.and_then(|id| tokenizer.id_to_token(id)));
    let mut special = SpecialTokens {
        bos: token("bos")?,
        eos: token("eos")?,
        pad: token("padding")?,
        unk: token("unknown")?,
        also_stop: vec![],
    };
    if special == SpecialTokens::default() {
        special = tokenizer.special().clone();
    }
    let ends =
        ENDS_OF_TURN.iter().filter_map(|text| tokenizer.token_to_id(text)).filter(|&id| tokenizer.is_special(id));
    let mut stops: Vec<u32> = ends.chain(id("eot")?).chain(id("eom")?).collect();
    let eos = special.eos.as_deref().and_then(|text| tokenizer.token_to_id(text));
    stops.retain(|&id| Some(id) != eos);
    stops.sort_unstable();
    stops.dedup();
    special.also_stop = stops;
    Ok(special)
}
