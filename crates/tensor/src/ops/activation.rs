//! Activations, gates, dropout and softmax.

use loam_kernels::elementwise::Unary;

use crate::backend::Dropout;
use crate::ops::linear::Saved;
use crate::raw::{DType, Raw};
use crate::tensor::{Tensor, backend};

impl Tensor {
    /// `op(self)`, element by element.
    pub fn unary(&self, op: Unary) -> Self {
        let x = self.dense_as_kept();
        let again = x.clone();
        Self::from_op(backend().unary(op, &x), &[self], move |dy, grads| {
            grads.add(0, backend().unary_backward(op, &x, dy));
        })
        .remade_by(move || backend().unary(op, &again))
    }

    /// `act(self) * up`: the gated feed-forward of Shazeer (2020), eq. 5.
    pub fn gated(&self, act: Unary, up: &Self) -> Self {
        assert_eq!(self.shape(), up.shape(), "gated: gate and up have one shape");
        let is_narrow = self.raw().dtype() == DType::Bf16 && up.raw().dtype() == DType::Bf16;
        let (gate, up_raw) =
            if is_narrow { (self.dense_as_kept(), up.dense_as_kept()) } else { (self.dense(), up.dense()) };
        let again = (gate.clone(), up_raw.clone());
        Self::from_op(backend().gated(act, &gate, &up_raw), &[self, up], move |dy, grads| {
            let (dgate, dup) = backend().gated_backward(act, &gate, &up_raw, dy);
            grads.add(0, dgate);
            grads.add(1, dup);
        })
        .remade_by(move || backend().gated(act, &again.0, &again.1))
    }

    /// Inverted dropout: zero with probability `p`, else divide by `1 - p` (Srivastava et al. 2014).
    pub fn dropout(&self, dropout: Dropout) -> Self {
        assert!((0.0..1.0).contains(&dropout.p), "dropout probability {} is outside 0..1", dropout.p);
        let kept = self.dense_as_kept();
        let drop = move |x: &Raw| backend().dropout(&backend().cast(x, DType::F32), dropout);
        let (y, x) = (drop(&kept), Saved::of(self, &kept));
        Self::from_op(y, &[self], move |dy, grads| grads.add(0, drop(dy))).remade_by(move || drop(&x.raw()))
    }

    /// Softmax over the last axis.
    pub fn softmax(&self) -> Self {
        let y = backend().softmax(&self.dense());
        let saved = y.clone();
        Self::from_op(y, &[self], move |dy, grads| grads.add(0, backend().softmax_backward(&saved, dy)))
    }

    /// Log-softmax over the last axis, natural logarithm.
    pub fn log_softmax(&self) -> Self {
        let y = backend().log_softmax(&self.dense());
        let saved = y.clone();
        Self::from_op(y, &[self], move |dy, grads| grads.add(0, backend().log_softmax_backward(&saved, dy)))
    }
}
