//! The alphabet of byte-level tokenizers: every byte written as one printable character.
//!
//! Printable Latin-1 characters stand for themselves; the others take the code points from 256 on, in order.

fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The character that stands for a byte.
pub(crate) fn byte_to_char(byte: u8) -> char {
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + before).expect("code points 256 to 323 are characters")
}

/// The byte that a character stands for, if any.
pub(crate) fn char_to_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..256 => Some(code as u8).filter(|b| printable(*b)),
        code => (0..=255).filter(|b| !printable(*b)).nth(code as usize - 256),
    }
}

/// All 256 characters, in the order of their code points.
pub(crate) fn alphabet() -> Vec<char> {
    let mut chars: Vec<char> = (0..=255).map(byte_to_char).collect();
    chars.sort_unstable();
    chars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own_the_reference_s() {
        assert!((0..=255).all(|b| char_to_byte(byte_to_char(b)) == Some(b)));
        assert_eq!([b' ', b'\n', b'A', 0xad].map(byte_to_char), ['Ġ', 'Ċ', 'A', 'Ń']);
        let reference = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(alphabet().iter().all(|c| reference.contains(c)) && reference.len() == 256);
        assert_eq!([char_to_byte(' '), char_to_byte('你')], [None, None]);
    }
}
