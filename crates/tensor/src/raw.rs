//! [`Raw`]: data without history, what a backend works on.

use std::sync::Arc;

use bytemuck::Pod;
use half::bf16;

use crate::dims::Dims;
use crate::pool::Buffer;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: values, gradients, master weights.
    F32,
    /// bfloat16: operands of matrix products and saved activations.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A view of a buffer: shape and strides in elements, and no history.
#[derive(Clone)]
pub struct Raw {
    buffer: Arc<Buffer>,
    dtype: DType,
    shape: Dims,
    strides: Dims,
    offset: usize,
}

impl Raw {
    /// A dense tensor with unspecified contents.
    pub fn empty(dtype: DType, shape: impl Into<Dims>) -> Self {
        let shape = shape.into();
        let buffer = Arc::new(Buffer::new(shape.count() * dtype.size_bytes()));
        Self { buffer, dtype, shape, strides: shape.dense_strides(), offset: 0 }
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
        Arc::strong_count(&self.buffer) == 1
    }

    fn elements<T: Pod>(&self) -> &[T] {
        assert_eq!(std::mem::size_of::<T>(), self.dtype.size_bytes(), "read {:?} as another type", self.dtype);
        &self.buffer.as_slice::<T>()[self.offset..]
    }

    fn elements_mut<T: Pod>(&mut self) -> &mut [T] {
        assert_eq!(std::mem::size_of::<T>(), self.dtype.size_bytes(), "wrote {:?} as another type", self.dtype);
        let buffer = Arc::get_mut(&mut self.buffer).expect("a tensor is written only while nothing else shares it");
        &mut buffer.as_mut_slice::<T>()[self.offset..]
    }

    /// The elements of a dense f32 tensor.
    pub fn f32(&self) -> &[f32] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        &self.elements()[..self.count()]
    }

    /// The elements of a dense f32 tensor that nothing else shares.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        let count = self.count();
        &mut self.elements_mut()[..count]
    }

    /// The elements of a dense bf16 tensor.
    pub fn bf16(&self) -> &[bf16] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        &self.elements()[..self.count()]
    }

    /// The elements of a dense bf16 tensor that nothing else shares.
    pub fn bf16_mut(&mut self) -> &mut [bf16] {
        assert!(self.is_dense(), "dense data asked of shape {:?} with strides {:?}", self.shape, self.strides);
        let count = self.count();
        &mut self.elements_mut()[..count]
    }

    /// f32 data from the view's first element on; index it with [`Raw::strides`].
    pub fn strided_f32(&self) -> &[f32] {
        self.elements()
    }

    /// bf16 data from the view's first element on; index it with [`Raw::strides`].
    pub fn strided_bf16(&self) -> &[bf16] {
        self.elements()
    }

    /// Mutable f32 data from the view's first element on; nothing else may share the buffer.
    pub fn strided_f32_mut(&mut self) -> &mut [f32] {
        self.elements_mut()
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
