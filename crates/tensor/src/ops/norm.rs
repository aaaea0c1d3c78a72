//! Normalisation over the last axis.

use crate::backend::NormKind;
use crate::raw::Raw;
use crate::tensor::{Tensor, backend};

impl Tensor {
    /// `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis (Ba et al. 2016, eq. 4).
    pub fn layer_norm(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Self {
        self.norm(NormKind::Layer, weight, bias, eps)
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last axis (Zhang and Sennrich 2019, eq. 4).
    pub fn rms_norm(&self, weight: &Self, eps: f32) -> Self {
        self.norm(NormKind::Rms, weight, None, eps)
    }

    fn norm(&self, kind: NormKind, weight: &Self, bias: Option<&Self>, eps: f32) -> Self {
        assert_eq!(self.shape().width(), weight.count(), "{kind:?} norm of {:?}", self.shape());
        let (x, w) = (self.dense(), weight.dense());
        let b = bias.map(Tensor::dense);
        let (y, stats) = backend().norm(kind, &x, &w, b.as_ref(), eps);
        let (again_x, again_w) = (x.clone(), w.clone());
        let mut parents = vec![self, weight];
        parents.extend(bias);
        let has_bias = bias.is_some();
        Self::from_op(y, &parents, move |dy, grads| {
            // Frozen weights still need somewhere to write to: a scratch of one row.
            let mut dweight = Raw::full(w.shape(), 0.0);
            let mut dbias = has_bias.then(|| Raw::full(w.shape(), 0.0));
            let dx = backend().norm_backward(kind, dy, &x, &w, &stats, &mut dweight, dbias.as_mut());
            grads.add(0, dx);
            grads.add(1, dweight);
            if let Some(dbias) = dbias {
                grads.add(2, dbias);
            }
        })
        .remade_by(move || backend().norm(kind, &again_x, &again_w, b.as_ref(), eps).0)
    }
}
