//! Texts that mean the same, and texts that do not: for embeddings.

use loam_tokenizer::{Special, Tokenizer};

use super::{Labelled, Wrap};
use crate::Result;
use crate::source::Source;

/// Which fields of a file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContrastiveFields {
    /// A text.
    pub anchor: String,
    /// A text that means the same.
    pub positive: String,
    /// A text that looks alike and means something else, where the file has one.
    pub negative: Option<String>,
}

impl Default for ContrastiveFields {
    fn default() -> Self {
        Self { anchor: "anchor".into(), positive: "positive".into(), negative: None }
    }
}

/// A text, its paraphrase, and perhaps a text that is none.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Triplet {
    /// A text.
    pub anchor: String,
    /// A text that means the same.
    pub positive: String,
    /// A text that means something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
}

impl Triplet {
    fn texts(&self) -> impl Iterator<Item = &String> {
        [&self.anchor, &self.positive].into_iter().chain(&self.negative)
    }
}

/// Reads all rows.
pub fn read(sources: &[Source], fields: &ContrastiveFields) -> Result<Vec<Triplet>> {
    let mut rows = Vec::new();
    for record in sources.iter().flat_map(Source::records) {
        let record = record?;
        let negative = fields.negative.as_ref().map(|field| record.text(field)).transpose()?;
        rows.push(Triplet { anchor: record.text(&fields.anchor)?, positive: record.text(&fields.positive)?, negative });
    }
    Ok(rows)
}

/// Encodes rows; an example's texts are anchor, positive and, where there is one, negative. They share a row of a batch,
/// so each may have its equal part of `seq_len` tokens. Says how many texts lost their end.
pub fn encode(rows: &[Triplet], tokenizer: &Tokenizer, seq_len: usize) -> Result<(Vec<Labelled<()>>, u64)> {
    let wrap = Wrap::of(tokenizer)?;
    let (mut examples, mut truncated) = (Vec::with_capacity(rows.len()), 0);
    for row in rows {
        let most = seq_len / row.texts().count();
        let mut texts = Vec::new();
        for text in row.texts() {
            let (text, cut) = wrap.single(&tokenizer.encode(text, Special::Ignore)?, most);
            truncated += u64::from(cut);
            texts.push(text);
        }
        examples.push(Labelled { texts, label: () });
    }
    Ok((examples, truncated))
}
