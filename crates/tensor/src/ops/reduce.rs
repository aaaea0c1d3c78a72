//! Reductions.

use crate::dims::Dims;
use crate::raw::Raw;
use crate::tensor::{Tensor, backend};

impl Tensor {
    /// Sum of all elements, a scalar.
    pub fn sum(&self) -> Self {
        let shape = self.shape();
        let total = backend().sum(&self.dense());
        Self::from_op(Raw::full([], total), &[self], move |dy, grads| grads.add(0, Raw::full(shape, dy.f32()[0])))
    }

    /// Mean of all elements, a scalar.
    pub fn mean(&self) -> Self {
        self.sum().scale(1.0 / self.count() as f32)
    }

    /// Sum over the last axis: `[.., width] -> [..]`.
    pub fn sum_last(&self) -> Self {
        let shape = self.shape();
        Self::from_op(backend().sum_last(&self.dense()), &[self], move |dy, grads| {
            let mut spread = Raw::empty(crate::raw::DType::F32, shape);
            let width = shape.width().max(1);
            for (row, &value) in spread.f32_mut().chunks_exact_mut(width).zip(dy.f32()) {
                row.fill(value);
            }
            grads.add(0, spread);
        })
    }

    /// Mean over the last axis: `[.., width] -> [..]`.
    pub fn mean_last(&self) -> Self {
        self.sum_last().scale(1.0 / self.shape().width() as f32)
    }
}

impl From<f32> for Tensor {
    fn from(value: f32) -> Self {
        Self::full(Dims::new(&[]), value)
    }
}
