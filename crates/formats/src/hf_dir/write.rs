//! Writing a model directory.

use super::{CONFIG, GENERATION_CONFIG, TOKENIZER_FILES, WEIGHTS, WEIGHTS_INDEX};
use crate::safetensors::{self, TensorOut, pt_metadata};
use crate::{Error, Result, atomic};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Writes the files of a model directory, each whole or not at all.
///
/// For a directory that appears as a whole, write inside of [`atomic::replace_dir`].
#[derive(Debug)]
pub struct HfWriter {
    path: PathBuf,
}

impl HfWriter {
    /// Takes a directory to write into; it is created if need be, and files it already holds stay unless replaced.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `config.json`.
    pub fn config(&self, config: &Value) -> Result<()> {
        self.json(CONFIG, config)
    }

    /// Writes `generation_config.json`.
    pub fn generation_config(&self, config: &Value) -> Result<()> {
        self.json(GENERATION_CONFIG, config)
    }

    /// Writes any JSON file: two spaces of indentation and a final newline, as Python's library does.
    pub fn json(&self, name: &str, value: &Value) -> Result<()> {
        self.text(name, &format!("{value:#}\n"))
    }

    /// Writes any text file as it is given; a name may have a directory in front.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        }
        atomic::write_file(path, text.as_bytes())
    }

    /// Copies the tokenizer's files of another model directory, as they are. Returns the names of those it found.
    pub fn copy_tokenizer_files(&self, from: impl AsRef<Path>) -> Result<Vec<&'static str>> {
        self.copy_files(from.as_ref(), &TOKENIZER_FILES)
    }

    /// Copies `generation_config.json` of another model directory, as it is. Says whether there was one.
    pub fn copy_generation_config(&self, from: impl AsRef<Path>) -> Result<bool> {
        Ok(!self.copy_files(from.as_ref(), &[GENERATION_CONFIG])?.is_empty())
    }

    fn copy_files(&self, from: &Path, names: &[&'static str]) -> Result<Vec<&'static str>> {
        let mut copied = Vec::new();
        for &name in names {
            let file = from.join(name);
            if file.is_file() {
                let bytes = fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
                atomic::write_file(self.path.join(name), &bytes)?;
                copied.push(name);
            }
        }
        Ok(copied)
    }

    /// Writes the weights: one file, or shards of at most `max_shard_bytes` (a larger tensor gets a shard of its own)
    /// filled in the order given, and their index. Weight files of an earlier save are removed afterwards.
    pub fn weights<'a>(
        &self,
        tensors: impl IntoIterator<Item = TensorOut<'a>>,
        max_shard_bytes: Option<u64>,
    ) -> Result<()> {
        let tensors: Vec<_> = tensors.into_iter().collect();
        let total: u64 = tensors.iter().map(|t| t.byte_len() as u64).sum();
        let parameters: u64 = tensors.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum();
        let mut shards = split(tensors, max_shard_bytes.unwrap_or(u64::MAX));
        let mut written = BTreeSet::new();
        if shards.len() <= 1 {
            let only = shards.pop().unwrap_or_default();
            safetensors::write(self.path.join(WEIGHTS), &pt_metadata(), only)?;
            written.insert(WEIGHTS.to_owned());
        } else {
            let count = shards.len();
            let mut names = Vec::new();
            for (i, shard) in shards.into_iter().enumerate() {
                let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
                names.extend(shard.iter().map(|t| (t.name.clone(), Value::from(file.as_str()))));
                safetensors::write(self.path.join(&file), &pt_metadata(), shard)?;
                written.insert(file);
            }
            names.sort_by(|a, b| a.0.cmp(&b.0));
            if let Some(w) = names.windows(2).find(|w| w[0].0 == w[1].0) {
                return Err(Error::DuplicateTensor { path: self.path.join(WEIGHTS_INDEX), name: w[0].0.clone() });
            }
            let map: Map<String, Value> = names.into_iter().collect();
            let metadata = json!({"total_parameters": parameters, "total_size": total});
            self.json(WEIGHTS_INDEX, &json!({"metadata": metadata, "weight_map": map}))?;
            written.insert(WEIGHTS_INDEX.to_owned());
        }
        self.remove_stale(&written)
    }

    /// A leftover `model.safetensors` beside new shards (or the reverse) would be read in their stead.
    fn remove_stale(&self, written: &BTreeSet<String>) -> Result<()> {
        let io = |e| Error::io("read", &self.path, e);
        for entry in fs::read_dir(&self.path).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_weight_file(&name) && !written.contains(&name) {
                fs::remove_file(entry.path()).map_err(|e| Error::io("remove", &entry.path(), e))?;
            }
        }
        Ok(())
    }
}

fn is_weight_file(name: &str) -> bool {
    let shard = || {
        let (i, n) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
        Some([i, n].iter().all(|s| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())))
    };
    name == WEIGHTS || name == WEIGHTS_INDEX || shard().unwrap_or(false)
}

/// Fills shards greedily, keeping the order.
fn split<'a>(tensors: Vec<TensorOut<'a>>, limit: u64) -> Vec<Vec<TensorOut<'a>>> {
    let mut shards: Vec<Vec<TensorOut<'a>>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let bytes = tensor.byte_len() as u64;
        match shards.last_mut() {
            Some(shard) if bytes <= room => shard.push(tensor),
            _ => {
                room = limit;
                shards.push(vec![tensor]);
            }
        }
        room = room.saturating_sub(bytes);
    }
    shards
}
