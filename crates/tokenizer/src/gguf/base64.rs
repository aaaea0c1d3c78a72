//! Bytes as text (RFC 4648), as `tokenizer.json` holds its tables.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(super) fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for letter in 0..4 {
            let is_padding = letter > chunk.len();
            let index = (word >> (18 - 6 * letter) & 63) as usize;
            out.push(if is_padding { '=' } else { char::from(LETTERS[index]) });
        }
    }
    out
}

/// The bytes; `None` where the text has other letters.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let word = chunk.iter().try_fold(0_u32, |word, byte| {
            let index = LETTERS.iter().position(|letter| letter == byte)?;
            Some(word << 6 | u32::try_from(index).ok()?)
        })?;
        let count = chunk.len() * 6 / 8;
        out.extend_from_slice(&(word << (6 * (4 - chunk.len()))).to_be_bytes()[1..=count]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back() {
        assert_eq!(encode(b"Man"), "TWFu");
        assert_eq!(encode(b"Ma"), "TWE=");
        assert_eq!(encode(b"M"), "TQ==");
        let bytes: Vec<u8> = (0..=255).rev().collect();
        for length in 0..bytes.len() {
            assert_eq!(decode(&encode(&bytes[..length])).as_deref(), Some(&bytes[..length]));
        }
        assert_eq!(decode("a?=="), None);
    }
}
