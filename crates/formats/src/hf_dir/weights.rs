//! All tensors of a model, whatever files they lie in.

use super::read::parse_object;
use super::{WEIGHTS, WEIGHTS_INDEX};
use crate::error::nearest;
use crate::{Error, Result, SafeTensors, TensorView};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The weights of a model: one file or several, looked up by tensor name.
#[derive(Debug)]
pub struct Weights {
    source: PathBuf,
    shards: Vec<SafeTensors>,
    by_name: BTreeMap<String, usize>,
}

impl Weights {
    /// Opens `model.safetensors`, or all files that `model.safetensors.index.json` lists, in a directory; or, given a
    /// file, that file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            return Ok(Self::single(SafeTensors::open(path)?));
        }
        let (single, index) = (path.join(WEIGHTS), path.join(WEIGHTS_INDEX));
        if single.is_file() {
            return Ok(Self::single(SafeTensors::open(&single)?));
        }
        if index.is_file() {
            return Self::sharded(path, index);
        }
        let pickled = path.join("pytorch_model.bin").is_file() || path.join("pytorch_model.bin.index.json").is_file();
        let hint = if pickled {
            "the directory holds pickled PyTorch weights; save the model as safetensors from Python first \
             (model.save_pretrained(dir, safe_serialization=True))"
        } else {
            "a model directory needs model.safetensors, or model.safetensors.index.json with its shards"
        };
        Err(Error::Missing { path: single, hint: hint.into() })
    }

    fn single(file: SafeTensors) -> Self {
        let by_name = file.names().map(|name| (name.to_owned(), 0)).collect();
        Self { source: file.path().to_path_buf(), shards: vec![file], by_name }
    }

    fn sharded(dir: &Path, index: PathBuf) -> Result<Self> {
        let map = read_index(&index)?;
        let files: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let mut shards = Vec::with_capacity(files.len());
        for file in &files {
            let path = dir.join(file);
            if !path.is_file() {
                let count = map.values().filter(|f| f == file).count();
                let hint = format!("{WEIGHTS_INDEX} says that it holds {count} tensors: download or copy it too");
                return Err(Error::Missing { path, hint });
            }
            shards.push(SafeTensors::open(&path)?);
        }
        let mut by_name = BTreeMap::new();
        for (name, file) in &map {
            let shard = files.iter().position(|f| f == file).expect("every file of the map is in the set");
            if !shards[shard].contains(name) {
                let elsewhere = shards.iter().position(|s| s.contains(name));
                let place = elsewhere.map_or("it is in no shard".into(), |i| {
                    format!("it is in {}", shards[i].path().file_name().unwrap_or_default().display())
                });
                let reason = format!("tensor '{name}' is said to be in {file}, but {place}");
                return Err(Error::Inconsistent { path: index, reason });
            }
            by_name.insert(name.clone(), shard);
        }
        for shard in &shards {
            if let Some(name) = shard.names().find(|name| !by_name.contains_key(*name)) {
                let file = shard.path().file_name().unwrap_or_default().display();
                let reason = format!("tensor '{name}' of {file} is not listed");
                return Err(Error::Inconsistent { path: index, reason });
            }
        }
        Ok(Self { source: index, shards, by_name })
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Whether a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// One tensor; the error names the most similar name.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        match self.by_name.get(name) {
            Some(&shard) => self.shards[shard].get(name),
            None => {
                let nearest = nearest(name, self.names());
                Err(Error::NoSuchTensor { path: self.source.clone(), name: name.to_owned(), nearest })
            }
        }
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.by_name.get(name).map(|&shard| self.shards[shard].path())
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &SafeTensors> {
        self.shards.iter()
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        let bytes =
            |s: &SafeTensors| -> u64 { s.names().filter_map(|n| s.get(n).ok()).map(|v| v.bytes.len() as u64).sum() };
        self.shards.iter().map(bytes).sum()
    }
}

/// Tensor name to file name. A file name must stay inside of the directory.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let inconsistent = |reason: String| Error::Inconsistent { path: path.to_path_buf(), reason };
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::Json { path: path.to_path_buf(), reason: format!("the file is not UTF-8 text: {e}") })?;
    let Value::Object(map) = &parse_object(path, &text)?["weight_map"] else {
        return Err(inconsistent("expected an object 'weight_map' from tensor names to file names".into()));
    };
    if map.is_empty() {
        return Err(inconsistent("'weight_map' lists no tensor".into()));
    }
    let mut files = BTreeMap::new();
    for (name, file) in map {
        let plain = |f: &&str| matches!(Path::new(f).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        let file = file.as_str().filter(plain);
        let file = file.ok_or_else(|| inconsistent(format!("'weight_map.{name}' is not a plain file name")))?;
        files.insert(name.clone(), file.to_owned());
    }
    Ok(files)
}
