//! Reading: header and metadata validation, one file or several.

use super::{
    ALIGNMENT, GgmlType, GgufValue, MAGIC, MAX_AXES, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, shard_name, shard_of,
};
use crate::error::nearest;
use crate::map::{Bytes, SharedBytes};
use crate::{Error, Mapped, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Fewest bytes that a key with its value takes, and a tensor's description.
const LEAST_PAIR: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// An open GGUF model: metadata, and every tensor's element type, shape and place.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    files: Vec<Arc<Bytes>>,
    metadata: Vec<(String, GgufValue)>,
    by_key: HashMap<String, usize>,
    tensors: Vec<GgufTensor>,
    by_name: HashMap<String, usize>,
}

/// Where a tensor lies and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// Extents, outermost first: the reverse of the order in the file.
    pub shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

impl GgufTensor {
    /// Numbers in it.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that it takes.
    pub fn byte_len(&self) -> usize {
        self.range.len()
    }
}

impl Gguf {
    /// Whether a path is a file that begins as GGUF files do.
    pub fn is_one(path: impl AsRef<Path>) -> bool {
        let mut first = [0; 4];
        path.as_ref().is_file()
            && File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok()
            && first == *MAGIC
    }

    /// Memory-maps and validates a file, and the others that belong to it where its name says that it is one of several.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut gguf = Self::parse(path, Bytes::Mapped(Mapped::open(path)?))?;
        let count = gguf.size(SPLIT_COUNT)?.unwrap_or(0);
        if count <= 1 {
            return Ok(gguf);
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((prefix, _, _)) = shard_of(&name).filter(|&(.., total)| total == count) else {
            let reason = format!("it is one of {count} files, so its name must end with -00001-of-{count:05}.gguf");
            return Err(Error::Gguf { path: path.to_path_buf(), reason });
        };
        let wanted = gguf.size(SPLIT_TENSORS)?;
        let mut whole: Option<Self> = None;
        for number in 1..=count {
            let shard = path.with_file_name(shard_name(prefix, number, count));
            if !shard.is_file() {
                let hint = format!("the model consists of {count} files: copy or download this one, too");
                return Err(Error::Missing { path: shard, hint });
            }
            let part = match shard == path {
                true => std::mem::replace(&mut gguf, Self::empty(path)),
                false => Self::parse(&shard, Bytes::Mapped(Mapped::open(&shard)?))?,
            };
            part.expect_number(number, count)?;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => whole.append(part)?,
            }
        }
        let whole = whole.expect("at least two files were read");
        if let Some(wanted) = wanted.filter(|&wanted| wanted != whole.tensors.len()) {
            let reason = format!("its files should hold {wanted} tensors, but hold {}", whole.tensors.len());
            return Err(Error::Gguf { path: path.to_path_buf(), reason });
        }
        Ok(whole)
    }

    /// Validates a file's content held in memory; `path` is only used in error messages.
    pub fn from_bytes(path: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(path.as_ref(), Bytes::Owned(bytes))
    }

    /// Keys and values without a file or a tensor, to be read as those of a file are.
    pub fn from_metadata(metadata: Vec<(String, GgufValue)>) -> Self {
        let by_key = metadata.iter().enumerate().map(|(index, (key, _))| (key.clone(), index)).collect();
        Self { metadata, by_key, ..Self::empty(Path::new("the metadata")) }
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            metadata: Vec::new(),
            by_key: HashMap::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    fn parse(path: &Path, bytes: Bytes) -> Result<Self> {
        check_start(path, bytes.as_slice())?;
        let mut gguf = Self::empty(path);
        let damaged = |reason: String| Error::Gguf { path: path.to_path_buf(), reason };
        gguf.read_all(bytes.as_slice()).map_err(damaged)?;
        gguf.files.push(Arc::new(bytes));
        Ok(gguf)
    }

    fn read_all(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut cursor = Cursor { bytes, at: MAGIC.len() + 4 };
        let tensors = cursor.count("tensors", LEAST_TENSOR)?;
        let pairs = cursor.count("keys", LEAST_PAIR)?;
        for index in 0..pairs {
            let key = cursor.text().map_err(|reason| format!("key {index}: {reason}"))?;
            let value = GgufValue::read(&mut cursor).map_err(|reason| format!("value of '{key}': {reason}"))?;
            if self.by_key.insert(key.to_owned(), self.metadata.len()).is_some() {
                return Err(format!("two values are given for '{key}'"));
            }
            self.metadata.push((key.to_owned(), value));
        }
        let alignment = self.alignment()?;
        for index in 0..tensors {
            let tensor = read_tensor(&mut cursor).map_err(|reason| format!("tensor {index}: {reason}"))?;
            if self.by_name.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(format!("two tensors are named '{}'", tensor.name));
            }
            self.tensors.push(tensor);
        }
        let start = cursor.at.next_multiple_of(alignment);
        for tensor in &mut self.tensors {
            place(tensor, start, alignment, bytes.len())?;
        }
        let mut by_place: Vec<&GgufTensor> = self.tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
        by_place.sort_by_key(|tensor| tensor.range.start);
        match by_place.windows(2).find(|pair| pair[1].range.start < pair[0].range.end) {
            Some(pair) => Err(format!("tensors '{}' and '{}' overlap", pair[0].name, pair[1].name)),
            None => Ok(()),
        }
    }

    fn alignment(&self) -> Result<usize, String> {
        let (key, default) = ALIGNMENT;
        match self.value(key) {
            None => Ok(default as usize),
            Some(GgufValue::U32(alignment)) if alignment.is_power_of_two() => Ok(*alignment as usize),
            Some(other) => Err(format!("'{key}' is {other:?}, expected a power of two as U32")),
        }
    }

    fn expect_number(&self, number: usize, count: usize) -> Result<()> {
        let (no, of) = (self.size(SPLIT_NO)?, self.size(SPLIT_COUNT)?);
        if no == Some(number - 1) && of == Some(count) {
            return Ok(());
        }
        let said = |value: Option<usize>| value.map_or("nothing".to_owned(), |value| value.to_string());
        let reason =
            format!("its name says file {number} of {count}, its keys number {} (from 0) of {}", said(no), said(of));
        Err(Error::Gguf { path: self.path.clone(), reason })
    }

    /// Adds the tensors of a further file.
    fn append(&mut self, part: Self) -> Result<()> {
        let first = self.files.len();
        self.files.extend(part.files);
        for mut tensor in part.tensors {
            tensor.file += first;
            if self.by_name.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                let reason = format!("tensor '{}' is in an earlier file, too", tensor.name);
                return Err(Error::Gguf { path: part.path, reason });
            }
            self.tensors.push(tensor);
        }
        Ok(())
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys and values in the order of the file; of several files, those of the first.
    pub fn metadata(&self) -> &[(String, GgufValue)] {
        &self.metadata
    }

    /// The value under `key`.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.by_key.get(key).map(|&index| &self.metadata[index].1)
    }

    fn typed<'a, T>(&'a self, key: &str, what: &str, read: impl Fn(&'a GgufValue) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => {
                // A list of tokens would fill the screen.
                let mut found = format!("{value:?}");
                if let Some((end, _)) = found.char_indices().nth(60) {
                    found.replace_range(end.., "…");
                }
                let reason = format!("'{key}' must be {what}, found {found}");
                Err(Error::Gguf { path: self.path.clone(), reason })
            }
        }
    }

    /// The whole number under `key`, if the key is there.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|x| usize::try_from(x).ok()))
    }

    /// The number under `key`, if the key is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// The text under `key`, if the key is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", GgufValue::as_text)
    }

    /// The truth value under `key`, if the key is there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", GgufValue::as_bool)
    }

    /// The list of texts under `key`, if the key is there.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of texts", |value| value.as_array()?.as_texts())
    }

    /// The list of numbers under `key`, if the key is there.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers", |value| value.as_array()?.to_f64())
    }

    /// The tensors in the order of the files.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The tensor of that name; the error names the most similar one.
    pub fn get(&self, name: &str) -> Result<&GgufTensor> {
        self.find(name).ok_or_else(|| Error::NoSuchTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            nearest: nearest(name, self.tensors.iter().map(|tensor| tensor.name.as_str())),
        })
    }

    /// A tensor's bytes.
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.files[tensor.file].as_slice()[tensor.range.clone()]
    }

    /// Lets go of the memory that a tensor's bytes take, which come from the file again should they be read again.
    pub fn forget(&self, tensor: &GgufTensor) {
        if let Bytes::Mapped(map) = &*self.files[tensor.file] {
            map.forget(tensor.range.clone());
        }
    }

    /// A tensor's bytes for as long as someone holds them: those of the whole file, and where the tensor begins.
    pub fn shared_bytes(&self, tensor: &GgufTensor) -> (SharedBytes, usize) {
        (self.files[tensor.file].clone(), tensor.range.start)
    }
}

/// Refuses what is no GGUF file, or one that cannot be read here.
fn check_start(path: &Path, bytes: &[u8]) -> Result<()> {
    let damaged = |reason: String| Error::Gguf { path: path.to_path_buf(), reason };
    let refused = |reason: &str| Error::UnsupportedGguf { path: path.to_path_buf(), reason: reason.to_owned() };
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(damaged(format!("the file has {} bytes, fewer than its first word", bytes.len())));
    };
    if magic != MAGIC {
        return Err(damaged(format!("it begins with {magic:02x?}, not with the letters GGUF")));
    }
    let Some(version) = rest.first_chunk::<4>() else {
        return Err(damaged("the file ends before its version".into()));
    };
    match u32::from_le_bytes(*version) {
        2 | 3 => Ok(()),
        1 => Err(refused("it has version 1, which no tool has written since August 2023")),
        other if other.swap_bytes() <= 3 => Err(refused("it is big-endian, made for another kind of computer")),
        other => Err(refused(&format!("it has version {other}; known are 2 and 3"))),
    }
}

/// A description up to the place of the tensor, which stays relative.
fn read_tensor(cursor: &mut Cursor<'_>) -> Result<GgufTensor, String> {
    let name = cursor.text()?;
    let named = |reason: String| format!("'{name}': {reason}");
    let axes = cursor.u32().map_err(named)? as usize;
    if axes > MAX_AXES {
        return Err(named(format!("it has {axes} axes, more than the format's {MAX_AXES}")));
    }
    let mut shape = Vec::with_capacity(axes);
    for _ in 0..axes {
        let extent = cursor.u64().map_err(named)?;
        shape.push(usize::try_from(extent).map_err(|_| named(format!("an axis of {extent}")))?);
    }
    shape.reverse();
    let (id, offset) = (cursor.u32().map_err(named)?, cursor.u64().map_err(named)?);
    let ty = GgmlType::from_id(id).ok_or_else(|| named(format!("it has the unknown element type {id}")))?;
    let elements = shape.iter().try_fold(1_usize, |n, &extent| n.checked_mul(extent));
    let length = elements
        .filter(|_| shape.last().copied().unwrap_or(1).is_multiple_of(ty.block_len()))
        .and_then(|elements| ty.bytes(elements))
        .ok_or_else(|| named(format!("shape {shape:?} is no whole number of {} blocks", ty.name())))?;
    let start = usize::try_from(offset).map_err(|_| named(format!("it begins at byte {offset} of the data")))?;
    let end = start.checked_add(length).ok_or_else(|| named("it ends beyond what can be addressed".into()))?;
    Ok(GgufTensor { name: name.to_owned(), ty, shape, file: 0, range: start..end })
}

/// Makes a tensor's place that in the file, where it must be.
fn place(tensor: &mut GgufTensor, start: usize, alignment: usize, length: usize) -> Result<(), String> {
    let Range { start: from, end } = tensor.range;
    if !from.is_multiple_of(alignment) {
        return Err(format!("tensor '{}' begins at byte {from} of the data, no multiple of {alignment}", tensor.name));
    }
    let end = end.checked_add(start).filter(|&end| end <= length).ok_or_else(|| {
        let room = length.saturating_sub(start);
        format!("the file is truncated: tensor '{}' ends at byte {end} of the data, {room} follow", tensor.name)
    })?;
    tensor.range = from + start..end;
    Ok(())
}

/// Bytes, and how far they were read.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        if count > self.left() {
            return Err(format!(
                "the file is truncated: {count} bytes are needed at byte {}, {} follow",
                self.at,
                self.left()
            ));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    /// A number of things of at least so many bytes each, which the rest of the file must be able to hold.
    fn count(&mut self, what: &str, least: usize) -> Result<usize, String> {
        let claimed = self.u64()?;
        let room = self.left() / least;
        usize::try_from(claimed).ok().filter(|&count| count <= room).ok_or_else(|| {
            format!("the header claims {claimed} {what}, the {} bytes that follow hold {room} at most", self.left())
        })
    }
}
