//! The special tokens around a text or a pair of texts.

use loam_tokenizer::{Special, Tokenizer};

use super::Text;
use crate::Result;

/// What a model expects before, between and after texts: `[CLS] a [SEP] b [SEP]` for BERT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wrap {
    /// Starts a text.
    pub before: Vec<u32>,
    /// Between two texts; counted to the first.
    pub between: Vec<u32>,
    /// Ends a text.
    pub after: Vec<u32>,
}

impl Wrap {
    /// What a tokenizer adds around a text. Between two texts stands what ends one, twice where texts start with `<s>` and
    /// end with `</s>` (RoBERTa).
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let added = tokenizer.encode("", Special::Add)?;
        let eos = tokenizer.eos_id();
        let (before, after) = match added[..] {
            [only] if Some(only) == eos => (vec![], vec![only]),
            [] => (vec![], vec![]),
            [first, ref rest @ ..] => (vec![first], rest.to_vec()),
        };
        let named = |ids: &[u32], name: &str| ids.iter().any(|&id| tokenizer.token_to_id(name) == Some(id));
        let twice = named(&before, "<s>") && named(&after, "</s>");
        let between = if twice { [&after[..], &after].concat() } else { after.clone() };
        Ok(Self { before, between, after })
    }

    /// One text of at most `most` tokens, and whether it lost its end.
    pub fn single(&self, tokens: &[u32], most: usize) -> (Text, bool) {
        let room = most.saturating_sub(self.before.len() + self.after.len());
        let kept = &tokens[..tokens.len().min(room)];
        let tokens_with_ends = [&self.before[..], kept, &self.after].concat();
        let text = Text { token_types: vec![0; tokens_with_ends.len()], tokens: tokens_with_ends };
        (text, kept.len() < tokens.len())
    }

    /// Two texts of at most `most` tokens together, and whether one lost its end; the longer one loses first.
    pub fn pair(&self, first: &[u32], second: &[u32], most: usize) -> (Text, bool) {
        let room = most.saturating_sub(self.around_pair());
        let half = room / 2;
        let (a, b) = (first.len(), second.len());
        let kept = match a + b <= room {
            true => (a, b),
            false if a <= half => (a, room - a),
            false if b <= room - half => (room - b, b),
            false => (half, room - half),
        };
        let left = [&self.before[..], &first[..kept.0], &self.between].concat();
        let right = [&second[..kept.1], &self.after].concat();
        let token_types = [vec![0; left.len()], vec![1; right.len()]].concat();
        (Text { tokens: [left, right].concat(), token_types }, kept != (a, b))
    }

    /// How many tokens are added to two texts.
    pub fn around_pair(&self) -> usize {
        self.before.len() + self.between.len() + self.after.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bert() -> Wrap {
        Wrap { before: vec![1], between: vec![2], after: vec![2] }
    }

    #[test]
    fn a_pair_has_a_type_per_sentence() {
        let (text, cut) = bert().pair(&[7, 8], &[9], 10);
        assert_eq!((text.tokens, cut), (vec![1, 7, 8, 2, 9, 2], false));
        assert_eq!(text.token_types, [0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn the_longer_of_two_texts_loses_its_end_first() {
        let kept = |a: usize, b: usize, most| {
            let (text, cut) = bert().pair(&vec![7; a], &vec![9; b], most);
            let count = |token| text.tokens.iter().filter(|&&t| t == token).count();
            assert!(text.tokens.len() <= most);
            (count(7), count(9), cut)
        };
        assert_eq!(kept(3, 3, 9), (3, 3, false));
        assert_eq!(kept(2, 9, 9), (2, 4, true));
        assert_eq!(kept(9, 2, 9), (4, 2, true));
        assert_eq!(kept(9, 9, 9), (3, 3, true));
        assert_eq!(bert().single(&[7; 5], 5), (Text { tokens: vec![1, 7, 7, 7, 2], token_types: vec![0; 5] }, true));
    }
}
