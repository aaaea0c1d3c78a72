//! [`Raw`]: data without history, what a backend works on.

use std::sync::Arc;

use bytemuck::Pod;
use half::bf16;
use loam_kernels::quant::{GgmlType, NF4_BLOCK, NF4_NESTED_BLOCK, Nf4, Quantised, halves_to_bf16};

use crate::dims::Dims;
use crate::pool::Buffer;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: values, gradients, master weights.
    F32,
    /// bfloat16: operands of matrix products and saved activations.
    Bf16,
    /// Weights as a GGUF file holds them, mostly in blocks with shared scales: read by products and lookups, never
    /// written.
    Ggml(GgmlType),
    /// Weights as bitsandbytes holds them ([`Nf4`]), also read only.
    Nf4,
}

impl DType {
    /// Whether it is only read, by products and lookups: such weights are not trained.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::Ggml(_) | Self::Nf4)
    }

    /// Bytes of `count` elements, which of a type in blocks are whole ones.
    pub fn bytes(self, count: usize) -> usize {
        match self {
            Self::F32 => 4 * count,
            Self::Bf16 => 2 * count,
            Self::Ggml(ty) => {
                ty.bytes(count).unwrap_or_else(|| panic!("{count} numbers are no whole {} blocks", ty.name()))
            }
            // With double quantisation: codes, a byte per block, a scale per 256 blocks, the codes' values.
            Self::Nf4 => {
                let blocks = count.div_ceil(NF4_BLOCK);
                count.div_ceil(2) + blocks + 4 * (blocks.div_ceil(NF4_NESTED_BLOCK) + 257)
            }
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::Ggml(ty) => ty.name(),
            Self::Nf4 => "NF4",
        })
    }
}

/// Bytes that others may hold, too: a buffer, or a part of a memory-mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Halves as the nearest bf16, the bytes of both: what products of bf16 read of a file of halves. On pages of the pool, which
/// are large, since all of such a file comes here while it is opened.
pub fn halves_as_bf16(bytes: &[u8]) -> SharedBytes {
    struct Rounded(Raw);
    impl AsRef<[u8]> for Rounded {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(self.0.bf16())
        }
    }
    let mut rounded = Raw::empty(DType::Bf16, [bytes.len() / 2]);
    halves_to_bf16(rounded.bf16_mut(), bytes);
    Arc::new(Rounded(rounded))
}

/// Where the elements are.
#[derive(Clone)]
enum Storage {
    Own(Arc<Buffer>),
    Shared(SharedBytes),
    Nf4(Arc<Nf4>),
}

/// A view of a buffer: shape and strides in elements, and no history.
#[derive(Clone)]
pub struct Raw {
    storage: Storage,
    dtype: DType,
    shape: Dims,
    strides: Dims,
    /// Elements of owned ones, bytes of shared ones.
    offset: usize,
}

impl Raw {
    /// A dense tensor with unspecified contents.
    pub fn empty(dtype: DType, shape: impl Into<Dims>) -> Self {
        let shape = shape.into();
        let storage = Storage::Own(Arc::new(Buffer::new(dtype.bytes(shape.count()))));
        Self { storage, dtype, shape, strides: shape.dense_strides(), offset: 0 }
    }

    /// A dense f32 tensor filled with `value`.
    pub fn full(shape: impl Into<Dims>, value: f32) -> Self {
        let mut raw = Self::empty(DType::F32, shape);
        raw.f32_mut().fill(value);
        raw
    }

    /// A dense f32 tensor holding a copy of `values`. Panics if the count does not fit the shape.
    pub fn from_f32(values: &[f32], shape: impl Into<Dims>) -> Self {
        let shape = shape.into();
        assert_eq!(values.len(), shape.count(), "{} values cannot fill shape {shape:?}", values.len());
        let mut raw = Self::empty(DType::F32, shape);
        raw.f32_mut().copy_from_slice(values);
        raw
    }

    /// A matrix of weights `[rows, cols]` in the element type of a GGUF file, whose bytes begin at `start`. Panics where
    /// they end before the matrix does.
    pub fn quantised(ty: GgmlType, shape: [usize; 2], bytes: SharedBytes, start: usize) -> Self {
        let (shape, dtype) = (Dims::from(shape), DType::Ggml(ty));
        let (has, needs) = (bytes.as_ref().as_ref().len(), ty.bytes(shape[1]).map(|row| start + shape[0] * row));
        assert!(needs.is_some_and(|needs| needs <= has), "{has} bytes from {start} on for {shape:?} {}", ty.name());
        Self { storage: Storage::Shared(bytes), dtype, shape, strides: shape.dense_strides(), offset: start }
    }

    /// The matrix of a tensor made by [`Raw::quantised`], if this is one.
    pub fn as_quantised(&self) -> Option<Quantised<'_>> {
        let (Storage::Shared(bytes), DType::Ggml(ty)) = (&self.storage, self.dtype) else { return None };
        assert!(self.is_dense() && self.shape.len() == 2, "a view {:?} of quantised weights", self.shape);
        let bytes = &bytes.as_ref().as_ref()[self.offset..][..self.dtype.bytes(self.count())];
        Some(Quantised::new(ty, bytes, self.shape[0], self.shape[1]))
    }

    /// A matrix of weights `[rows, cols]` in NF4. Panics where it has another number of elements.
    pub fn nf4(weights: Nf4, shape: [usize; 2]) -> Self {
        let shape = Dims::from(shape);
        assert_eq!(weights.count(), shape.count(), "numbers in NF4 for shape {shape:?}");
        let storage = Storage::Nf4(Arc::new(weights));
        Self { storage, dtype: DType::Nf4, shape, strides: shape.dense_strides(), offset: 0 }
    }

    /// The matrix of a tensor made by [`Raw::nf4`], if this is one.
    pub fn as_nf4(&self) -> Option<&Nf4> {
        let Storage::Nf4(weights) = &self.storage else { return None };
        assert!(self.is_dense() && weights.count() == self.count(), "a view {:?} of weights in NF4", self.shape);
        Some(weights)
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.as_nf4().map_or_else(|| self.dtype.bytes(self.count()), Nf4::bytes)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape.
    pub fn shape(&self) -> Dims {
        self.shape
    }

    /// Strides in elements.
    pub fn strides(&self) -> Dims {
        self.strides
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.count()
    }

    /// Rows when seen as a matrix of its last axis.
    pub fn rows(&self) -> usize {
        self.count().checked_div(self.shape.width()).unwrap_or(0)
    }

    /// Whether the elements lie one after the other in row-major order.
    pub fn is_dense(&self) -> bool {
        let dense = self.shape.dense_strides();
        self.shape.iter().zip(self.strides.iter().zip(dense.iter())).all(|(&size, (s, d))| size == 1 || s == d)
    }

    /// Whether no other tensor shares the buffer, so that it may be written.
    pub fn is_unique(&self) -> bool {
        // No weak reference to a buffer is ever made.
        matches!(&self.storage, Storage::Own(buffer) if Arc::strong_count(buffer) == 1)
    }

    fn elements<T: Pod>(&self, dtype: DType) -> &[T] {
        assert_eq!(dtype, self.dtype, "a tensor was read as another type");
        match &self.storage {
            Storage::Own(buffer) => &buffer.as_slice::<T>()[self.offset..],
            _ => panic!("weights of type {:?} were read as plain numbers", self.dtype),
        }
    }

    fn elements_mut<T: Pod>(&mut self, dtype: DType) -> &mut [T] {
        assert_eq!(dtype, self.dtype, "a tensor was written as another type");
        let own = match &mut self.storage {
            Storage::Own(buffer) => Arc::get_mut(buffer),
            _ => None,
        };
        let buffer = own.expect("a tensor is written only while nothing else shares it");
        &mut buffer.as_mut_slice::<T>()[self.offset..]
    }

    /// The elements of a dense f32 tensor.
    pub fn f32(&self) -> &[f32] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        &self.elements(DType::F32)[..self.count()]
    }

    /// The elements of a dense f32 tensor that nothing else shares.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        let count = self.count();
        &mut self.elements_mut(DType::F32)[..count]
    }

    /// The elements of a dense bf16 tensor.
    pub fn bf16(&self) -> &[bf16] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        &self.elements(DType::Bf16)[..self.count()]
    }

    /// The elements of a dense bf16 tensor that nothing else shares.
    pub fn bf16_mut(&mut self) -> &mut [bf16] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        let count = self.count();
        &mut self.elements_mut(DType::Bf16)[..count]
    }

    /// f32 data from the view's first element on; index it with [`Raw::strides`].
    pub fn strided_f32(&self) -> &[f32] {
        self.elements(DType::F32)
    }

    /// bf16 data from the view's first element on; index it with [`Raw::strides`].
    pub fn strided_bf16(&self) -> &[bf16] {
        self.elements(DType::Bf16)
    }

    /// Mutable f32 data from the view's first element on; nothing else may share the buffer.
    pub fn strided_f32_mut(&mut self) -> &mut [f32] {
        self.elements_mut(DType::F32)
    }

    /// Mutable bf16 data from the view's first element on; nothing else may share the buffer.
    pub fn strided_bf16_mut(&mut self) -> &mut [bf16] {
        self.elements_mut(DType::Bf16)
    }

    /// The same dense elements under another shape of equal count.
    pub fn reshaped(&self, shape: impl Into<Dims>) -> Self {
        let shape = shape.into();
        assert!(self.is_dense(), "reshape of a strided view {:?}", self.shape);
        assert_eq!(self.count(), shape.count(), "reshape {:?} to {shape:?}", self.shape);
        Self { shape, strides: shape.dense_strides(), ..self.clone() }
    }

    /// Gives this tensor itself another shape of equal count.
    pub fn reshape_in_place(&mut self, shape: impl Into<Dims>) {
        let shape = shape.into();
        assert!(self.is_dense() && self.count() == shape.count(), "reshape {:?} to {shape:?}", self.shape);
        self.shape = shape;
        self.strides = shape.dense_strides();
    }

    /// The same strided view with the last axis split into `[parts, width / parts]`.
    pub fn split_last(&self, parts: usize) -> Self {
        let (axis, width) = (self.shape.len() - 1, self.shape.width());
        assert!(parts > 0 && width.is_multiple_of(parts), "last axis {width} does not split into {parts} parts");
        let mut shape = self.shape.to_vec();
        let mut strides = self.strides.to_vec();
        shape[axis] = parts;
        shape.push(width / parts);
        strides[axis] = self.strides[axis] * (width / parts);
        strides.push(self.strides[axis]);
        Self { shape: Dims::new(&shape), strides: Dims::new(&strides), ..self.clone() }
    }

    /// The part `start..start + len` of `axis`, sharing the buffer.
    pub fn narrowed(&self, axis: usize, start: usize, len: usize) -> Self {
        assert!(start + len <= self.shape[axis], "narrow {:?} on axis {axis} to {start}..{}", self.shape, start + len);
        Self { shape: self.shape.with(axis, len), offset: self.offset + start * self.strides[axis], ..self.clone() }
    }

    /// The view with two axes exchanged.
    pub fn transposed(&self, a: usize, b: usize) -> Self {
        let swap = |dims: Dims| dims.with(a, dims[b]).with(b, dims[a]);
        Self { shape: swap(self.shape), strides: swap(self.strides), ..self.clone() }
    }
}
