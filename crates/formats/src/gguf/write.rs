//! Writing, one tensor in memory at a time; one file or several.

use super::value::write_text;
use super::{
    ALIGNMENT, GgmlType, GgufValue, MAGIC, MAX_AXES, MAX_NAME, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, VERSION,
    shard_name,
};
use crate::{Error, Result, atomic};
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tensor to be written: its description, and where its bytes come from when their turn comes.
pub struct GgufOut<'a> {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    source: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

impl<'a> GgufOut<'a> {
    /// A tensor whose bytes are produced when they are written.
    pub fn lazy(
        name: impl Into<String>,
        ty: GgmlType,
        shape: &[usize],
        source: impl Fn() -> Cow<'a, [u8]> + 'a,
    ) -> Self {
        Self { name: name.into(), ty, shape: shape.to_vec(), source: Box::new(source) }
    }

    /// A tensor whose bytes are at hand.
    pub fn new(name: impl Into<String>, ty: GgmlType, shape: &[usize], bytes: &'a [u8]) -> Self {
        Self::lazy(name, ty, shape, move || Cow::Borrowed(bytes))
    }

    /// Bytes that type and shape say; `None` where rows are no whole blocks.
    pub fn byte_len(&self) -> Option<usize> {
        let row = self.ty.bytes(self.shape.last().copied().unwrap_or(1))?;
        let rows = self.shape.iter().rev().skip(1).try_fold(1_usize, |n, &extent| n.checked_mul(extent))?;
        row.checked_mul(rows)
    }
}

/// Writes a file, whole or not at all: keys and tensors in the order given, tensors aligned as `general.alignment` says
/// (32 where it says nothing).
pub fn write(path: impl AsRef<Path>, metadata: &[(String, GgufValue)], tensors: &[GgufOut<'_>]) -> Result<()> {
    let path = path.as_ref();
    let (header, alignment) = header(path, metadata, tensors)?;
    atomic::try_write_with(path, |w| {
        let io = |e| Error::io("write", path, e);
        let pad = |w: &mut dyn Write, written: usize| {
            let padding = written.next_multiple_of(alignment) - written;
            w.write_all(&vec![0; padding]).map_err(io)
        };
        w.write_all(&header).map_err(io)?;
        pad(w, header.len())?;
        for tensor in tensors {
            let bytes = (tensor.source)();
            let expected = tensor.byte_len().unwrap_or(0);
            if bytes.len() != expected {
                return Err(Error::WrongLength { name: tensor.name.clone(), expected, found: bytes.len() });
            }
            w.write_all(&bytes).map_err(io)?;
            pad(w, bytes.len())?;
        }
        Ok(())
    })
}

/// The same in files of at most `limit` bytes of tensors each (a larger tensor gets a file of its own), named
/// `…-00001-of-0000N.gguf` after `path`. Where one file suffices, it has the name `path`. Returns the files, in order.
pub fn write_split(
    path: impl AsRef<Path>,
    metadata: &[(String, GgufValue)],
    tensors: Vec<GgufOut<'_>>,
    limit: u64,
) -> Result<Vec<PathBuf>> {
    let path = path.as_ref();
    let total = tensors.len();
    let mut parts: Vec<Vec<GgufOut<'_>>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let bytes = tensor.byte_len().unwrap_or(0) as u64;
        match parts.last_mut() {
            Some(part) if bytes <= room => part.push(tensor),
            _ => {
                room = limit;
                parts.push(vec![tensor]);
            }
        }
        room = room.saturating_sub(bytes);
    }
    if parts.len() <= 1 {
        write(path, metadata, &parts.pop().unwrap_or_default())?;
        return Ok(vec![path.to_path_buf()]);
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let too_many = || Error::GgufContent {
        path: path.to_path_buf(),
        reason: format!("{} files are more than the format can number", parts.len()),
    };
    let count = u16::try_from(parts.len()).map_err(|_| too_many())?;
    let mut files = Vec::new();
    for (no, part) in (0u16..).zip(&parts) {
        let mut keys = if no == 0 { metadata.to_vec() } else { alignment_of(metadata) };
        keys.push((SPLIT_NO.into(), GgufValue::U16(no)));
        keys.push((SPLIT_COUNT.into(), GgufValue::U16(count)));
        keys.push((SPLIT_TENSORS.into(), GgufValue::I32(total as i32)));
        let file = path.with_file_name(shard_name(&stem, usize::from(no) + 1, parts.len()));
        write(&file, &keys, part)?;
        files.push(file);
    }
    Ok(files)
}

/// The one key that every file must repeat.
fn alignment_of(metadata: &[(String, GgufValue)]) -> Vec<(String, GgufValue)> {
    metadata.iter().filter(|(key, _)| key == ALIGNMENT.0).cloned().collect()
}

/// Everything before the tensors, and their alignment.
fn header(path: &Path, metadata: &[(String, GgufValue)], tensors: &[GgufOut<'_>]) -> Result<(Vec<u8>, usize)> {
    let refused = |reason: String| Error::GgufContent { path: path.to_path_buf(), reason };
    let alignment = match metadata.iter().find(|(key, _)| key == ALIGNMENT.0) {
        None => ALIGNMENT.1 as usize,
        Some((_, GgufValue::U32(alignment))) if alignment.is_power_of_two() => *alignment as usize,
        Some((key, value)) => return Err(refused(format!("'{key}' is {value:?}, expected a power of two as U32"))),
    };
    let mut header = Vec::new();
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    let mut seen = HashSet::new();
    for (key, value) in metadata {
        if !seen.insert(key.as_str()) {
            return Err(refused(format!("two values are given for '{key}'")));
        }
        write_text(key, &mut header);
        value.write(&mut header);
    }
    let (mut seen, mut offset) = (HashSet::new(), 0_usize);
    for tensor in tensors {
        let GgufOut { name, ty, shape, .. } = tensor;
        if !seen.insert(name.as_str()) {
            return Err(Error::DuplicateTensor { path: path.to_path_buf(), name: name.clone() });
        }
        if name.len() > MAX_NAME || shape.is_empty() || shape.len() > MAX_AXES {
            let limits = format!("names have at most {MAX_NAME} bytes, tensors 1 to {MAX_AXES} axes");
            return Err(refused(format!("tensor '{name}' of shape {shape:?} does not fit the format: {limits}")));
        }
        let Some(bytes) = tensor.byte_len() else {
            let reason = format!("tensor '{name}' of shape {shape:?} is no whole number of {} blocks", ty.name());
            return Err(refused(reason));
        };
        write_text(name, &mut header);
        header.extend_from_slice(&(shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&extent| header.extend_from_slice(&(extent as u64).to_le_bytes()));
        header.extend_from_slice(&ty.id().to_le_bytes());
        header.extend_from_slice(&(offset as u64).to_le_bytes());
        offset = (offset + bytes).next_multiple_of(alignment);
    }
    Ok((header, alignment))
}
