//! Texts, or pairs of texts, with a class, several classes or a number.

use loam_tokenizer::{Special, Tokenizer};

use super::{Labelled, Wrap};
use crate::source::Source;
use crate::{Error, Result};

/// What kind of label a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelKind {
    /// One class.
    Class,
    /// Any number of classes.
    Classes,
    /// A number.
    Value,
}

/// The label of an encoded text.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// The class.
    Class(u32),
    /// Every class that applies, in ascending order.
    Classes(Vec<u32>),
    /// The number.
    Value(f32),
}

/// Which fields of a file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassifyFields {
    /// The text.
    pub text: String,
    /// A second text, where pairs are classified.
    pub text_pair: Option<String>,
    /// The label: a name or number, for [`LabelKind::Classes`] a list of them.
    pub label: String,
}

impl Default for ClassifyFields {
    fn default() -> Self {
        Self { text: "text".into(), text_pair: None, label: "label".into() }
    }
}

/// A row of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifyRow {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// The names of its classes; exactly one for [`LabelKind::Class`], none for [`LabelKind::Value`].
    pub classes: Vec<String>,
    /// The number, for [`LabelKind::Value`].
    pub value: Option<f32>,
}

/// Reads all rows. A field that is missing or of another kind is an error with file and line.
pub fn read(sources: &[Source], fields: &ClassifyFields, kind: LabelKind) -> Result<Vec<ClassifyRow>> {
    let mut rows = Vec::new();
    for record in sources.iter().flat_map(Source::records) {
        let record = record?;
        let (classes, value) = match kind {
            LabelKind::Class => (vec![record.name(&fields.label)?], None),
            LabelKind::Classes => (record.list(&fields.label)?, None),
            LabelKind::Value => (Vec::new(), Some(record.number(&fields.label)? as f32)),
        };
        let text_pair = fields.text_pair.as_ref().map(|field| record.text(field)).transpose()?;
        rows.push(ClassifyRow { text: record.text(&fields.text)?, text_pair, classes, value });
    }
    Ok(rows)
}

/// The names of classes; a class is the index of its name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSet {
    names: Vec<String>,
}

impl LabelSet {
    /// The different names, sorted: numbers by value, others by letter.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>) -> Self {
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        names.sort_by(|a, b| (a.parse::<i64>().ok(), a).cmp(&(b.parse::<i64>().ok(), b)));
        names.dedup();
        Self { names }
    }

    /// The names in this order, as in a model's `id2label`.
    pub fn from_names(names: Vec<String>) -> Self {
        Self { names }
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The class of a name. An unknown name is an error that lists the known ones.
    pub fn id(&self, name: &str) -> Result<u32> {
        let found = self.names.iter().position(|known| known == name);
        found
            .map(|id| id as u32)
            .ok_or_else(|| Error::UnknownLabel { label: name.into(), known: self.names.join(", ").into() })
    }
}

/// Encodes rows, and says how many lost their end because they are longer than `seq_len`.
pub fn encode(
    rows: &[ClassifyRow],
    labels: &LabelSet,
    kind: LabelKind,
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<(Vec<Labelled<Label>>, u64)> {
    let wrap = Wrap::of(tokenizer)?;
    let (mut examples, mut truncated) = (Vec::with_capacity(rows.len()), 0);
    for row in rows {
        let first = tokenizer.encode(&row.text, Special::Ignore)?;
        let (text, cut) = match &row.text_pair {
            None => wrap.single(&first, seq_len),
            Some(second) => wrap.pair(&first, &tokenizer.encode(second, Special::Ignore)?, seq_len),
        };
        truncated += u64::from(cut);
        let mut classes = row.classes.iter().map(|name| labels.id(name)).collect::<Result<Vec<u32>>>()?;
        classes.sort_unstable();
        let label = match (kind, row.value, &classes[..]) {
            (LabelKind::Value, Some(value), _) => Label::Value(value),
            (LabelKind::Class, _, [class]) => Label::Class(*class),
            _ => Label::Classes(classes),
        };
        examples.push(Labelled { texts: vec![text], label });
    }
    Ok((examples, truncated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_numbered_by_value_or_by_letter() {
        let set = |names: &[&str]| LabelSet::of(&names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        assert_eq!(set(&["10", "2", "2", "0"]).names(), ["0", "2", "10"]);
        assert_eq!(set(&["neg", "pos", "neg"]).names(), ["neg", "pos"]);
        assert_eq!(set(&["neg", "pos"]).id("pos").unwrap(), 1);
        let error = set(&["neg", "pos"]).id("Pos").unwrap_err();
        assert_eq!(error.to_string(), "'Pos' is none of the labels: neg, pos");
    }
}
