//! Words with tags: a label for the first token of each word.

use loam_tokenizer::{Special, Tokenizer};

use super::classify::LabelSet;
use super::squad::is_cjk;
use super::{Labelled, Wrap};
use crate::Result;
use crate::loader::IGNORED;
use crate::source::Source;

/// Which fields of a file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagFields {
    /// The words of a sentence: a list, or one string with spaces.
    pub words: String,
    /// A tag per word, such as `B-PER`.
    pub tags: String,
}

impl Default for TagFields {
    fn default() -> Self {
        Self { words: "tokens".into(), tags: "tags".into() }
    }
}

/// A sentence with a tag per word.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TaggedWords {
    /// The words.
    #[serde(rename = "tokens")]
    pub words: Vec<String>,
    /// A tag per word.
    pub tags: Vec<String>,
}

/// Reads all sentences. It is an error if one has not as many tags as words.
pub fn read(sources: &[Source], fields: &TagFields) -> Result<Vec<TaggedWords>> {
    let mut rows = Vec::new();
    for record in sources.iter().flat_map(Source::records) {
        let record = record?;
        let (words, tags) = (record.list(&fields.words)?, record.list(&fields.tags)?);
        if words.len() != tags.len() {
            let reason = format!("{} words in '{}' but {} in '{}'", words.len(), fields.words, tags.len(), fields.tags);
            return Err(record.refuse(reason));
        }
        rows.push(TaggedWords { words, tags });
    }
    Ok(rows)
}

/// The text of some words, and where each lies in it: with spaces between them, except between Chinese characters.
pub fn join(words: &[String]) -> (String, Vec<std::ops::Range<usize>>) {
    let (mut text, mut places) = (String::new(), Vec::with_capacity(words.len()));
    for word in words {
        let chinese = text.chars().next_back().is_some_and(is_cjk) && word.chars().next().is_some_and(is_cjk);
        if !text.is_empty() && !chinese {
            text.push(' ');
        }
        places.push(text.len()..text.len() + word.len());
        text.push_str(word);
    }
    (text, places)
}

/// Encodes sentences: the first token of a word has the word's label, every other [`IGNORED`]. Says how many sentences
/// lost their end because they are longer than `seq_len`.
pub fn encode(
    rows: &[TaggedWords],
    labels: &LabelSet,
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<(Vec<Labelled<Vec<i32>>>, u64)> {
    let wrap = Wrap::of(tokenizer)?;
    let (mut examples, mut truncated) = (Vec::with_capacity(rows.len()), 0);
    for row in rows {
        let (sentence, places) = join(&row.words);
        let encoded = tokenizer.encode_with_offsets(&sentence, Special::Ignore)?;
        let (text, cut) = wrap.single(&encoded.ids, seq_len);
        truncated += u64::from(cut);
        let mut label = vec![IGNORED; text.tokens.len()];
        let kept = text.tokens.len().saturating_sub(wrap.before.len() + wrap.after.len());
        let mut word = 0;
        for (token, &(start, end)) in encoded.offsets[..kept].iter().enumerate() {
            // A token may begin with the space before its word, so the word is the first that it reaches into.
            while word < places.len() && places[word].end <= start {
                word += 1;
            }
            if word < places.len() && end > places[word].start && start < end {
                label[wrap.before.len() + token] = labels.id(&row.tags[word])? as i32;
                word += 1;
            }
        }
        examples.push(Labelled { texts: vec![text], label });
    }
    Ok((examples, truncated))
}
