//! Rotary positions and softmax attention.

use std::sync::Arc;

use loam_kernels::attention::AttentionDims;

use crate::backend::{AttentionMask, RopeTables};
use crate::tensor::{Tensor, backend};

/// What attention computes, beyond its operands.
#[derive(Clone, Default)]
pub struct AttentionSpec {
    /// Factor on the scores; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// How many keys up to its own a query sees (sliding window), and as many after it where that is not causal.
    pub window: Option<usize>,
    /// Soft cap of the scores, `c tanh(score / c)`.
    pub softcap: Option<f32>,
    /// Document of every key, `[batch, kv_len]`: attention stays within a document.
    pub segments: Option<Arc<[u32]>>,
    /// Document of every query, `[batch, q_len]`, where queries are not the last of the keys' own positions.
    pub query_segments: Option<Arc<[u32]>>,
    /// Added to the scaled scores of every sequence, `[heads, q_len, kv_len]` (T5).
    pub bias: Option<Tensor>,
    /// Borders of the sequences that lie end to end in a single row, from 0 to `time`: each gets the bits that it would
    /// get alone. Instead of segments, and for inference only.
    pub runs: Option<Arc<[usize]>>,
}

impl Tensor {
    /// Rotates pairs of features by position (Su et al. 2021, eq. 34): `[batch, time, heads, head_dim]`.
    pub fn rope(&self, tables: &RopeTables) -> Self {
        let saved = tables.clone();
        Self::from_op(backend().rope(self.raw(), tables, false), &[self], move |dy, grads| {
            grads.add(0, backend().rope(dy, &saved, true));
        })
    }

    /// `softmax(q k^T scale + mask) v` (Vaswani et al. 2017, eq. 1), without ever storing the scores (Dao et al. 2022).
    ///
    /// `self` is q `[batch, time, heads, head_dim]`; k and v are `[batch, kv_len, kv_heads, head_dim]` with
    /// `kv_heads` dividing `heads`; the last query sits at the last key. Result `[batch, time, heads * head_dim]`.
    pub fn attention(&self, k: &Self, v: &Self, spec: &AttentionSpec) -> Self {
        let (q_shape, k_shape) = (self.shape(), k.shape());
        assert!(
            q_shape.len() == 4
                && k_shape.len() == 4
                && k_shape == v.shape()
                && q_shape[0] == k_shape[0]
                && q_shape[3] == k_shape[3]
                && q_shape[2].is_multiple_of(k_shape[2]),
            "attention: q {q_shape:?}, k {k_shape:?}, v {:?}",
            v.shape()
        );
        let dims = AttentionDims {
            batch: q_shape[0],
            q_len: q_shape[1],
            kv_len: k_shape[1],
            heads: q_shape[2],
            kv_heads: k_shape[2],
            head_dim: q_shape[3],
            scale: spec.scale.unwrap_or_else(|| 1.0 / (q_shape[3] as f32).sqrt()),
            causal: spec.causal,
            window: spec.window,
            softcap: spec.softcap,
        };
        let mask = AttentionMask {
            segments: spec.segments.clone(),
            query_segments: spec.query_segments.clone(),
            bias: spec.bias.as_ref().map(Tensor::dense),
            runs: spec.runs.clone(),
        };
        let (q, k_raw, v_raw) = (self.raw().clone(), k.raw().clone(), v.raw().clone());
        let (out, lse) = backend().attention(&q, &k_raw, &v_raw, &dims, &mask);
        let saved = out.clone();
        let merged = out.reshaped([dims.batch, dims.q_len, dims.heads * dims.head_dim]);
        let inputs: Vec<&Self> = [self, k, v].into_iter().chain(&spec.bias).collect();
        Self::from_op(merged, &inputs, move |dy, grads| {
            let dy = dy.reshaped(saved.shape());
            let d = backend().attention_backward(&dy, &saved, &lse, &q, &k_raw, &v_raw, &dims, &mask);
            grads.add(0, d.q);
            grads.add(1, d.k);
            grads.add(2, d.v);
            if let Some(bias) = d.bias {
                grads.add(3, bias);
            }
        })
    }
}
