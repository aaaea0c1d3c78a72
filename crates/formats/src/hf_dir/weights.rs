//! All tensors of a model, whatever files they lie in.

use super::read::parse_object;
use super::{TORCH_WEIGHTS, TORCH_WEIGHTS_INDEX, WEIGHTS, WEIGHTS_INDEX};
use crate::error::nearest;
use crate::map::{Bytes, SharedBytes};
use crate::{Error, Mapped, Result, SafeTensors, TensorView, TorchFile};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The weights of a model: one file or several, looked up by tensor name.
#[derive(Debug)]
pub struct Weights {
    source: PathBuf,
    shards: Vec<Shard>,
    by_name: BTreeMap<String, usize>,
}

/// One file of weights.
#[derive(Debug)]
enum Shard {
    Safe(SafeTensors),
    Torch(TorchFile),
}

impl Shard {
    /// Opens a file as what it is.
    fn open(path: &Path) -> Result<Self> {
        let bytes = Mapped::open(path)?;
        let is_torch = TorchFile::is_one(path, &bytes);
        let (path, bytes) = (path.to_path_buf(), Bytes::Mapped(bytes));
        Ok(match is_torch {
            true => Self::Torch(TorchFile::parse(path, bytes)?),
            false => Self::Safe(SafeTensors::parse(path, bytes)?),
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Safe(file) => file.path(),
            Self::Torch(file) => file.path(),
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Self::Safe(file) => file.names().collect(),
            Self::Torch(file) => file.names().collect(),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Safe(file) => file.contains(name),
            Self::Torch(file) => file.contains(name),
        }
    }

    fn get(&self, name: &str) -> Result<TensorView<'_>> {
        match self {
            Self::Safe(file) => file.get(name),
            Self::Torch(file) => file.get(name),
        }
    }

    fn total_bytes(&self) -> u64 {
        match self {
            Self::Safe(file) => file.names().filter_map(|n| file.get(n).ok()).map(|v| v.bytes.len() as u64).sum(),
            Self::Torch(file) => file.total_bytes(),
        }
    }
}

impl Weights {
    /// Opens the weights of a directory: `model.safetensors`, or all files that `model.safetensors.index.json` lists;
    /// else the same of `pytorch_model.bin`. Given a file, opens that file, safetensors or PyTorch.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            return Self::single(path);
        }
        for (single, index) in [(WEIGHTS, WEIGHTS_INDEX), (TORCH_WEIGHTS, TORCH_WEIGHTS_INDEX)] {
            let (single, index) = (path.join(single), path.join(index));
            if single.is_file() {
                return Self::single(&single);
            }
            if index.is_file() {
                return Self::sharded(path, index);
            }
        }
        Err(Error::Missing { path: path.join(WEIGHTS), hint: no_weights_hint(path) })
    }

    fn single(path: &Path) -> Result<Self> {
        let file = Shard::open(path)?;
        let by_name = file.names().into_iter().map(|name| (name.to_owned(), 0)).collect();
        Ok(Self { source: path.to_path_buf(), shards: vec![file], by_name })
    }

    fn sharded(dir: &Path, index: PathBuf) -> Result<Self> {
        let map = read_index(&index)?;
        let files: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let mut shards = Vec::with_capacity(files.len());
        for file in &files {
            let path = dir.join(file);
            if !path.is_file() {
                let count = map.values().filter(|f| f == file).count();
                let index = index.file_name().unwrap_or_default().display();
                let hint = format!("{index} says that it holds {count} tensors: download or copy it too");
                return Err(Error::Missing { path, hint });
            }
            shards.push(Shard::open(&path)?);
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
            if let Some(name) = shard.names().into_iter().find(|name| !by_name.contains_key(*name)) {
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

    /// A tensor's bytes for as long as someone holds them: those of a whole file, and where the tensor begins. None of a
    /// PyTorch file, where a tensor may lie in any way.
    pub fn shared_bytes(&self, name: &str) -> Option<(SharedBytes, usize)> {
        match &self.shards[*self.by_name.get(name)?] {
            Shard::Safe(file) => file.shared_bytes(name),
            Shard::Torch(_) => None,
        }
    }

    /// Lets go of the memory that the pages of a tensor take, where that can be done: they are read again when asked for.
    pub fn forget(&self, name: &str) {
        if let Some(Shard::Safe(file)) = self.by_name.get(name).map(|&shard| &self.shards[shard]) {
            file.forget(name);
        }
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.by_name.get(name).map(|&shard| self.shards[shard].path())
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(Shard::path)
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(Shard::total_bytes).sum()
    }
}

/// What to do about a directory without weights under the names that they have in a model directory.
fn no_weights_hint(dir: &Path) -> String {
    let is_torch =
        |path: &PathBuf| path.extension().is_some_and(|e| ["pt", "pth", "ckpt"].iter().any(|known| e == *known));
    let found = fs::read_dir(dir).ok().and_then(|entries| entries.flatten().map(|e| e.path()).find(is_torch));
    match found.as_ref().and_then(|path| path.file_name()) {
        Some(name) => format!("if {} holds the weights, rename it to {TORCH_WEIGHTS}", name.display()),
        None => format!("a model directory needs {WEIGHTS} or {TORCH_WEIGHTS}, or the index of one with its shards"),
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
