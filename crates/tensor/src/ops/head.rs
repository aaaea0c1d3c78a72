//! The product that makes logits of hidden states, a chunk of rows at a time, and the gradients of its operands.

use loam_kernels::elementwise::Unary;

use crate::autograd::is_recording;
use crate::backend::Start;
use crate::dims::Dims;
use crate::ops::linear::{as_matrix, beside};
use crate::precision::{Precision, precision};
use crate::raw::{DType, Raw};
use crate::tensor::{Tensor, backend};

/// Most logits of one chunk of rows: 36 MiB. A product with fewer rows spends its time on copying the head.
const CHUNK_ELEMENTS: usize = 9 << 20;

/// Rows whose logits [`Tensor::linear_cross_entropy`] and its relatives hold at a time.
pub fn head_chunk_rows(rows: usize, vocab: usize) -> usize {
    rows.div_ceil(rows.div_ceil((CHUNK_ELEMENTS / vocab).max(16)).max(1))
}

/// The operands of a head's product.
pub(super) struct Head {
    hidden: Raw,
    weight: Raw,
    bias: Option<Raw>,
    precision: Precision,
    softcap: Option<f32>,
    hidden_shape: Dims,
    bias_shape: Option<Dims>,
    weight_wants_grad: bool,
    bias_wants_grad: bool,
    /// Whether gradients flow back through it.
    pub(super) wants_grad: bool,
}

/// Some rows of logits.
pub(super) struct Chunk {
    /// Number of the first row.
    pub(super) start: usize,
    /// Logits after the cap: `[rows, vocab]`.
    pub(super) logits: Raw,
    /// What the cap's slope is computed from.
    uncapped: Option<Raw>,
}

impl Head {
    /// The head `weight` `[vocab, hidden]` with `bias` `[vocab]` on `hidden` `[.., hidden]`; with a soft cap c logits are
    /// `c tanh(logit / c)`. `name` is the operation's, for messages.
    pub(super) fn new(
        name: &str,
        hidden: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        softcap: Option<f32>,
    ) -> Self {
        let precision = precision();
        assert_eq!(
            hidden.shape().width(),
            weight.size(1),
            "{name}: head {:?} on hidden {:?}",
            weight.shape(),
            hidden.shape()
        );
        let bias_values = bias.map(Tensor::dense);
        if let Some(bias) = &bias_values {
            assert_eq!(bias.count(), weight.size(0), "{name}: head {:?}, bias {:?}", weight.shape(), bias.shape());
        }
        let wants_grad = is_recording() && [hidden, weight].into_iter().chain(bias).any(Tensor::wants_grad);
        let (rows, matrix) = match weight.raw().dtype().is_packed() {
            true => (beside(hidden, weight.raw(), precision), weight.raw().clone()),
            false => (as_matrix(&hidden.operand(precision)), weight.operand(precision)),
        };
        Self {
            hidden: rows,
            weight: matrix,
            bias: bias_values,
            precision,
            softcap,
            hidden_shape: hidden.shape(),
            bias_shape: bias.map(Tensor::shape),
            weight_wants_grad: is_recording() && weight.wants_grad(),
            bias_wants_grad: is_recording() && bias.is_some_and(Tensor::wants_grad),
            wants_grad,
        }
    }

    /// Rows of logits.
    pub(super) fn rows(&self) -> usize {
        self.hidden.rows()
    }

    /// Logits of all rows, one chunk after the other.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        let rows = self.rows();
        let step = head_chunk_rows(rows, self.weight.shape()[0]).max(1);
        (0..rows).step_by(step).map(move |start| self.chunk(start, step.min(rows - start)))
    }

    fn chunk(&self, start: usize, len: usize) -> Chunk {
        let rows = self.hidden.narrowed(0, start, len);
        let mut logits = match self.weight.dtype().is_packed() {
            true => backend().linear_quantised(&rows, &self.weight, self.bias.as_ref()),
            false => {
                let mut logits = Raw::empty(DType::F32, [len, self.weight.shape()[0]]);
                let from = self.bias.as_ref().map_or(Start::Zero, Start::Bias);
                backend().matmul(&mut logits, &rows, &self.weight.transposed(0, 1), from, self.precision);
                logits
            }
        };
        let uncapped = self.softcap.map(|cap| backend().affine(&logits, 1.0 / cap, 0.0));
        if let (Some(cap), Some(x)) = (self.softcap, &uncapped) {
            logits = backend().affine(&backend().unary(Unary::Tanh, x), cap, 0.0);
        }
        Chunk { start, logits, uncapped }
    }

    /// Where the gradients of the operands are collected; without room where none flow back.
    pub(super) fn gradients(&self) -> HeadGrads {
        let hidden = if self.wants_grad { self.hidden.shape() } else { [0, 0].into() };
        HeadGrads {
            hidden: Raw::empty(DType::F32, hidden),
            weight: self.weight_wants_grad.then(|| Raw::empty(DType::F32, self.weight.shape())),
            bias: self.bias_wants_grad.then(|| Raw::full([self.weight.shape()[0]], 0.0)),
            hidden_shape: self.hidden_shape,
            bias_shape: self.bias_shape,
        }
    }

    /// Adds what the slope of a chunk's logits, which takes their place in it, is for the operands.
    pub(super) fn add_to(&self, sums: &mut HeadGrads, chunk: Chunk) {
        let Chunk { start, logits: mut slope, uncapped } = chunk;
        if let Some(x) = &uncapped {
            slope = backend().unary_backward(Unary::Tanh, x, &slope);
        }
        let rows = self.hidden.narrowed(0, start, slope.rows());
        if let Some(bias) = &mut sums.bias {
            backend().add_column_sums(bias, &slope);
        }
        let mut dh = Raw::empty(DType::F32, [slope.rows(), self.weight.shape().width()]);
        match self.weight.dtype().is_packed() {
            true => {
                backend().linear_quantised_backward(&mut dh, &slope, &self.weight, Start::Zero, self.precision);
            }
            false => backend().matmul(&mut dh, &slope, &self.weight, Start::Zero, self.precision),
        }
        backend().write_region(&mut sums.hidden, 0, start, &dh);
        if let Some(weight) = &mut sums.weight {
            let sum = if start == 0 { Start::Zero } else { Start::Sum };
            backend().matmul(weight, &slope.transposed(0, 1), &rows, sum, self.precision);
        }
    }
}

/// Gradients of a head's operands.
pub(super) struct HeadGrads {
    hidden: Raw,
    weight: Option<Raw>,
    bias: Option<Raw>,
    hidden_shape: Dims,
    bias_shape: Option<Dims>,
}

impl HeadGrads {
    /// Hands them, times `factor`, to the parents hidden, weight and bias of an operation.
    pub(super) fn give(self, factor: f32, grads: &mut crate::autograd::Grads<'_>) {
        let scaled = |raw: Raw| if factor == 1.0 { raw } else { backend().affine(&raw, factor, 0.0) };
        if grads.wants(0) {
            grads.add(0, scaled(self.hidden).reshaped(self.hidden_shape));
        }
        if let Some(weight) = self.weight {
            grads.add(1, scaled(weight));
        }
        if let (Some(shape), Some(bias)) = (self.bias_shape, self.bias) {
            grads.add(2, scaled(bias).reshaped(shape));
        }
    }
}
