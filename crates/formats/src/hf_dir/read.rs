//! Opening a model directory.

use super::{CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, Weights};
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A model directory whose `config.json` was read. Weights are opened on demand.
#[derive(Debug)]
pub struct HfDir {
    path: PathBuf,
    config: Value,
    config_text: String,
}

impl HfDir {
    /// Opens a directory that holds at least a `config.json` with a JSON object.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            let hint = if path.is_file() {
                "a model is a directory with config.json and model.safetensors; this is a file"
            } else {
                "give the path of a directory with config.json and model.safetensors"
            };
            return Err(Error::Missing { path: path.join(CONFIG), hint: hint.into() });
        }
        let file = path.join(CONFIG);
        let config_text = read_text(&file)?.ok_or_else(|| Error::Missing {
            path: file.clone(),
            hint: format!("{} is not a model directory: it needs a config.json", path.display()),
        })?;
        let config = parse_object(&file, &config_text)?;
        Ok(Self { path: path.to_path_buf(), config, config_text })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of `config.json`: an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `config.json` as it is written, for copying it without a change.
    pub fn config_text(&self) -> &str {
        &self.config_text
    }

    /// The content of `generation_config.json`, if there is one.
    pub fn generation_config(&self) -> Result<Option<Value>> {
        self.json(GENERATION_CONFIG)
    }

    /// The content of any JSON file of the directory that holds an object, if the file exists.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let file = self.path.join(name);
        read_text(&file)?.map(|text| parse_object(&file, &text)).transpose()
    }

    /// Opens the weights: one file, or all shards that the index lists.
    pub fn weights(&self) -> Result<Weights> {
        Weights::open(&self.path)
    }

    /// The path of `tokenizer.json`, if the file exists.
    pub fn tokenizer_json_path(&self) -> Option<PathBuf> {
        Some(self.path.join(TOKENIZER)).filter(|p| p.is_file())
    }

    /// The chat template: from a file of its own, else from `tokenizer_config.json` (where a list of named templates
    /// stands for its `default` one).
    pub fn chat_template(&self) -> Result<Option<String>> {
        if let Some(text) = read_text(&self.path.join(CHAT_TEMPLATE))? {
            return Ok(Some(text));
        }
        let Some(config) = self.json(TOKENIZER_CONFIG)? else { return Ok(None) };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(match config.get("chat_template") {
            Some(Value::Array(named)) => {
                named.iter().find(|t| t["name"] == "default").and_then(|t| text(&t["template"]))
            }
            Some(value) => text(value),
            None => None,
        })
    }
}

/// A text file's content; `None` if it does not exist.
fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            Err(Error::Json { path: path.to_path_buf(), reason: "the file is not UTF-8 text".into() })
        }
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// JSON whose outermost value is an object.
pub(super) fn parse_object(path: &Path, text: &str) -> Result<Value> {
    let fail = |reason: String| Error::Json { path: path.to_path_buf(), reason };
    let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| fail(e.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(fail("expected an object { … } at the top".into())) }
}
