//! Whole rows of tables, for examples of several fields.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::columns::{JsonObjects, csv_error, json_list, kind_name};
use super::parquet::ParquetRows;
use super::{Kind, Source, refuse_nul};
use crate::{Error, Result};

/// One row of a `.json`, `.jsonl`, `.csv` or `.parquet` file.
#[derive(Debug, Clone)]
pub struct Record {
    path: Arc<Path>,
    place: String,
    values: Map<String, Value>,
}

impl Record {
    /// A field as it stands. That it is missing is an error with file, line and the fields there are.
    pub fn value(&self, field: &str) -> Result<&Value> {
        let keys = || self.values.keys().map(String::as_str);
        self.values.get(field).ok_or_else(|| Error::no_field(&self.path, &self.place, field, keys()))
    }

    /// Whether there is such a field, and something in it.
    pub fn has(&self, field: &str) -> bool {
        self.values.get(field).is_some_and(|value| !value.is_null())
    }

    /// All fields.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// A text that is not empty.
    pub fn text(&self, field: &str) -> Result<String> {
        match self.value(field)? {
            Value::String(text) if !text.is_empty() => Ok(text.clone()),
            Value::String(_) => Err(self.refuse(format!("'{field}' is empty"))),
            other => Err(self.refuse(format!("'{field}' should be a string but is {}", kind_name(other)))),
        }
    }

    /// A name: a text, or a whole number or truth value as text.
    pub fn name(&self, field: &str) -> Result<String> {
        match self.value(field)? {
            Value::String(_) => self.text(field),
            other => name(other).ok_or_else(|| {
                self.refuse(format!("'{field}' should be a name or a whole number but is {}", kind_name(other)))
            }),
        }
    }

    /// A number, or a text that is one.
    pub fn number(&self, field: &str) -> Result<f64> {
        let value = self.value(field)?;
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let finite = number.filter(|number: &f64| number.is_finite());
        finite.ok_or_else(|| self.refuse(format!("'{field}' should be a number but is {value}")))
    }

    /// A list of names; a text is split at spaces.
    pub fn list(&self, field: &str) -> Result<Vec<String>> {
        let value = self.value(field)?;
        let list = match value {
            Value::String(text) => Some(text.split_whitespace().map(str::to_string).collect()),
            Value::Array(items) => items.iter().map(name).collect(),
            _ => None,
        };
        list.ok_or_else(|| self.refuse(format!("'{field}' should be a list of names but is {}", kind_name(value))))
    }

    /// An error about this row.
    pub fn refuse(&self, reason: impl ToString) -> Error {
        Error::malformed(&self.path, &self.place, reason)
    }
}

fn name(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

impl Source {
    /// The rows of a table, in order. An error ends them; so does a file that is no table or has no row.
    pub fn records(&self) -> Records {
        Records { path: self.path().into(), rows: None, count: 0, source: Some(self.clone()) }
    }
}

/// Iterator over [`Record`]s.
pub struct Records {
    path: Arc<Path>,
    rows: Option<Rows>,
    count: u64,
    /// The file, until it is opened; and `None` with no rows after the end.
    source: Option<Source>,
}

enum Rows {
    Json(JsonObjects),
    /// The objects of a list, and how many it had.
    List(std::vec::IntoIter<Value>),
    Csv {
        reader: csv::Reader<Box<dyn std::io::Read>>,
        names: Vec<String>,
    },
    Parquet(Box<ParquetRows>),
}

impl Rows {
    fn open(source: &Source) -> Result<Rows> {
        let path = source.path();
        Ok(match source.kind {
            Kind::Text => {
                let reason = "a plain text has no fields; expected .json, .jsonl, .csv or .parquet";
                return Err(Error::malformed(path, "the file", reason));
            }
            Kind::JsonLines => Rows::Json(JsonObjects::new(path, source.reader()?)),
            Kind::Json => Rows::List(json_list(path, source.reader()?)?.into_iter()),
            Kind::Csv => {
                let mut reader = csv::ReaderBuilder::new().from_reader(source.reader()?);
                let header = reader.byte_headers().map_err(|error| csv_error(path, error))?;
                let name = |name: &[u8]| String::from_utf8_lossy(name).trim_start_matches('\u{feff}').to_string();
                let names = header.iter().map(name).collect();
                Rows::Csv { reader, names }
            }
            Kind::Parquet => Rows::Parquet(Box::new(ParquetRows::new(path)?)),
        })
    }

    fn next(&mut self, path: &Path, count: u64) -> Result<Option<(String, Map<String, Value>)>> {
        match self {
            Rows::Json(objects) => objects.next_object(),
            Rows::List(rows) => match rows.next() {
                None => Ok(None),
                Some(Value::Object(row)) => Ok(Some((format!("entry {}", count + 1), row))),
                Some(other) => {
                    let reason = format!("expected an object but found {}", kind_name(&other));
                    Err(Error::malformed(path, format!("entry {}", count + 1), reason))
                }
            },
            Rows::Parquet(rows) => Ok(rows.next_row()?.map(|row| (format!("row {}", count + 1), row))),
            Rows::Csv { reader, names } => {
                let mut record = csv::ByteRecord::new();
                if !reader.read_byte_record(&mut record).map_err(|error| csv_error(path, error))? {
                    return Ok(None);
                }
                let (line, byte) = record.position().map_or((0, 0), |at| (at.line(), at.byte()));
                let place = format!("line {line}");
                let mut row = Map::new();
                for (name, value) in names.iter().zip(&record) {
                    refuse_nul(path, value, byte)?;
                    let text = std::str::from_utf8(value)
                        .map_err(|_| Error::NotUtf8 { path: path.to_path_buf(), place: place.clone() })?;
                    row.insert(name.clone(), text.into());
                }
                Ok(Some((place, row)))
            }
        }
    }
}

impl Records {
    fn read(&mut self) -> Result<Option<Record>> {
        if let Some(source) = self.source.take() {
            self.rows = Some(Rows::open(&source)?);
        }
        let Some(rows) = &mut self.rows else { return Ok(None) };
        match rows.next(&self.path, self.count)? {
            Some((place, values)) => {
                self.count += 1;
                Ok(Some(Record { path: self.path.clone(), place, values }))
            }
            None if self.count == 0 => Err(Error::Empty { path: PathBuf::from(&*self.path) }),
            None => Ok(None),
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.read().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.rows = None;
        }
        next
    }
}
