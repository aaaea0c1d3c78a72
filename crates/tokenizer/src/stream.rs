//! Decoding token by token.

use crate::Tokenizer;

/// Turns ids into text as they come. Text is handed out as soon as it is certain, and never a part of a character.
///
/// What a token means may depend on its neighbours (half a character, a space that a decoder strips), so the stream
/// decodes a short window of recent ids and hands out what is new in it.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Ids whose text may still change, after some that give them their context.
    window: Vec<u32>,
    /// How many of them are context.
    context: usize,
    /// Text of the context alone.
    known: String,
    /// Steps in a row that ended inside of the same character.
    held: usize,
    /// Bytes of text before that character.
    whole: usize,
}

/// Stands in decoded text for bytes that are not (yet) a whole character.
const BROKEN: char = '\u{fffd}';
/// Bytes that never become a character are given up after this many tokens: no character is longer.
const LONGEST_CHARACTER: usize = 4;

impl<'a> DecodeStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), context: 0, known: String::new(), held: 0, whole: 0 }
    }

    /// Takes the next id and returns the text that it makes certain, if any. An id outside of the vocabulary has no
    /// text (models may have more rows than the tokenizer has tokens).
    pub fn step(&mut self, id: u32) -> Option<String> {
        self.window.push(id);
        let text = self.tokenizer.decode_known(&self.window, self.skip_special);
        if text.ends_with(BROKEN) {
            // A token may end one character and begin the next.
            let whole = text.trim_end_matches(BROKEN).len();
            self.held = if whole > self.whole { 1 } else { self.held + 1 };
            self.whole = whole;
            if self.held < LONGEST_CHARACTER {
                return None;
            }
        }
        self.held = 0;
        self.emit(&text)
    }

    /// Ends the stream and returns what was held back: bytes that never became a whole character show as `U+FFFD`.
    pub fn finish(mut self) -> Option<String> {
        let text = self.tokenizer.decode_known(&self.window, self.skip_special);
        self.emit(&text)
    }

    fn emit(&mut self, text: &str) -> Option<String> {
        let new = text.get(common_prefix(&self.known, text)..).filter(|new| !new.is_empty())?.to_owned();
        // The ids just shown become the context of the next ones.
        self.window.drain(..self.context);
        self.context = self.window.len();
        self.known = self.tokenizer.decode_known(&self.window, self.skip_special);
        self.whole = self.known.trim_end_matches(BROKEN).len();
        Some(new)
    }
}

/// Length in bytes of the longest common beginning that ends between characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}
