//! Tensors as views of storages: checked once, gathered when asked for.

use super::archive::Archive;
use super::{Problem, damaged};
use crate::{Dtype, TensorView};
use std::borrow::Cow;
use std::ops::Range;

/// The most axes of a tensor: weights have at most five.
pub(super) const MAX_AXES: usize = 16;

/// A run of elements that tensors are views of, as the pickle describes it.
#[derive(Debug, Clone)]
pub(super) struct Storage<'a> {
    /// The type of its elements; an untyped storage counts bytes.
    pub(super) dtype: Option<Dtype>,
    /// Its entry below `data/`.
    pub(super) key: &'a str,
    /// Number of elements.
    pub(super) length: usize,
}

/// A tensor as the pickle describes it, not yet checked. Offset and strides count elements.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) dtype: Dtype,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// A tensor that lies inside of its file.
#[derive(Debug)]
pub(super) struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    stride: Vec<usize>,
    /// From its first element to the end of its storage.
    range: Range<usize>,
    elements: usize,
    big_endian: bool,
}

impl Stored {
    /// Checks a tensor against its storage, and the storage against the archive.
    pub(super) fn new(name: &str, tensor: &Tensor<'_>, archive: &Archive<'_>) -> Result<Self, Problem> {
        let Tensor { storage, dtype, offset, shape, stride } = tensor;
        let Some(range) = archive.range(&format!("data/{}", storage.key)) else {
            return damaged(format!("tensor '{name}' lies in storage {}, which the archive lacks", storage.key));
        };
        let wanted = storage.length.checked_mul(storage.dtype.map_or(1, Dtype::size));
        if wanted != Some(range.len()) {
            let unit = storage.dtype.map_or("bytes".into(), |dtype| format!("elements of {dtype}"));
            return damaged(format!(
                "storage {} of tensor '{name}' is said to hold {} {unit}, but its entry has {} bytes",
                storage.key,
                storage.length,
                range.len()
            ));
        }
        let (Some(elements), Some(end)) = (elements(shape, dtype.size()), end(*offset, shape, stride)) else {
            return damaged(format!("tensor '{name}' has the impossible shape {shape:?} with strides {stride:?}"));
        };
        if end.checked_mul(dtype.size()).is_none_or(|bytes| bytes > range.len()) {
            return damaged(format!(
                "tensor '{name}' of dtype {dtype}, shape {shape:?}, strides {stride:?} and offset {offset} leaves its \
                 storage of {} bytes",
                range.len()
            ));
        }
        // A stride of zero repeats elements, so that a few bytes could stand for any number of them.
        if elements * dtype.size() > archive.file_length() {
            return damaged(format!("tensor '{name}' of dtype {dtype} and shape {shape:?} is larger than its file"));
        }
        let start = if elements == 0 { range.start } else { range.start + offset * dtype.size() };
        Ok(Self {
            dtype: *dtype,
            shape: shape.clone(),
            stride: stride.clone(),
            range: start..range.end,
            elements,
            big_endian: archive.big_endian && dtype.size() > 1,
        })
    }

    pub(super) fn byte_len(&self) -> usize {
        self.elements * self.dtype.size()
    }

    /// The tensor, row-major and little-endian, from the file's bytes.
    pub(super) fn view<'a>(&'a self, file: &'a [u8]) -> TensorView<'a> {
        let bytes = &file[self.range.clone()];
        let mut bytes = match self.is_row_major() {
            true => Cow::Borrowed(&bytes[..self.byte_len()]),
            false => Cow::Owned(self.gather(bytes)),
        };
        if self.big_endian {
            bytes.to_mut().chunks_exact_mut(self.dtype.size()).for_each(<[u8]>::reverse);
        }
        TensorView { dtype: self.dtype, shape: &self.shape, bytes }
    }

    /// Whether the elements lie one behind the other. The stride of an axis of one element does not matter.
    fn is_row_major(&self) -> bool {
        let mut expected = 1;
        self.elements == 0
            || self.shape.iter().zip(&self.stride).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == expected;
                expected *= size;
                fits
            })
    }

    /// The elements in row-major order, one row of the last axis after the other.
    fn gather(&self, bytes: &[u8]) -> Vec<u8> {
        let width = self.dtype.size();
        let mut out = Vec::with_capacity(self.byte_len());
        let Some((&columns, outer)) = self.shape.split_last() else { return bytes[..width].to_vec() };
        let step = self.stride[outer.len()];
        let mut index = vec![0; outer.len()];
        loop {
            let row: usize = index.iter().zip(&self.stride).map(|(i, stride)| i * stride).sum();
            for column in 0..columns {
                let at = (row + column * step) * width;
                out.extend_from_slice(&bytes[at..at + width]);
            }
            // Counts up as an odometer does, the last wheel fastest.
            let Some(wheel) = (0..outer.len()).rev().find(|&axis| index[axis] + 1 < outer[axis]) else { return out };
            index[wheel] += 1;
            index[wheel + 1..].fill(0);
        }
    }
}

/// Number of elements, if a computer can count their bytes even when axes of no element are left out.
fn elements(shape: &[usize], width: usize) -> Option<usize> {
    let limit = isize::MAX as usize / width;
    let counted = shape.iter().filter(|&&size| size != 0).try_fold(1_usize, |n, &size| n.checked_mul(size))?;
    (counted <= limit).then(|| if shape.contains(&0) { 0 } else { counted })
}

/// One past the last element that is touched, counted from the start of the storage; 0 where none is.
fn end(offset: usize, shape: &[usize], stride: &[usize]) -> Option<usize> {
    if shape.len() != stride.len() {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    let last = shape.iter().zip(stride).try_fold(offset, |at, (size, stride)| {
        let reach = (size - 1).checked_mul(*stride)?;
        at.checked_add(reach)
    });
    last?.checked_add(1)
}
