//! What each token is in the middle of a text, as bytes.

use crate::bytes::char_to_byte;
use crate::{Error, Result, Tokenizer};
use serde_json::Value;

/// One thing that a decoder does to a token.
enum Change {
    /// Every character stands for a byte.
    ByteLevel,
    /// `<0x0A>` stands for a byte.
    ByteFallback,
    /// One text stands for another.
    Replace(String, String),
}

impl Tokenizer {
    /// The bytes that each id adds to a text; `None` for special tokens, for the unknown, and for ids without a token.
    ///
    /// An error where a token's text depends on its neighbours, as with WordPiece.
    pub fn token_bytes(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let decoder = serde_json::to_value(self.inner.get_decoder()).unwrap_or_default();
        let changes = changes(&decoder)?;
        let unknown = self.unk_id();
        let of = |id: u32| {
            let token = self.id_to_token(id).filter(|_| !self.is_special(id) && unknown != Some(id))?;
            let is_added = self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
            let bytes = if is_added { token.into_bytes() } else { apply(&changes, token) };
            Some(bytes).filter(|bytes| !bytes.is_empty())
        };
        Ok((0..self.vocab_size() as u32).map(of).collect())
    }
}

fn changes(decoder: &Value) -> Result<Vec<Change>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match decoder["type"].as_str().unwrap_or("none") {
        "Sequence" => {
            let parts = decoder["decoders"].as_array().into_iter().flatten();
            Ok(parts.map(changes).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        }
        "ByteLevel" => Ok(vec![Change::ByteLevel]),
        "ByteFallback" => Ok(vec![Change::ByteFallback]),
        "Metaspace" => Ok(vec![Change::Replace(text(&decoder["replacement"]), " ".into())]),
        "Replace" if decoder["pattern"]["String"].is_string() => {
            Ok(vec![Change::Replace(text(&decoder["pattern"]["String"]), text(&decoder["content"]))])
        }
        // Both concern the text as a whole: its pieces are joined, its first space is dropped.
        "Fuse" | "Strip" => Ok(Vec::new()),
        other => Err(Error::Setting(format!(
            "the text of a token depends on its neighbours (decoder {other}), so that it has no bytes of its own"
        ))),
    }
}

fn apply(changes: &[Change], mut token: String) -> Vec<u8> {
    for change in changes {
        match change {
            Change::ByteLevel => {
                // As the library does: a token that is not in the alphabet of bytes is text.
                let bytes: Option<Vec<u8>> = token.chars().map(char_to_byte).collect();
                return bytes.unwrap_or(token.into_bytes());
            }
            Change::ByteFallback => {
                if let Some(byte) = byte_of(&token) {
                    return vec![byte];
                }
            }
            Change::Replace(from, to) => token = token.replace(from, to),
        }
    }
    token.into_bytes()
}

fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Special, TrainConfig, TrainKind, train};

    #[test]
    fn the_bytes_of_the_tokens_together_are_the_text() {
        let text = "the fox and the goose, 狐狸 é\n";
        for kind in [TrainKind::ByteBpe, TrainKind::Char, TrainKind::Unigram] {
            let config = TrainConfig { vocab_size: 300, ..TrainConfig::new(kind) };
            let tokenizer = train([Ok::<_, std::io::Error>(text.to_owned())], &config, &mut |_| {}).unwrap();
            let bytes = tokenizer.token_bytes().unwrap();
            let ids = tokenizer.encode(text, Special::Ignore).unwrap();
            let all: Vec<u8> = ids.iter().filter_map(|id| bytes[*id as usize].clone()).flatten().collect();
            let joined = String::from_utf8(all).unwrap();
            // Unigram writes every text with a space before and spaces for line breaks.
            let same = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(same(&joined), same(text), "{kind:?}");
            assert!(kind == TrainKind::Unigram || joined == text);
            let specials = (0..bytes.len()).filter(|id| tokenizer.is_special(*id as u32));
            assert!(specials.clone().count() > 1 && specials.clone().all(|id| bytes[id].is_none()));
        }
    }

    #[test]
    fn tokens_of_sentencepiece_are_text_or_single_bytes() {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
            {"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
            "normalizer":null,"pre_tokenizer":null,"post_processor":null,
            "decoder":{"type":"Sequence","decoders":[
              {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},
              {"type":"Strip","content":" ","start":1,"stop":0}]},
            "model":{"type":"BPE","dropout":null,"unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,
              "vocab":{"<unk>":0,"<0xE7>":1,"▁the":2,"<0x0>":3},"merges":[]}}"#;
        let bytes = Tokenizer::from_bytes(json.as_bytes()).unwrap().token_bytes().unwrap();
        assert_eq!(bytes, [None, Some(vec![0xe7]), Some(b" the".to_vec()), Some(b"<0x0>".to_vec())]);
    }

    #[test]
    fn word_pieces_have_no_bytes_of_their_own() {
        let config = TrainConfig { vocab_size: 60, ..TrainConfig::new(TrainKind::WordPiece) };
        let tokenizer = train([Ok::<_, std::io::Error>("the fox".to_owned())], &config, &mut |_| {}).unwrap();
        assert!(tokenizer.token_bytes().unwrap_err().to_string().contains("WordPiece"));
    }
}
