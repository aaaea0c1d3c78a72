//! Reductions.

use crate::dims::Dims;
use crate::raw::{DType, Raw};
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
        let width = self.shape().width();
        Self::from_op(backend().sum_last(&self.dense()), &[self], move |dy, grads| grads.add(0, spread(dy, width)))
    }

    /// Every element `width` times along a new last axis: `[..] -> [.., width]`.
    pub fn repeat_last(&self, width: usize) -> Self {
        Self::from_op(spread(&self.dense(), width), &[self], |dy, grads| grads.add(0, backend().sum_last(dy)))
    }

    /// Mean over the last axis: `[.., width] -> [..]`.
    pub fn mean_last(&self) -> Self {
        self.sum_last().scale(1.0 / self.shape().width() as f32)
    }
}

fn spread(x: &Raw, width: usize) -> Raw {
    let mut sizes = x.shape().to_vec();
    sizes.push(width);
    let mut out = Raw::empty(DType::F32, Dims::new(&sizes));
    for (row, &value) in out.f32_mut().chunks_exact_mut(width.max(1)).zip(x.f32()) {
        row.fill(value);
    }
    out
}

impl From<f32> for Tensor {
    fn from(value: f32) -> Self {
        Self::full(Dims::new(&[]), value)
    }
}
