//! Words of a few bytes as numbers.
//!
//! Most time in counting and encoding goes into looking words up, and most of that into fetching the stored word to
//! compare it. Nearly all words are short: packed into a number they are compared inside of the table itself.

/// The longest word that is packed; one byte remains for the length.
const LONGEST: usize = 15;

/// A short word as a number, different for different words.
pub(crate) fn pack(word: &[u8]) -> Option<u128> {
    if word.len() > LONGEST {
        return None;
    }
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    bytes[LONGEST] = word.len() as u8;
    Some(u128::from_le_bytes(bytes))
}

/// The word that was packed.
pub(crate) fn unpack(packed: u128) -> Box<[u8]> {
    let bytes = packed.to_le_bytes();
    bytes[..usize::from(bytes[LONGEST])].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_they_were_and_long_ones_are_not_taken() {
        for word in ["", "a", "a\0", "\0\0", " straightforwar", "你好吗你好"] {
            assert_eq!(&*unpack(pack(word.as_bytes()).unwrap()), word.as_bytes());
        }
        assert_ne!(pack(b"a"), pack(b"a\0"));
        assert_eq!(pack(b"sixteen bytes !!"), None);
    }
}
