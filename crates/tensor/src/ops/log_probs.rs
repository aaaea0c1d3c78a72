//! Log-probabilities of tokens, one number per row, fused with the head that makes the logits.

use loam_kernels::cross_entropy::Terms as CrossEntropyTerms;
use loam_kernels::elementwise::{Binary, Unary};

use super::loss::{HeadGrads, head_chunk_rows};
use crate::autograd::is_recording;
use crate::backend::Start;
use crate::ops::linear::as_matrix;
use crate::precision::{Precision, precision};
use crate::raw::{DType, Raw};
use crate::tensor::{Tensor, backend};

/// What [`Tensor::linear_log_probs`] does with the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProbSettings {
    /// With a soft cap c they are `c tanh(logit / c)`.
    pub softcap: Option<f32>,
    /// Divides them, after the cap: the distribution that is sampled from at this temperature.
    pub temperature: f32,
    /// Whether the entropy of every row is wanted.
    pub entropies: bool,
}

/// The operands of a head's product.
struct Head {
    hidden: Raw,
    weight: Raw,
    bias: Option<Raw>,
    precision: Precision,
    settings: LogProbSettings,
}

impl Head {
    /// Rows that are worked on at a time, from `start` on.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = self.hidden.rows();
        let step = head_chunk_rows(rows, self.weight.shape()[0]).max(1);
        (0..rows).step_by(step).map(move |start| (start, step.min(rows - start)))
    }

    /// Logits of some rows as they are sampled from, and what the cap's slope is computed from.
    fn logits(&self, start: usize, len: usize) -> (Raw, Option<Raw>) {
        let rows = self.hidden.narrowed(0, start, len);
        let mut logits = match self.weight.as_quantised() {
            Some(_) => backend().linear_quantised(&rows, &self.weight, self.bias.as_ref()),
            None => {
                let mut logits = Raw::empty(DType::F32, [len, self.weight.shape()[0]]);
                let from = self.bias.as_ref().map_or(Start::Zero, Start::Bias);
                backend().matmul(&mut logits, &rows, &self.weight.transposed(0, 1), from, self.precision);
                logits
            }
        };
        let uncapped = self.settings.softcap.map(|cap| backend().affine(&logits, 1.0 / cap, 0.0));
        if let (Some(cap), Some(x)) = (self.settings.softcap, &uncapped) {
            logits = backend().affine(&backend().unary(Unary::Tanh, x), cap, 0.0);
        }
        if self.settings.temperature != 1.0 {
            logits = backend().affine(&logits, 1.0 / self.settings.temperature, 0.0);
        }
        (logits, uncapped)
    }
}

impl Tensor {
    /// `ln softmax((self weight^T + bias) / temperature)[target]` of every row, and the entropies of the rows in nats (none
    /// unless they are wanted). The logits never exist as a whole: backward makes each chunk of them again.
    ///
    /// `self`: hidden states `[.., hidden]`; `weight`: `[vocab, hidden]`; `bias`: `[vocab]`; one target per row. Result
    /// `[rows]`, natural logarithms.
    pub fn linear_log_probs(
        &self,
        weight: &Self,
        bias: Option<&Self>,
        targets: &[u32],
        settings: LogProbSettings,
    ) -> (Self, Vec<f32>) {
        let precision = precision();
        let hidden = as_matrix(&self.dense());
        let (rows, width, vocab) = (hidden.rows(), hidden.shape().width(), weight.size(0));
        assert_eq!(width, weight.size(1), "head {:?} on hidden {:?}", weight.shape(), self.shape());
        assert_eq!(targets.len(), rows, "linear_log_probs: {} targets for {rows} rows", targets.len());
        let parents: Vec<&Self> = [self, weight].into_iter().chain(bias).collect();
        let wants_grad = is_recording() && parents.iter().any(|parent| parent.wants_grad());
        let is_quantised = weight.raw().as_quantised().is_some();
        let (hidden, matrix) = match precision {
            _ if is_quantised && !wants_grad => (hidden, weight.raw().clone()),
            Precision::F32 if is_quantised => (hidden, backend().cast(weight.raw(), DType::F32)),
            Precision::F32 => (hidden, weight.dense()),
            Precision::Bf16 => (as_matrix(&self.operand(precision)), weight.operand(precision)),
        };
        let bias_wants_grad = is_recording() && bias.is_some_and(Self::wants_grad);
        let head = Head { hidden, weight: matrix, bias: bias.map(Tensor::dense), precision, settings };
        let targets: Vec<i32> = targets.iter().map(|&target| target as i32).collect();
        let (mut log_probs, mut entropies) = (Vec::with_capacity(rows), Vec::new());
        for (start, len) in head.chunks() {
            let (logits, _) = head.logits(start, len);
            let losses = backend().cross_entropy(&logits, &targets[start..start + len], CrossEntropyTerms::default());
            log_probs.extend(losses.iter().map(|loss| -loss));
            if settings.entropies {
                let logs = backend().log_softmax(&logits);
                let terms = backend().binary(Binary::Mul, &backend().unary(Unary::Exp, &logs), &logs);
                entropies.extend(backend().sum_last(&terms).f32().iter().map(|sum| -sum));
            }
        }
        let (shape, bias_shape) = (self.shape(), bias.map(Self::shape));
        let result = Self::from_op(Raw::from_f32(&log_probs, [rows]), &parents, move |dy, grads| {
            let mut sums = HeadGrads::new(true, [rows, width], [vocab, width], bias_wants_grad);
            for (start, len) in head.chunks() {
                let (mut slope, uncapped) = head.logits(start, len);
                let own = &targets[start..start + len];
                backend().cross_entropy_backward(&mut slope, own, 1.0, CrossEntropyTerms::default());
                // That is the slope of the negative log-probability.
                for (row, &factor) in slope.f32_mut().chunks_exact_mut(vocab).zip(&dy.f32()[start..start + len]) {
                    row.iter_mut().for_each(|x| *x *= -factor / head.settings.temperature);
                }
                if let Some(x) = &uncapped {
                    slope = backend().unary_backward(Unary::Tanh, x, &slope);
                }
                sums.add_chunk(start, &head.hidden.narrowed(0, start, len), &head.weight, &slope, head.precision);
            }
            if grads.wants(0) {
                grads.add(0, sums.hidden.reshaped(shape));
            }
            if grads.wants(1) {
                grads.add(1, sums.weight);
            }
            if let (Some(shape), Some(bias)) = (bias_shape, sums.bias) {
                grads.add(2, bias.reshaped(shape));
            }
        });
        (result, entropies)
    }
}
