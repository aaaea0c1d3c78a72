//! Checkpoints of `torch.save` (`.bin`, `.pt`, `.pth`), read without executing anything.
//!
//! Since PyTorch 1.6 such a file is a zip archive: `<name>/data.pkl` is a pickle, a small program that a Python process
//! runs to build a dictionary of tensors, and `<name>/data/<key>` are the tensors' bytes. A pickle may call any function
//! of Python, which is why opening one from a stranger in Python is as running a program of theirs. Here [`pickle`] is an
//! interpreter that only knows how to build values, and [`globals`] the short list of names that a checkpoint needs;
//! whatever else a file calls is refused by name. [`archive`] is the part of zip that torch writes (nothing compressed), so
//! that tensors stay in the memory map until they are asked for.

mod archive;
mod globals;
mod pickle;
mod tensor;

use crate::error::nearest;
use crate::map::Bytes;
use crate::{Error, Mapped, Result, TensorView};
use archive::Archive;
use pickle::{Heap, Id, Node};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tensor::Stored;

/// Keys under which training scripts put the weights beside other things, most specific first.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// How many wrappers may lie in one another.
const MAX_WRAPPERS: usize = 4;
/// How a zip archive begins.
const ZIP: &[u8] = b"PK\x03\x04";
/// How a file of PyTorch before 1.6 begins: a pickle of a magic number.
const LEGACY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// What the files are called.
const EXTENSIONS: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// An open PyTorch checkpoint: every tensor's dtype, shape and bytes.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    bytes: Bytes,
    tensors: Vec<(String, Stored)>,
    by_name: HashMap<String, usize>,
}

/// Why a file cannot be read, before its path is known.
#[derive(Debug)]
enum Problem {
    /// It contradicts itself or ends too early.
    Damaged(String),
    /// It is something else than what Loam reads.
    Unsupported(String),
    /// It would call this function.
    Calls(String),
}

impl Problem {
    fn at(self, path: PathBuf) -> Error {
        match self {
            Self::Damaged(reason) => Error::Torch { path, reason },
            Self::Unsupported(reason) => Error::UnsupportedTorch { path, reason },
            Self::Calls(name) => Error::RefusedPickle { path, name },
        }
    }
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Damaged(reason.into()))
}

impl TorchFile {
    /// Memory-maps a file and interprets its pickle. Tensors are checked against the storages they lie in.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path.to_path_buf(), Bytes::Mapped(Mapped::open(path)?))
    }

    /// The same for a file's content held in memory; `path` is only used in error messages.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(path.into(), Bytes::Owned(bytes))
    }

    /// Whether a file is one of PyTorch's, by its name or its beginning.
    pub fn is_one(path: &Path, bytes: &[u8]) -> bool {
        let named = path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e));
        named || bytes.starts_with(ZIP) || is_legacy(bytes)
    }

    pub(crate) fn parse(path: PathBuf, bytes: Bytes) -> Result<Self> {
        match read(bytes.as_slice()) {
            Ok(tensors) => {
                let by_name = tensors.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
                Ok(Self { path, bytes, tensors, by_name })
            }
            Err(problem) => Err(problem.at(path)),
        }
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// One tensor; the error names the file and the most similar name. The bytes are borrowed where the tensor lies in
    /// the file as it is, and gathered where its strides say otherwise.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let Some(&index) = self.by_name.get(name) else {
            let nearest = nearest(name, self.names());
            return Err(Error::NoSuchTensor { path: self.path.clone(), name: name.to_owned(), nearest });
        };
        Ok(self.tensors[index].1.view(self.bytes.as_slice()))
    }

    /// Bytes of all tensors together, each counted in full even where they share a storage.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, stored)| stored.byte_len() as u64).sum()
    }
}

fn is_legacy(bytes: &[u8]) -> bool {
    // Behind the two bytes that state the pickle's protocol.
    bytes.get(2..).is_some_and(|rest| rest.starts_with(LEGACY))
}

/// Everything that a file says, in the order it says it.
fn read(bytes: &[u8]) -> Result<Vec<(String, Stored)>, Problem> {
    if is_legacy(bytes) {
        return Err(Problem::Unsupported("it was saved in the format from before PyTorch 1.6".into()));
    }
    if !bytes.starts_with(ZIP) {
        return damaged("it is not a zip archive, as torch.save writes since PyTorch 1.6");
    }
    let archive = Archive::parse(bytes)?;
    let program = archive.entry("data.pkl").expect("an archive has a data.pkl, that is how it is told apart");
    let (heap, root) = pickle::run(program)?;
    let mut tensors: Vec<(String, Stored)> = Vec::new();
    let mut by_name = HashMap::new();
    for (name, value) in state_dict(&heap, root)? {
        if let (Node::Text(name), Node::Tensor(tensor)) = (heap.get(name), heap.get(value)) {
            let stored = Stored::new(name, tensor, &archive)?;
            // As in Python, what is assigned later stands, in the place of what was there before.
            match by_name.get(name) {
                Some(&index) => tensors[index] = ((*name).to_owned(), stored),
                None => {
                    by_name.insert(*name, tensors.len());
                    tensors.push(((*name).to_owned(), stored));
                }
            }
        }
    }
    if tensors.is_empty() {
        return Err(Problem::Unsupported(nothing_found(&heap, root)));
    }
    Ok(tensors)
}

/// The dictionary that holds the weights: the outermost one, or what lies in it under a well-known key.
fn state_dict<'h>(heap: &'h Heap<'_>, root: Id) -> Result<impl Iterator<Item = (Id, Id)> + 'h, Problem> {
    let mut at = root;
    for _ in 0..MAX_WRAPPERS {
        let Node::Dict(pairs) = heap.get(at) else { break };
        let under = |key: &str| {
            let found = pairs.iter().rev().find(|(k, _)| matches!(heap.get(*k), Node::Text(text) if *text == key));
            found.map(|(_, value)| *value).filter(|value| matches!(heap.get(*value), Node::Dict(_)))
        };
        match WRAPPERS.into_iter().find_map(under) {
            Some(inner) => at = inner,
            None => break,
        }
    }
    match heap.get(at) {
        Node::Dict(pairs) => Ok(pairs.iter().copied()),
        other => {
            let what = format!("it holds {}, expected a dictionary from names to tensors", other.kind());
            Err(Problem::Unsupported(what))
        }
    }
}

/// Says what there is instead of tensors.
fn nothing_found(heap: &Heap<'_>, root: Id) -> String {
    let Node::Dict(pairs) = heap.get(root) else { return "it holds no dictionary".into() };
    let keys =
        pairs.iter().filter_map(|(key, _)| if let Node::Text(text) = heap.get(*key) { Some(*text) } else { None });
    let keys: Vec<_> = keys.take(8).collect();
    format!(
        "it holds no tensor by name, neither at the top nor under {}; its keys begin with [{}]",
        WRAPPERS.join(", "),
        keys.join(", ")
    )
}
