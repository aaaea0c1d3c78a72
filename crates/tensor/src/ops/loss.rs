//! Cross-entropy, alone and fused with the head that makes the logits, and any other loss of logits fused with it.

use std::ops::Range;

use loam_kernels::cross_entropy::Terms as CrossEntropyTerms;
use loam_kernels::elementwise::Unary;

use super::head::Head;
use crate::parameter::Parameter;
use crate::raw::Raw;
use crate::tensor::{Tensor, backend};

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
        let head = Head::new("linear_cross_entropy", self, weight, bias, softcap);
        let rows = head.rows();
        assert_eq!(targets.len(), rows, "linear_cross_entropy: {} targets for {rows} rows", targets.len());
        let (mut sums, mut sum) = (head.gradients(), 0.0f64);
        for mut chunk in head.chunks() {
            let own = &targets[chunk.start..chunk.start + chunk.logits.rows()];
            let losses = if head.wants_grad {
                let losses = backend().cross_entropy_backward(&mut chunk.logits, own, scale, terms);
                head.add_to(&mut sums, chunk);
                losses
            } else {
                backend().cross_entropy(&chunk.logits, own, terms)
            };
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        }
        let parents: Vec<&Self> = [self, weight].into_iter().chain(bias).collect();
        Self::from_op(Raw::full([], (sum * f64::from(scale)) as f32), &parents, move |dy, grads| {
            sums.give(dy.f32()[0], grads);
        })
    }

    /// The sum over chunks of rows of `work(logits, rows)`, where the logits `[rows, vocab]` are those of
    /// `self.linear(weight, bias)`, with a soft cap where there is one: a loss of logits that never exist as a whole, like
    /// [`Tensor::linear_cross_entropy`]. `work` gives a scalar, and no gradient flows through anything else it reads.
    pub fn linear_loss(
        &self,
        weight: &Self,
        bias: Option<&Self>,
        softcap: Option<f32>,
        mut work: impl FnMut(&Self, Range<usize>) -> Self,
    ) -> Self {
        let head = Head::new("linear_loss", self, weight, bias, softcap);
        let (mut sums, mut sum) = (head.gradients(), 0.0f64);
        for mut chunk in head.chunks() {
            let rows = chunk.start..chunk.start + chunk.logits.rows();
            if !head.wants_grad {
                sum += f64::from(work(&Self::constant(chunk.logits), rows).item());
                continue;
            }
            let leaf = Parameter::new(chunk.logits);
            let loss = work(&Self::parameter(&leaf), rows);
            sum += f64::from(loss.item());
            loss.backward();
            let value = leaf.value();
            chunk.logits = leaf.take_grad().unwrap_or_else(|| backend().affine(&value, 0.0, 0.0));
            drop(value);
            head.add_to(&mut sums, chunk);
        }
        let parents: Vec<&Self> = [self, weight].into_iter().chain(bias).collect();
        Self::from_op(Raw::full([], sum as f32), &parents, move |dy, grads| sums.give(dy.f32()[0], grads))
    }
}

/// Sum in f64: thousands of rows would lose digits in f32.
fn total(losses: &[f32]) -> f32 {
    losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() as f32
}
