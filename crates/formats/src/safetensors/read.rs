//! Reading: header validation, views, conversion to f32.

use super::dtype::Dtype;
use crate::error::nearest;
use crate::map::{Bytes, SharedBytes};
use crate::{Error, Mapped, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::SafeTensorError;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of the header's length field.
const PREFIX: usize = 8;
/// The longest header the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file: every tensor's dtype, shape and bytes.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    bytes: Arc<Bytes>,
    metadata: Vec<(String, String)>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One tensor of a file, borrowed where the file holds it as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// The elements, row-major, little-endian. Not necessarily aligned.
    pub bytes: Cow<'a, [u8]>,
}

impl SafeTensors {
    /// Memory-maps and validates a file: the header must be whole and well-formed, and the tensors must cover the rest
    /// of the file without a gap or an overlap.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path.to_path_buf(), Bytes::Mapped(Mapped::open(path)?))
    }

    /// Validates a file's content held in memory; `path` is only used in error messages.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(path.into(), Bytes::Owned(bytes))
    }

    pub(crate) fn parse(path: PathBuf, bytes: Bytes) -> Result<Self> {
        match parse_header(bytes.as_slice()) {
            Ok(Header { metadata, entries }) => {
                let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
                Ok(Self { path, bytes: Arc::new(bytes), metadata, entries, by_name })
            }
            Err(reason) => Err(Error::SafeTensors { path, reason }),
        }
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    /// Whether a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// One tensor; the error names the file and the most similar name.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let Some(&index) = self.by_name.get(name) else {
            let nearest = nearest(name, self.names());
            return Err(Error::NoSuchTensor { path: self.path.clone(), name: name.to_owned(), nearest });
        };
        let Entry { dtype, shape, range, .. } = &self.entries[index];
        Ok(TensorView { dtype: *dtype, shape, bytes: Cow::Borrowed(&self.bytes.as_slice()[range.clone()]) })
    }

    /// A tensor's bytes for as long as someone holds them: those of the whole file, and where the tensor begins.
    pub fn shared_bytes(&self, name: &str) -> Option<(SharedBytes, usize)> {
        let entry = &self.entries[*self.by_name.get(name)?];
        Some((self.bytes.clone(), entry.range.start))
    }

    /// Lets go of the memory that the pages of a tensor take, where the file is mapped.
    pub fn forget(&self, name: &str) {
        if let (Bytes::Mapped(map), Some(&index)) = (&*self.bytes, self.by_name.get(name)) {
            map.forget(self.entries[index].range.clone());
        }
    }

    /// The file's free-form metadata, in the order of the file.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The elements as f32, from F32, F16, BF16 or F64.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.elements()];
        self.read_f32_into(&mut out)?;
        Ok(out)
    }

    /// As [`to_f32`](Self::to_f32) into an existing slice, whose length must be [`elements`](Self::elements).
    pub fn read_f32_into(&self, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), self.elements(), "read_f32_into: output length differs from the tensor's");
        match self.dtype {
            Dtype::F32 => convert(&self.bytes, out, f32::from_le_bytes),
            Dtype::F64 => convert(&self.bytes, out, |b| f64::from_le_bytes(b) as f32),
            // The half crate's slice conversion uses the CPU's instruction where there is one.
            Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(&self.bytes) {
                Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(out),
                _ => convert(&self.bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            },
            Dtype::BF16 => convert(&self.bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            other => return Err(Error::NotFloat { found: other.name() }),
        }
        Ok(())
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (chunk, value) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *value = decode(*chunk);
    }
}

struct Header {
    metadata: Vec<(String, String)>,
    entries: Vec<Entry>,
}

/// The part of the header that the format library gives back without its order.
#[derive(Deserialize)]
struct MetadataOnly {
    #[serde(rename = "__metadata__", default)]
    metadata: Map<String, Value>,
}

fn parse_header(bytes: &[u8]) -> Result<Header, String> {
    let header = header_bytes(bytes)?;
    let (length, parsed) =
        safetensors::SafeTensors::read_metadata(bytes).map_err(|e| explain(e, header, bytes.len()))?;
    let MetadataOnly { metadata } =
        serde_json::from_slice(header).map_err(|e| format!("invalid JSON in header: {e}"))?;
    let text = |value| if let Value::String(s) = value { s } else { String::new() };
    let start = PREFIX + length;
    let mut entries = Vec::new();
    for name in parsed.offset_keys() {
        let info = parsed.info(&name).expect("a name just listed by the parsed header");
        let dtype = Dtype::from_external(info.dtype)
            .ok_or_else(|| format!("tensor '{name}' has the unsupported dtype {}", info.dtype))?;
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        entries.push(Entry { name, dtype, shape: info.shape.clone(), range });
    }
    // Empty tensors may share an offset; the name decides, so that the order is always the same.
    entries.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    Ok(Header { metadata: metadata.into_iter().map(|(k, v)| (k, text(v))).collect(), entries })
}

/// The JSON header, with the length field checked against the file.
fn header_bytes(bytes: &[u8]) -> Result<&[u8], String> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(format!("the file has {} bytes, fewer than the {PREFIX} of the header length", bytes.len()));
    };
    let length = u64::from_le_bytes(*prefix);
    if length > MAX_HEADER {
        return Err(format!("the header claims {length} bytes, more than the format's {MAX_HEADER}"));
    }
    let length = length as usize;
    rest.get(..length)
        .ok_or_else(|| format!("the header is truncated: it claims {length} bytes, {} follow", rest.len()))
}

/// Says which tensor is wrong and how; the library's own error does not.
fn explain(error: SafeTensorError, header: &[u8], file_length: usize) -> String {
    let fallback = error.to_string();
    let infos: HashMap<String, Value> = match serde_json::from_slice(header) {
        Ok(infos) => infos,
        Err(_) => return fallback,
    };
    let mut tensors = Vec::new();
    for (name, info) in infos.iter().filter(|(name, _)| *name != "__metadata__") {
        match serde_json::from_value::<safetensors::tensor::TensorInfo>(info.clone()) {
            Ok(info) => tensors.push((info.data_offsets, name, info)),
            Err(e) => return format!("tensor '{name}': {e}"),
        }
    }
    tensors.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let mut expected = 0;
    for ((start, end), name, info) in tensors {
        if end < start {
            return format!("tensor '{name}' ends at byte {end}, before its start {start}");
        }
        if start != expected {
            let what = if start < expected { "overlaps the one before it" } else { "leaves a gap before it" };
            return format!("tensor '{name}' {what}: it starts at byte {start}, expected {expected}");
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
        let found = end - start;
        if bits.map(|b| b / 8) != Some(found) {
            return format!(
                "tensor '{name}' of dtype {} and shape {:?} does not fit its {found} bytes",
                info.dtype, info.shape
            );
        }
        expected = end;
    }
    let found = file_length - PREFIX - header.len();
    if expected != found {
        return format!("the header describes {expected} bytes of data, the file holds {found}");
    }
    fallback
}
