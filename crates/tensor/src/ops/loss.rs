//! Cross-entropy, alone and fused with the head that makes the logits.

use loam_kernels::cross_entropy::Terms as CrossEntropyTerms;
use loam_kernels::elementwise::Unary;

use crate::autograd::is_recording;
use crate::backend::Start;
use crate::ops::linear::as_matrix;
use crate::precision::{Precision, precision};
use crate::raw::{DType, Raw};
use crate::tensor::{Tensor, backend};

/// Most logits of one chunk of rows: 48 MiB. A product with fewer rows spends its time on copying the head.
const CHUNK_ELEMENTS: usize = 12 << 20;

/// Rows whose logits [`Tensor::linear_cross_entropy`] holds at a time.
pub fn head_chunk_rows(rows: usize, vocab: usize) -> usize {
    rows.div_ceil(rows.div_ceil((CHUNK_ELEMENTS / vocab).max(16)).max(1))
}

/// What [`Tensor::linear_cross_entropy`] does with the logits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeadSettings {
    /// With a soft cap c they are `c tanh(logit / c)`.
    pub softcap: Option<f32>,
    /// Label smoothing and z-loss, of the capped ones.
    pub terms: CrossEntropyTerms,
}

impl Tensor {
    /// `cap tanh(self / cap)`: the soft cap of Gemma 2's logits.
    pub fn softcap(&self, cap: f32) -> Self {
        self.scale(1.0 / cap).unary(Unary::Tanh).scale(cap)
    }

    /// Sum over rows of `-log softmax(self)[target]` and of `terms`, times `scale`; rows with target -100 count nothing.
    ///
    /// `self`: logits `[.., vocab]`; one target per row; natural-log units.
    pub fn cross_entropy(&self, targets: &[i32], scale: f32, terms: CrossEntropyTerms) -> Self {
        let logits = self.dense();
        assert_eq!(targets.len(), logits.rows(), "cross_entropy: {} targets for {:?}", targets.len(), self.shape());
        let losses = backend().cross_entropy(&logits, targets, terms);
        let targets = targets.to_vec();
        Self::from_op(Raw::full([], total(&losses) * scale), &[self], move |dy, grads| {
            let mut slope = backend().affine(&logits, 1.0, 0.0);
            backend().cross_entropy_backward(&mut slope, &targets, scale * dy.f32()[0], terms);
            grads.add(0, slope);
        })
    }

    /// As [`Tensor::cross_entropy`] of `self.linear(weight, bias)`, in chunks of rows: neither the logits nor their
    /// gradient ever exist as a whole. `self`: hidden states `[.., hidden]`; `weight`: `[vocab, hidden]`; `bias`:
    /// `[vocab]`.
    pub fn linear_cross_entropy(
        &self,
        weight: &Self,
        bias: Option<&Self>,
        targets: &[i32],
        scale: f32,
        settings: HeadSettings,
    ) -> Self {
        let HeadSettings { softcap, terms } = settings;
        let precision = precision();
        let hidden = as_matrix(&self.dense());
        let (rows, width, vocab) = (hidden.rows(), hidden.shape().width(), weight.size(0));
        assert_eq!(width, weight.size(1), "head {:?} on hidden {:?}", weight.shape(), self.shape());
        assert_eq!(targets.len(), rows, "linear_cross_entropy: {} targets for {rows} rows", targets.len());
        // A quantised head is multiplied as it is, unless gradients flow back through it.
        let parents: Vec<&Self> = [self, weight].into_iter().chain(bias).collect();
        let wants_grad = is_recording() && parents.iter().any(|parent| parent.wants_grad());
        let is_quantised = weight.raw().as_quantised().is_some();
        let (h, w) = match precision {
            _ if is_quantised && !wants_grad => (hidden, weight.raw().clone()),
            Precision::F32 if is_quantised => (hidden, backend().cast(weight.raw(), DType::F32)),
            Precision::F32 => (hidden, weight.dense()),
            Precision::Bf16 => (as_matrix(&self.operand(precision)), weight.operand(precision)),
        };
        let bias_values = bias.map(Tensor::dense);
        if let Some(bias) = &bias_values {
            assert_eq!(bias.count(), vocab, "head {:?} with bias {:?}", weight.shape(), bias.shape());
        }
        let bias_wants_grad = is_recording() && bias.is_some_and(Self::wants_grad);
        let mut head = HeadGrads::new(wants_grad, [rows, width], [vocab, width], bias_wants_grad);
        let mut sum = 0.0f64;
        let chunk_rows = head_chunk_rows(rows, vocab);
        let mut start = 0;
        while start < rows {
            let len = chunk_rows.min(rows - start);
            let h_chunk = h.narrowed(0, start, len);
            let mut logits = match w.as_quantised() {
                Some(_) => backend().linear_quantised(&h_chunk, &w, bias_values.as_ref()),
                None => {
                    let mut logits = Raw::empty(DType::F32, [len, vocab]);
                    let from = bias_values.as_ref().map_or(Start::Zero, Start::Bias);
                    backend().matmul(&mut logits, &h_chunk, &w.transposed(0, 1), from, precision);
                    logits
                }
            };
            let chunk_targets = &targets[start..start + len];
            // What the cap's slope is computed from.
            let uncapped = softcap.map(|cap| backend().affine(&logits, 1.0 / cap, 0.0));
            if let (Some(cap), Some(x)) = (softcap, &uncapped) {
                logits = backend().affine(&backend().unary(Unary::Tanh, x), cap, 0.0);
            }
            let losses = if wants_grad {
                let losses = backend().cross_entropy_backward(&mut logits, chunk_targets, scale, terms);
                if let Some(x) = &uncapped {
                    logits = backend().unary_backward(Unary::Tanh, x, &logits);
                }
                head.add_chunk(start, &h_chunk, &w, &logits, precision);
                losses
            } else {
                backend().cross_entropy(&logits, chunk_targets, terms)
            };
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            start += len;
        }
        let shape = self.shape();
        let bias_shape = bias.map(Self::shape);
        Self::from_op(Raw::full([], (sum * f64::from(scale)) as f32), &parents, move |dy, grads| {
            let factor = dy.f32()[0];
            let scaled = |raw: Raw| if factor == 1.0 { raw } else { backend().affine(&raw, factor, 0.0) };
            if grads.wants(0) {
                grads.add(0, scaled(head.hidden).reshaped(shape));
            }
            if grads.wants(1) {
                grads.add(1, scaled(head.weight));
            }
            if let (Some(shape), Some(bias)) = (bias_shape, head.bias) {
                grads.add(2, scaled(bias).reshaped(shape));
            }
        })
    }
}

/// Gradients of the head's operands, collected during forward while each chunk of logits is at hand.
pub(super) struct HeadGrads {
    pub(super) hidden: Raw,
    pub(super) weight: Raw,
    pub(super) bias: Option<Raw>,
}

impl HeadGrads {
    pub(super) fn new(wanted: bool, hidden: [usize; 2], weight: [usize; 2], wants_bias: bool) -> Self {
        let shape = |full: [usize; 2]| if wanted { full } else { [0, 0] };
        Self {
            hidden: Raw::empty(DType::F32, shape(hidden)),
            weight: Raw::empty(DType::F32, shape(weight)),
            bias: wants_bias.then(|| Raw::full([weight[0]], 0.0)),
        }
    }

    pub(super) fn add_chunk(&mut self, start: usize, h: &Raw, w: &Raw, dlogits: &Raw, precision: Precision) {
        if let Some(bias) = &mut self.bias {
            backend().add_column_sums(bias, dlogits);
        }
        let mut dh = Raw::empty(DType::F32, [h.rows(), w.shape().width()]);
        backend().matmul(&mut dh, dlogits, w, Start::Zero, precision);
        backend().write_region(&mut self.hidden, 0, start, &dh);
        let sum = if start == 0 { Start::Zero } else { Start::Sum };
        backend().matmul(&mut self.weight, &dlogits.transposed(0, 1), h, sum, precision);
    }
}

/// Sum in f64: thousands of rows would lose digits in f32.
fn total(losses: &[f32]) -> f32 {
    losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() as f32
}
