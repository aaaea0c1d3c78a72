//! Questions whose answer is a part of a passage: where it starts and ends, in windows of tokens.

use std::ops::Range;

use loam_tokenizer::{Special, Tokenizer};
use serde_json::Value;

use super::{Labelled, Wrap};
use crate::source::{Record, Source};
use crate::{Error, Result};

/// Which fields of a file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QaFields {
    /// The passage.
    pub context: String,
    /// The question.
    pub question: String,
    /// The answers as in SQuAD, `{"text": […], "answer_start": […]}` with starts counted in characters; an empty list
    /// means that the passage does not say.
    pub answers: String,
}

impl Default for QaFields {
    fn default() -> Self {
        Self { context: "context".into(), question: "question".into(), answers: "answers".into() }
    }
}

/// The right answers of a question, in the layout of SQuAD.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Answers {
    /// The words of each answer.
    pub text: Vec<String>,
    /// Where each starts in the passage, in characters.
    pub answer_start: Vec<usize>,
}

/// A question about a passage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct QaRow {
    /// The passage.
    pub context: String,
    /// The question.
    pub question: String,
    /// Its answers.
    pub answers: Answers,
}

impl QaRow {
    /// The bytes of the passage that the first answer is, or why there are none: the passage does not have it there.
    fn answer(&self) -> Result<Option<Range<usize>>, String> {
        let (Some(text), Some(&start)) = (self.answers.text.first(), self.answers.answer_start.first()) else {
            return Ok(None);
        };
        let byte = self.context.char_indices().map(|(byte, _)| byte).nth(start);
        match byte.filter(|&byte| !text.is_empty() && self.context[byte..].starts_with(text.as_str())) {
            Some(byte) => Ok(Some(byte..byte + text.len())),
            None => Err(format!("the answer '{text}' does not stand at character {start} of the passage")),
        }
    }
}

/// Reads all questions. An answer that does not stand where it should is an error with file and line.
pub fn read(sources: &[Source], fields: &QaFields) -> Result<Vec<QaRow>> {
    let mut rows = Vec::new();
    for record in sources.iter().flat_map(Source::records) {
        let record = record?;
        let answers = answers(&record, &fields.answers)?;
        let row = QaRow { context: record.text(&fields.context)?, question: record.text(&fields.question)?, answers };
        row.answer().map_err(|reason| record.refuse(reason))?;
        rows.push(row);
    }
    Ok(rows)
}

fn answers(record: &Record, field: &str) -> Result<Answers> {
    let reason =
        || format!("'{field}' should be {{\"text\": […], \"answer_start\": […]}} with lists of the same length");
    let value = match record.value(field)? {
        // A table without nested columns may hold it as text.
        Value::String(text) => serde_json::from_str(text).map_err(|_| record.refuse(reason()))?,
        other => other.clone(),
    };
    let answers: Answers = serde_json::from_value(value).map_err(|_| record.refuse(reason()))?;
    let complete = answers.text.len() == answers.answer_start.len();
    if complete { Ok(answers) } else { Err(record.refuse(reason())) }
}

/// Positions of the answer's first and last token within its text; both 0 (the first token, `[CLS]`) where the window
/// has not got the whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AnswerSpan {
    /// Its first token.
    pub start: usize,
    /// Its last token.
    pub end: usize,
}

/// Which part of which passage an example is, to turn positions back into words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QaWindow {
    /// Index of the question.
    pub row: usize,
    /// Position of the passage's first token within the text.
    pub first: usize,
    /// Per token of the passage in this window its bytes in the passage.
    pub offsets: Vec<(usize, usize)>,
}

impl QaWindow {
    /// The bytes of the passage that the tokens at positions `start..=end` of the text are; `None` unless both belong to
    /// the passage and are in order.
    pub fn bytes(&self, start: usize, end: usize) -> Option<Range<usize>> {
        let (start, end) = (start.checked_sub(self.first)?, end.checked_sub(self.first)?);
        let range = self.offsets.get(start)?.0..self.offsets.get(end)?.1;
        (start <= end && range.start < range.end).then_some(range)
    }
}

/// Encodes questions as `[CLS] question [SEP] window [SEP]`, a passage that does not fit `seq_len` in several windows that
/// share `doc_stride` tokens. Returns the examples and, one for each, where it comes from. It is an error if a question
/// leaves no more than `doc_stride` tokens of room for its passage.
pub fn encode(
    rows: &[QaRow],
    tokenizer: &Tokenizer,
    seq_len: usize,
    doc_stride: usize,
) -> Result<(Vec<Labelled<AnswerSpan>>, Vec<QaWindow>)> {
    let wrap = Wrap::of(tokenizer)?;
    let (mut examples, mut windows) = (Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        let question = tokenizer.encode(&row.question, Special::Ignore)?;
        let passage = tokenizer.encode_with_offsets(&row.context, Special::Ignore)?;
        let answer = row.answer().map_err(|reason| Error::NothingLeft { reason })?;
        let room = seq_len.saturating_sub(question.len() + wrap.around_pair());
        if room <= doc_stride {
            let reason = format!("question {} leaves {room} of {seq_len} tokens to its passage", index + 1);
            return Err(Error::NothingLeft { reason });
        }
        let first = wrap.before.len() + question.len() + wrap.between.len();
        for window in cut(passage.ids.len(), room, doc_stride) {
            let offsets = trimmed(&row.context, &passage.offsets[window.clone()]);
            let found = answer.as_ref().and_then(|answer| place(answer, &offsets));
            let label = found.map(|(start, end)| AnswerSpan { start: first + start, end: first + end });
            let (text, _) = wrap.pair(&question, &passage.ids[window], seq_len);
            examples.push(Labelled { texts: vec![text], label: label.unwrap_or_default() });
            windows.push(QaWindow { row: index, first, offsets });
        }
    }
    Ok((examples, windows))
}

/// Overlapping windows of at most `room` of `len` tokens.
fn cut(len: usize, room: usize, overlap: usize) -> Vec<Range<usize>> {
    let mut windows = Vec::new();
    let mut start = 0;
    loop {
        let end = len.min(start + room);
        windows.push(start..end);
        if end == len {
            return windows;
        }
        start = end - overlap;
    }
}

/// Offsets without the space that a token may begin with.
fn trimmed(context: &str, offsets: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let trim = |&(start, end): &(usize, usize)| {
        let text = context.get(start..end).unwrap_or_default();
        (start + text.len() - text.trim_start().len(), end)
    };
    offsets.iter().map(trim).collect()
}

/// The tokens that hold an answer, counted within the window.
fn place(answer: &Range<usize>, offsets: &[(usize, usize)]) -> Option<(usize, usize)> {
    let start = offsets.iter().position(|&(_, end)| end > answer.start)?;
    let end = offsets.iter().rposition(|&(start, _)| start < answer.end)?;
    let whole = offsets[start].0 <= answer.start && offsets[end].1 >= answer.end;
    whole.then_some((start, end))
}
