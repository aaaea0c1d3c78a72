//! Writing, one tensor in memory at a time.

use super::dtype::Dtype;
use crate::{Error, Result, atomic};
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::path::Path;

/// A tensor to be written: its description, and where its bytes come from when their turn comes.
pub struct TensorOut<'a> {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    source: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

impl<'a> TensorOut<'a> {
    /// A tensor whose bytes are at hand: row-major, little-endian.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Self {
        Self::lazy(name, dtype, shape, move || Cow::Borrowed(bytes))
    }

    /// A tensor whose bytes are produced when they are written, so that only one is in memory at a time.
    pub fn lazy(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        source: impl Fn() -> Cow<'a, [u8]> + 'a,
    ) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), source: Box::new(source) }
    }

    /// f32 values written as `dtype`, which must be F32, F16 or BF16 (rounded to nearest, ties to even).
    pub fn from_f32(name: impl Into<String>, dtype: Dtype, shape: &[usize], values: &'a [f32]) -> Self {
        assert!(is_float(dtype), "from_f32: dtype {dtype} is not F32, F16 or BF16");
        Self::lazy(name, dtype, shape, move || encode_f32(dtype, values))
    }

    /// Bytes that dtype and shape say.
    pub fn byte_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// f32 values as the little-endian bytes of `dtype`, which must be F32, F16 or BF16 (rounded to nearest, ties to even).
pub fn encode_f32(dtype: Dtype, values: &[f32]) -> Cow<'_, [u8]> {
    match dtype {
        Dtype::F32 if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(values)),
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        other => panic!("encode_f32: dtype {other} is not F32, F16 or BF16"),
    }
}

/// Writes a file, whole or not at all. The order of `tensors` does not matter: the same tensors and metadata always
/// give the same bytes, and those are the ones that the reference library writes.
pub fn write<'a>(
    path: impl AsRef<Path>,
    metadata: &[(String, String)],
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
) -> Result<()> {
    let path = path.as_ref();
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let header = header(path, metadata, &tensors)?;
    atomic::try_write_with(path, |w| {
        let io = |e| Error::io("write", path, e);
        w.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        w.write_all(&header).map_err(io)?;
        for tensor in &tensors {
            let bytes = (tensor.source)();
            let expected = tensor.byte_len();
            if bytes.len() != expected {
                return Err(Error::WrongLength { name: tensor.name.clone(), expected, found: bytes.len() });
            }
            w.write_all(&bytes).map_err(io)?;
        }
        Ok(())
    })
}

fn header(path: &Path, metadata: &[(String, String)], tensors: &[TensorOut<'_>]) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let entries: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        header.insert("__metadata__".into(), entries.into());
    }
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.byte_len();
        let info = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        if header.insert(tensor.name.clone(), info).is_some() {
            return Err(Error::DuplicateTensor { path: path.to_path_buf(), name: tensor.name.clone() });
        }
        start = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    // The format aligns the data to 8 bytes with spaces.
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}
