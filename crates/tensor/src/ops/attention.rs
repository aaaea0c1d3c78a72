//! Rotary positions and softmax attention.

use std::sync::Arc;

use loam_kernels::attention::{AttentionDims, Page};

use crate::backend::{AttentionMask, RopeTables};
use crate::dims::Dims;
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

impl AttentionSpec {
    /// Sizes and rules for queries `[batch, time, heads, head_dim]`.
    fn dims(&self, q: &Dims, (kv_len, kv_heads): (usize, usize)) -> AttentionDims {
        AttentionDims {
            batch: q[0],
            q_len: q[1],
            kv_len,
            heads: q[2],
            kv_heads,
            head_dim: q[3],
            scale: self.scale.unwrap_or_else(|| 1.0 / (q[3] as f32).sqrt()),
            causal: self.causal,
            window: self.window,
            softcap: self.softcap,
        }
    }

    fn mask(&self) -> AttentionMask {
        AttentionMask {
            segments: self.segments.clone(),
            query_segments: self.query_segments.clone(),
            bias: self.bias.as_ref().map(Tensor::dense),
            runs: self.runs.clone(),
        }
    }
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
        let dims = spec.dims(&q_shape, (k_shape[1], k_shape[2]));
        let mask = spec.mask();
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

    /// [`Tensor::attention`] with keys and values in the pages of a cache, which hold `kv_len` positions of `kv_heads` heads.
    /// For inference: nothing is recorded.
    pub fn attention_in_pages(
        &self,
        [k, v]: [&[Page<'_>]; 2],
        (kv_len, kv_heads): (usize, usize),
        spec: &AttentionSpec,
    ) -> Self {
        assert!(spec.runs.is_none(), "attention: runs are for keys and values of the same pass");
        let dims = spec.dims(&self.shape(), (kv_len, kv_heads));
        let out = backend().attention_in_pages(self.raw(), [k, v], &dims, &spec.mask());
        Self::constant(out.reshaped([dims.batch, dims.q_len, dims.heads * dims.head_dim]))
    }
}
