//! Tables of text: a JSON object per line, and CSV.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{BLOCK_BYTES, Chunk, refuse_nul};
use crate::{Error, Result};

/// A line of JSON may be this long; beyond that the file is taken for something else.
const MAX_LINE: u64 = 256 << 20;

/// The objects of a `.jsonl` file.
pub(super) struct JsonObjects {
    path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    line: u64,
    offset: u64,
}

impl JsonObjects {
    pub(super) fn new(path: &Path, reader: Box<dyn Read>) -> Self {
        let reader = BufReader::with_capacity(BLOCK_BYTES / 4, reader);
        Self { path: path.to_path_buf(), reader, line: 0, offset: 0 }
    }

    /// The next object and its line.
    pub(super) fn next_object(&mut self) -> Result<Option<(String, Map<String, Value>)>> {
        loop {
            let mut bytes = Vec::new();
            let mut limited = (&mut self.reader).take(MAX_LINE);
            let read = limited.read_until(b'\n', &mut bytes).map_err(|error| Error::io("read", &self.path, error))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let start = self.offset;
            self.offset += read as u64;
            refuse_nul(&self.path, &bytes, start)?;
            if !bytes.trim_ascii().is_empty() {
                let place = format!("line {}", self.line);
                return self.parse(&bytes, start, &place).map(|object| Some((place, object)));
            }
        }
    }

    fn parse(&self, bytes: &[u8], start: u64, place: &str) -> Result<Map<String, Value>> {
        if let Err(error) = std::str::from_utf8(bytes) {
            let place = format!("byte {} ({place})", start + error.valid_up_to() as u64);
            return Err(Error::NotUtf8 { path: self.path.clone(), place });
        }
        let row: Value = serde_json::from_slice(bytes).map_err(|error| {
            Error::malformed(&self.path, place, format!("invalid JSON at column {}: {error}", error.column()))
        })?;
        match row {
            Value::Object(row) => Ok(row),
            _ => Err(Error::malformed(&self.path, place, "expected a JSON object, such as {\"text\": \"…\"}")),
        }
    }
}

/// The entries of a `.json` file, which is a list.
pub(super) fn json_list(path: &Path, mut reader: Box<dyn Read>) -> Result<Vec<Value>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| Error::io("read", path, error))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Array(entries)) => Ok(entries),
        Ok(other) => {
            let reason =
                format!("expected a list of objects but found {}; one object per line is .jsonl", kind_name(&other));
            Err(Error::malformed(path, "the file", reason))
        }
        Err(error) => Err(Error::malformed(path, format!("line {}", error.line()), format!("invalid JSON: {error}"))),
    }
}

/// The texts of a `.json` file.
pub(super) fn json_texts(path: &Path, reader: Box<dyn Read>, column: &str) -> Result<Vec<Result<Chunk>>> {
    let text = |(index, entry): (usize, Value)| {
        let place = format!("entry {}", index + 1);
        match entry.get(column) {
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(Ok(whole(text.clone()))),
            _ => {
                let names = entry.as_object().into_iter().flat_map(|entry| entry.keys().map(String::as_str));
                Some(Err(Error::no_column(path, place, column, names)))
            }
        }
    };
    Ok(json_list(path, reader)?.into_iter().enumerate().filter_map(text).collect())
}

/// The texts of a `.jsonl` file.
pub(super) struct JsonLines {
    objects: JsonObjects,
    column: String,
    done: bool,
}

impl JsonLines {
    pub(super) fn new(path: &Path, reader: Box<dyn Read>, column: String) -> Self {
        Self { objects: JsonObjects::new(path, reader), column, done: false }
    }

    fn text(&mut self) -> Result<Option<String>> {
        while let Some((place, mut row)) = self.objects.next_object()? {
            let path = &self.objects.path;
            match row.remove(&self.column) {
                Some(Value::String(text)) if text.is_empty() => {}
                Some(Value::String(text)) => return Ok(Some(text)),
                Some(Value::Null) => {}
                Some(other) => {
                    let reason = format!("column '{}' should be a string but is {}", self.column, kind_name(&other));
                    return Err(Error::malformed(path, place, reason));
                }
                None => return Err(Error::no_column(path, place, &self.column, row.keys().map(String::as_str))),
            }
        }
        Ok(None)
    }
}

pub(super) fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Iterator for JsonLines {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.text().map(|text| text.map(whole)).transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The texts of a `.csv` file with a header line.
pub(super) struct Csv {
    path: PathBuf,
    reader: csv::Reader<Box<dyn Read>>,
    column: usize,
    done: bool,
}

impl Csv {
    pub(super) fn new(path: &Path, reader: Box<dyn Read>, column: &str) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new().from_reader(reader);
        let header = reader.byte_headers().map_err(|error| csv_error(path, error))?.clone();
        let names: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim_start_matches('\u{feff}').to_string())
            .collect();
        let Some(column) = names.iter().position(|name| name == column) else {
            return Err(Error::no_column(path, "the header", column, names.iter().map(String::as_str)));
        };
        Ok(Self { path: path.to_path_buf(), reader, column, done: false })
    }

    fn text(&mut self) -> Result<Option<String>> {
        let mut record = csv::ByteRecord::new();
        loop {
            if !self.reader.read_byte_record(&mut record).map_err(|error| csv_error(&self.path, error))? {
                return Ok(None);
            }
            let position = record.position().map_or((0, 0), |at| (at.line(), at.byte()));
            let bytes = record.get(self.column).unwrap_or_default();
            refuse_nul(&self.path, bytes, position.1)?;
            let text = std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8 {
                path: self.path.clone(),
                place: format!("the row that starts at line {} (byte {})", position.0, position.1),
            })?;
            if !text.is_empty() {
                return Ok(Some(text.to_string()));
            }
        }
    }
}

impl Iterator for Csv {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.text().map(|text| text.map(whole)).transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

pub(super) fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => Error::io("read", path, error),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => Error::malformed(
            path,
            format!("line {line}"),
            format!("expected {expected_len} columns as in the header, found {len}"),
        ),
        other => Error::malformed(path, format!("line {line}"), format!("{other:?}")),
    }
}

pub(super) fn whole(text: String) -> Chunk {
    Chunk { text, ends_document: true }
}
