//! What a model sees of a text: tokens with their ids, and which of them it learns to write. For `loam data inspect`.

use loam_tokenizer::Tokenizer;
use serde::Serialize;

use crate::loader::{CausalBatch, IGNORED};

/// One position of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The token as text; what is only half a character shows as the replacement character.
    pub text: String,
    /// Its id.
    pub id: u32,
    /// True if the model learns to write this token.
    pub trained: bool,
    /// The document within the row; `None` if the row is not packed.
    pub segment: Option<u32>,
}

/// The positions of one row of a batch.
///
/// A token is trained if it is the target of the position before it. The padding at the end is left out.
pub fn positions(batch: &CausalBatch, row: usize, tokenizer: &Tokenizer) -> Vec<Position> {
    let range = row * batch.seq_len..(row + 1) * batch.seq_len;
    let (tokens, targets) = (&batch.tokens[range.clone()], &batch.targets[range.clone()]);
    let segments = batch.segments.as_ref().map(|segments| &segments[range]);
    (0..batch.lengths[row])
        .map(|i| {
            let same = |segments: &&[u32]| i > 0 && segments[i - 1] == segments[i];
            let follows = i > 0 && segments.as_ref().is_none_or(same);
            let text = tokenizer.decode(&[tokens[i]], false).unwrap_or_else(|_| format!("<{}>", tokens[i]));
            Position {
                text,
                id: tokens[i],
                trained: follows && targets[i - 1] != IGNORED,
                segment: segments.map(|segments| segments[i]),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::{Example, Loader, LoaderConfig, Mode};
    use loam_tokenizer::{Special, TrainConfig, TrainKind, train};

    #[test]
    fn exactly_the_marked_tokens_are_shown_as_trained() {
        let text = ["ab cd".to_string()];
        let config = TrainConfig::new(TrainKind::Char);
        let tokenizer = train(text.iter().cloned().map(Ok::<_, loam_tokenizer::Error>), &config, &mut |_| {}).unwrap();
        let ids = tokenizer.encode("ab cd", Special::Ignore).unwrap();
        let example = Example { trained: vec![false, false, true, true, false], ids };
        let config = LoaderConfig { batch: 1, seq_len: 8, seed: 0, mode: Mode::Packed };
        let loader = Loader::for_examples(vec![example.clone()], config).unwrap();
        let shown = positions(&loader.batch(0), 0, &tokenizer);
        let texts: Vec<&str> = shown.iter().map(|position| position.text.as_str()).collect();
        assert_eq!(texts, ["a", "b", " ", "c", "d"]);
        assert!(shown.iter().map(|position| position.trained).eq(example.trained));
        assert!(shown.iter().all(|position| position.segment == Some(0)));
    }
}
