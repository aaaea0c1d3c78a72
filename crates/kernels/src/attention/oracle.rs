//! Attention as its definition says, in f64, with whole matrices of scores: the twin that the tests compare with.

use super::{AttentionDims, Heads, Masking, Stored};

/// What forward and backward give, in f64.
pub(super) struct Exact {
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
    pub dbias: Vec<f64>,
}

/// A dense `[batch, time, heads, head_dim]` copy.
pub(super) fn dense(x: &Heads, [batch, time, heads, width]: [usize; 4]) -> Vec<f64> {
    let mut out = Vec::new();
    for b in 0..batch {
        for t in 0..time {
            for h in 0..heads {
                let start = b * x.batch_stride + t * x.time_stride + h * x.head_stride;
                let Stored::F32(data) = x.data else { panic!("the twin takes f32") };
                out.extend(data[start..][..width].iter().map(|&x| f64::from(x)));
            }
        }
    }
    out
}

fn is_visible(d: &AttentionDims, mask: &Masking, b: usize, i: usize, j: usize) -> bool {
    let position = d.kv_len as i64 - d.q_len as i64 + i as i64;
    let distance = position - j as i64;
    let segments_agree = mask.segments.is_none_or(|s| {
        let s = &s[b * d.kv_len..][..d.kv_len];
        let own = mask.query_segments.map(|own| own[b * d.q_len + i]);
        s[j] == own.unwrap_or_else(|| s[usize::try_from(position).unwrap()])
    });
    let is_near = d.window.is_none_or(|w| distance < w as i64 && (d.causal || -distance < w as i64));
    (!d.causal || distance >= 0) && is_near && segments_agree
}

/// Forward, and backward of `dout`.
pub(super) fn exact(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    dout: &[f64],
    bias: Option<&[f64]>,
    d: &AttentionDims,
    mask: &Masking,
) -> Exact {
    let n = d.head_dim;
    let mut e = Exact {
        out: vec![0.0; q.len()],
        lse: vec![f64::NEG_INFINITY; d.batch * d.heads * d.q_len],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; v.len()],
        dbias: vec![0.0; d.heads * d.q_len * d.kv_len],
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = f64::from(d.scale);
    for b in 0..d.batch {
        for h in 0..d.heads {
            let kv_head = h / (d.heads / d.kv_heads);
            for i in 0..d.q_len {
                let at_q = ((b * d.q_len + i) * d.heads + h) * n;
                let at_k = |j: usize| ((b * d.kv_len + j) * d.kv_heads + kv_head) * n;
                let at_bias = |j: usize| (h * d.q_len + i) * d.kv_len + j;
                let keys: Vec<usize> = (0..d.kv_len).filter(|&j| is_visible(d, mask, b, i, j)).collect();
                if keys.is_empty() {
                    continue;
                }
                let score = |j: usize| {
                    let product = scale * dot(&q[at_q..at_q + n], &k[at_k(j)..at_k(j) + n]);
                    let cap = |cap: f32| f64::from(cap) * (product / f64::from(cap)).tanh();
                    d.softcap.map_or(product, cap) + bias.map_or(0.0, |x| x[at_bias(j)])
                };
                let scores: Vec<f64> = keys.iter().map(|&j| score(j)).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                e.lse[(b * d.heads + h) * d.q_len + i] = max + sum.ln();
                let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
                let g = &dout[at_q..at_q + n];
                let dp: Vec<f64> = keys.iter().map(|&j| dot(g, &v[at_k(j)..at_k(j) + n])).collect();
                let delta = dot(&p, &dp);
                for (((&j, &p), &dp), &score) in keys.iter().zip(&p).zip(&dp).zip(&scores) {
                    let ds = p * (dp - delta) * d.softcap.map_or(1.0, |cap| 1.0 - (score / f64::from(cap)).powi(2));
                    e.dbias[at_bias(j)] += ds;
                    for c in 0..n {
                        e.out[at_q + c] += p * v[at_k(j) + c];
                        e.dv[at_k(j) + c] += p * g[c];
                        e.dq[at_q + c] += scale * ds * k[at_k(j) + c];
                        e.dk[at_k(j) + c] += scale * ds * q[at_q + c];
                    }
                }
            }
        }
    }
    e
}
