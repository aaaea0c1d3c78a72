//! Log-probabilities of tokens, one number per row, fused with the head that makes the logits.

use loam_kernels::cross_entropy::Terms as CrossEntropyTerms;
use loam_kernels::elementwise::{Binary, Unary};

use super::head::{Chunk, Head};
use crate::raw::Raw;
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

/// Logits as they are sampled from.
fn tempered(mut chunk: Chunk, temperature: f32) -> Chunk {
    if temperature != 1.0 {
        chunk.logits = backend().affine(&chunk.logits, 1.0 / temperature, 0.0);
    }
    chunk
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
        let LogProbSettings { softcap, temperature, entropies: wants_entropies } = settings;
        let head = Head::new("linear_log_probs", self, weight, bias, softcap);
        let (rows, vocab) = (head.rows(), weight.size(0));
        assert_eq!(targets.len(), rows, "linear_log_probs: {} targets for {rows} rows", targets.len());
        let targets: Vec<i32> = targets.iter().map(|&target| target as i32).collect();
        let (mut log_probs, mut entropies) = (Vec::with_capacity(rows), Vec::new());
        for chunk in head.chunks() {
            let Chunk { start, logits, .. } = tempered(chunk, temperature);
            let own = &targets[start..start + logits.rows()];
            let losses = backend().cross_entropy(&logits, own, CrossEntropyTerms::default());
            log_probs.extend(losses.iter().map(|loss| -loss));
            if wants_entropies {
                let logs = backend().log_softmax(&logits);
                let terms = backend().binary(Binary::Mul, &backend().unary(Unary::Exp, &logs), &logs);
                entropies.extend(backend().sum_last(&terms).f32().iter().map(|sum| -sum));
            }
        }
        let parents: Vec<&Self> = [self, weight].into_iter().chain(bias).collect();
        let result = Self::from_op(Raw::from_f32(&log_probs, [rows]), &parents, move |dy, grads| {
            let mut sums = head.gradients();
            for chunk in head.chunks() {
                let mut chunk = tempered(chunk, temperature);
                let range = chunk.start..chunk.start + chunk.logits.rows();
                let own = &targets[range.clone()];
                backend().cross_entropy_backward(&mut chunk.logits, own, 1.0, CrossEntropyTerms::default());
                // That is the slope of the negative log-probability.
                for (row, &factor) in chunk.logits.f32_mut().chunks_exact_mut(vocab).zip(&dy.f32()[range]) {
                    row.iter_mut().for_each(|x| *x *= -factor / temperature);
                }
                head.add_to(&mut sums, chunk);
            }
            sums.give(1.0, grads);
        });
        (result, entropies)
    }
}
