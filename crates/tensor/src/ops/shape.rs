//! Views and copies: none does arithmetic.

use crate::dims::Dims;
use crate::raw::{DType, Raw};
use crate::tensor::{Tensor, backend};

impl Tensor {
    /// The same elements in row-major order under another shape of equal count.
    pub fn reshape(&self, shape: impl Into<Dims>) -> Self {
        // Backward hands gradients over in the shape of the node, so nothing is to be done but pass it on.
        Self::from_op(self.dense_as_kept().reshaped(shape), &[self], |dy, grads| grads.add(0, dy.clone()))
    }

    /// A view with the last axis split into heads: `[.., heads * head_dim] -> [.., heads, head_dim]`, no copy.
    pub fn split_heads(&self, heads: usize) -> Self {
        Self::from_op(self.raw().split_last(heads), &[self], |dy, grads| grads.add(0, dy.clone()))
    }

    /// The view `start..start + len` of `axis`, no copy.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Self {
        Self::from_op(self.raw().narrowed(axis, start, len), &[self], move |dy, grads| {
            grads.add_into(0, |slot| backend().add_region(slot, axis, start, dy));
        })
    }

    /// The view with two axes exchanged, no copy.
    pub fn transpose(&self, a: usize, b: usize) -> Self {
        Self::from_op(self.raw().transposed(a, b), &[self], move |dy, grads| {
            grads.add(0, backend().copy(&dy.transposed(a, b)));
        })
    }

    /// Tensors joined along `axis`; they agree on every other.
    pub fn concat(parts: &[&Self], axis: usize) -> Self {
        let total: usize = parts.iter().map(|part| part.size(axis)).sum();
        let shape = parts[0].shape().with(axis, total);
        // In bf16 only where all parts are.
        let is_narrow = parts.iter().all(|part| part.raw().dtype() == DType::Bf16);
        let mut joined = Raw::empty(if is_narrow { DType::Bf16 } else { DType::F32 }, shape);
        let mut starts = Vec::with_capacity(parts.len());
        let mut start = 0;
        for part in parts {
            let len = part.size(axis);
            assert_eq!(part.shape().with(axis, total), shape, "concat on axis {axis}: {:?}", part.shape());
            let part = if is_narrow { part.raw().clone() } else { part.dense() };
            backend().write_region(&mut joined, axis, start, &part);
            starts.push((start, len));
            start += len;
        }
        Self::from_op(joined, parts, move |dy, grads| {
            for (index, (start, len)) in starts.into_iter().enumerate() {
                if grads.wants(index) {
                    grads.add(index, backend().copy(&dy.narrowed(axis, start, len)));
                }
            }
        })
    }
}
