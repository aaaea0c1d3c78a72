//! LLaMA-Factory's `dataset_info.json`: data sets by name, each with its file and the names of its fields.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Table;
use super::layout::{Format, Layout, Tags};
use crate::source;
use crate::{Error, Result};

/// The entries of a `dataset_info.json`.
#[derive(Debug, Clone)]
pub struct DatasetInfo {
    path: PathBuf,
    entries: Map<String, Value>,
}

/// Our name of a column, and the file's.
const COLUMNS: [(&str, &str, Option<Format>); 12] = [
    ("instruction", "prompt", Some(Format::Alpaca)),
    ("input", "query", Some(Format::Alpaca)),
    ("output", "response", Some(Format::Alpaca)),
    ("history", "history", Some(Format::Alpaca)),
    ("conversations", "messages", Some(Format::Sharegpt)),
    ("messages", "messages", Some(Format::Sharegpt)),
    ("system", "system", None),
    ("tools", "tools", None),
    ("chosen", "chosen", None),
    ("rejected", "rejected", None),
    ("label", "kto_tag", None),
    ("completion", "response", None),
];

impl DatasetInfo {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        let malformed = |reason: String| Error::malformed(path, "the file", reason);
        match serde_json::from_str(&text) {
            Ok(Value::Object(entries)) => Ok(Self { path: path.into(), entries }),
            Ok(_) => Err(malformed("expected an object with one entry per data set".into())),
            Err(error) => Err(malformed(format!("invalid JSON: {error}"))),
        }
    }

    /// The files of a data set, with their layout; the fields in `columns` have other names than the file says.
    pub fn tables(&self, name: &str, columns: &BTreeMap<String, String>) -> Result<Vec<Table>> {
        let mut layout = self.layout(name)?;
        layout.columns.extend(columns.clone());
        self.files(name)?.iter().map(|file| Table::open(file, &layout)).collect()
    }

    /// The files of a data set: one, or all of a directory.
    pub fn files(&self, name: &str) -> Result<Vec<PathBuf>> {
        let entry = self.entry(name)?;
        let Some(file) = entry.get("file_name").and_then(Value::as_str) else {
            let reason = "it names no `file_name`; a data set of a hub has to be downloaded first";
            return Err(self.refuse(name, reason));
        };
        let path = self.path.parent().unwrap_or(Path::new("")).join(file);
        if !path.is_dir() {
            return Ok(vec![path]);
        }
        let found = source::find(&[format!("{}/*", path.display())])?;
        Ok(found.iter().map(|source| source.path().into()).collect())
    }

    fn entry(&self, name: &str) -> Result<&Map<String, Value>> {
        let known = || self.entries.keys().map(String::as_str);
        let entry = self.entries.get(name).ok_or_else(|| Error::no_field(&self.path, "the file", name, known()))?;
        entry.as_object().ok_or_else(|| self.refuse(name, "it should be an object"))
    }

    fn layout(&self, name: &str) -> Result<Layout> {
        let entry = self.entry(name)?;
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let format = match text("formatting") {
            None | Some("alpaca") => Format::Alpaca,
            Some("sharegpt") => Format::Sharegpt,
            Some("openai") => Format::Messages,
            Some(other) => {
                return Err(
                    self.refuse(name, format!("its formatting is `{other}`; known are alpaca, sharegpt and openai"))
                );
            }
        };
        let map = |key: &str| entry.get(key).and_then(Value::as_object);
        let named = |values: Option<&Map<String, Value>>, key: &str| {
            values.and_then(|values| values.get(key)).and_then(Value::as_str).map(str::to_owned)
        };
        let mut layout = Layout { format: Some(format), ..Layout::default() };
        for (own, theirs, of) in COLUMNS {
            if let Some(column) = named(map("columns"), theirs)
                && of.is_none_or(|of| of == format || (of, format) == (Format::Sharegpt, Format::Messages))
            {
                layout.columns.insert(own.into(), column);
            }
        }
        let tags = map("tags");
        let default = Tags::default();
        let tag = |key: &str, default: String| named(tags, key).unwrap_or(default);
        layout.tags = Tags {
            role: tag("role_tag", default.role),
            content: tag("content_tag", default.content),
            user: tag("user_tag", default.user),
            assistant: tag("assistant_tag", default.assistant),
            observation: tag("observation_tag", default.observation),
            function: tag("function_tag", default.function),
            system: tag("system_tag", default.system),
        };
        Ok(layout)
    }

    fn refuse(&self, name: &str, reason: impl std::fmt::Display) -> Error {
        Error::malformed(&self.path, format!("`{name}`"), reason.to_string())
    }
}
