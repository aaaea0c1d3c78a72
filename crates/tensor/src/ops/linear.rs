//! Matrix products.

use loam_kernels::elementwise::Unary;

use crate::backend::Start;
use crate::precision::{Precision, precision};
use crate::raw::{DType, Raw};
use crate::tensor::{Again, Tensor, backend};

/// A dense tensor as the matrix of its last axis.
pub(crate) fn as_matrix(x: &Raw) -> Raw {
    x.reshaped([x.rows(), x.shape().width()])
}

/// A tensor as the matrix that products with a weight of a file take.
pub(crate) fn beside(x: &Tensor, weight: &Raw, precision: Precision) -> Raw {
    let precision = backend().multiplies_in(weight.dtype(), precision);
    let x = as_matrix(&x.operand(precision));
    match precision {
        Precision::F32 => x,
        // A parameter that is being trained stays f32 elsewhere.
        Precision::Bf16 => backend().cast(&x, DType::Bf16),
    }
}

/// What backward needs of an input: the data, or how to make it again.
pub(crate) enum Saved {
    Kept(Raw),
    Again(Again),
}

impl Saved {
    pub(crate) fn of(x: &Tensor, operand: &Raw) -> Self {
        x.again().map_or_else(|| Self::Kept(operand.clone()), Self::Again)
    }

    pub(crate) fn raw(&self) -> Raw {
        match self {
            Self::Kept(x) => x.clone(),
            Self::Again(again) => again(),
        }
    }
}

impl Tensor {
    /// `self weight^T + bias`: `[.., in] x [out, in] (+ [out]) -> [.., out]`. The weight may be quantised.
    pub fn linear(&self, weight: &Self, bias: Option<&Self>) -> Self {
        let precision = precision();
        let (out_features, in_features) = (weight.size(0), weight.size(1));
        let shape = self.shape();
        assert_eq!(shape.width(), in_features, "linear: input {shape:?} does not fit weight {:?}", weight.shape());
        if weight.raw().dtype().is_packed() {
            return self.linear_quantised(weight, bias);
        }
        let (x, w) = (as_matrix(&self.operand(precision)), weight.operand(precision));
        let mut y = Raw::empty(DType::F32, [x.rows(), out_features]);
        let bias_values = bias.map(Tensor::dense);
        if let Some(bias) = bias {
            assert_eq!(bias.count(), out_features, "linear: bias {:?} for {out_features} outputs", bias.shape());
        }
        let start = bias_values.as_ref().map_or(Start::Zero, Start::Bias);
        backend().matmul(&mut y, &x, &w.transposed(0, 1), start, precision);
        let y = y.reshaped(shape.with(shape.len() - 1, out_features));
        let mut parents = vec![self, weight];
        parents.extend(bias);
        let (rows, has_bias) = (x.rows(), bias.is_some());
        // A frozen weight, as under an adapter, needs nothing of the input.
        let saved = weight.wants_grad().then(|| Saved::of(self, &x));
        Self::from_op(y, &parents, move |dy, grads| {
            let dy = as_matrix(dy);
            if has_bias && grads.wants(2) {
                grads.add_into(2, |slot| backend().add_column_sums(slot, &dy));
            }
            if grads.wants(0) {
                grads.accumulate(0, |slot, start| {
                    as_rows(slot, [rows, in_features], |slot| backend().matmul(slot, &dy, &w, start, precision));
                });
            }
            if let Some(x) = saved.as_ref().map(|saved| as_matrix(&saved.raw())) {
                grads.accumulate(1, |slot, start| backend().matmul(slot, &dy.transposed(0, 1), &x, start, precision));
            }
        })
    }

    /// [`Tensor::linear`] with a weight that is quantised and so has no gradient.
    fn linear_quantised(&self, weight: &Self, bias: Option<&Self>) -> Self {
        let (precision, shape, w) = (precision(), self.shape(), weight.raw().clone());
        let bias_values = bias.map(Tensor::dense);
        let y = backend().linear_quantised(&beside(self, &w, precision), &w, bias_values.as_ref());
        let (rows, inputs) = (y.rows(), w.shape()[1]);
        let parents: Vec<&Self> = [self].into_iter().chain(bias).collect();
        Self::from_op(y.reshaped(shape.with(shape.len() - 1, w.shape()[0])), &parents, move |dy, grads| {
            let dy = as_matrix(dy);
            if bias_values.is_some() && grads.wants(1) {
                grads.add_into(1, |slot| backend().add_column_sums(slot, &dy));
            }
            if grads.wants(0) {
                grads.accumulate(0, |slot, start| {
                    as_rows(slot, [rows, inputs], |slot| {
                        backend().linear_quantised_backward(slot, &dy, &w, start, precision);
                    });
                });
            }
        })
    }

    /// `down(act(gate x) * up x)`, gate, up and down each a weight and a bias: the gated feed-forward of Shazeer (2020),
    /// eq. 5. The same bits as [`Tensor::linear`] and [`Tensor::gated`], in one operation; none where weights are not
    /// quantised, something wants a gradient, or activations are bf16.
    pub fn feed_forward(&self, act: Unary, layers: [(&Self, Option<&Self>); 3]) -> Option<Self> {
        let wanted = self.wants_grad() || layers.iter().any(|(_, bias)| bias.is_some_and(Self::wants_grad));
        if precision() != Precision::F32 || wanted {
            return None;
        }
        let (weights, biases) = (layers.map(|(weight, _)| weight.raw()), layers.map(|(_, bias)| bias.map(Self::dense)));
        let raws = [0, 1, 2].map(|i| (weights[i], biases[i].as_ref()));
        let y = backend().feed_forward(act, &as_matrix(&self.dense()), raws)?;
        let shape = self.shape();
        Some(Self::constant(y.reshaped(shape.with(shape.len() - 1, weights[2].shape()[0]))))
    }

    /// `self other`: matrices `[m, k] x [k, n]`, or as many of them `[batch, m, k] x [batch, k, n]`.
    pub fn matmul(&self, other: &Self) -> Self {
        let precision = precision();
        let (a, b) = (self.shape(), other.shape());
        let rank = a.len();
        assert!(
            (rank == 2 || rank == 3) && b.len() == rank && a[rank - 1] == b[rank - 2] && a[..rank - 2] == b[..rank - 2],
            "matmul: {a:?} x {b:?}"
        );
        let (x, w) = (self.operand(precision), other.operand(precision));
        let mut y = Raw::empty(DType::F32, a.with(rank - 1, b[rank - 1]));
        backend().matmul(&mut y, &x, &w, Start::Zero, precision);
        Self::from_op(y, &[self, other], move |dy, grads| {
            let (last, before) = (rank - 1, rank - 2);
            let (x, w) = (x.transposed(last, before), w.transposed(last, before));
            grads.accumulate(0, |slot, start| backend().matmul(slot, dy, &w, start, precision));
            grads.accumulate(1, |slot, start| backend().matmul(slot, &x, dy, start, precision));
        })
    }
}

/// Writes to a slot as to a matrix with as many elements.
fn as_rows(slot: &mut Raw, matrix: [usize; 2], write: impl FnOnce(&mut Raw)) {
    let shape = slot.shape();
    slot.reshape_in_place(matrix);
    write(slot);
    slot.reshape_in_place(shape);
}
