//! Multi-head and grouped-query attention.

use loam_tensor::{AttentionSpec, Parameter, Tensor};

use crate::context::LayerContext;
use crate::kv_cache::LayerCache;
use crate::linear::Linear;
use crate::module::{Module, join};
use crate::norm::{Norm, NormConfig};

/// Shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads, each shared by a group of query heads (Ainslie et al. 2023).
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Biases on the q, k and v projections.
    pub has_qkv_bias: bool,
    /// Bias on the output projection.
    pub has_output_bias: bool,
    /// Factor on the scores, where it is not `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// Whether a position sees only itself and what came before.
    pub is_causal: bool,
    /// How far back it sees.
    pub sliding_window: Option<usize>,
    /// Norm of every head's query and key (Qwen3, Gemma 3).
    pub qk_norm: Option<NormConfig>,
    /// Soft cap of the scores (Gemma 2).
    pub logit_softcapping: Option<f32>,
}

/// Attention with its four projections.
#[derive(Clone)]
pub struct Attention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Output.
    pub o_proj: Linear,
    /// Norms of queries and of keys, over a head's features.
    pub qk_norm: Option<(Norm, Norm)>,
    config: AttentionConfig,
}

impl Attention {
    /// Zeros, to be initialised or loaded.
    pub fn zeros(hidden_size: usize, config: &AttentionConfig) -> Self {
        let inner = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        Self {
            q_proj: Linear::zeros(hidden_size, inner, config.has_qkv_bias),
            k_proj: Linear::zeros(hidden_size, kv, config.has_qkv_bias),
            v_proj: Linear::zeros(hidden_size, kv, config.has_qkv_bias),
            o_proj: Linear::zeros(inner, hidden_size, config.has_output_bias),
            qk_norm: config.qk_norm.map(|norm| (Norm::new(config.head_dim, norm), Norm::new(config.head_dim, norm))),
            config: *config,
        }
    }

    /// `[batch, time, hidden] -> [batch, time, hidden]`; with a cache, the keys of earlier calls are seen too.
    pub fn forward(&self, x: &Tensor, context: &LayerContext, cache: Option<&mut LayerCache>) -> Tensor {
        let config = &self.config;
        let mut q = self.q_proj.forward(x).split_heads(config.num_attention_heads);
        let mut k = self.k_proj.forward(x).split_heads(config.num_key_value_heads);
        let mut v = self.v_proj.forward(x).split_heads(config.num_key_value_heads);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = q_norm.forward(&q);
            k = k_norm.forward(&k);
        }
        if let Some(tables) = &context.rope {
            q = q.rope(tables);
            k = k.rope(tables);
        }
        if let Some(cache) = cache {
            (k, v) = cache.append(&k, &v);
        }
        let spec = AttentionSpec {
            scale: config.scale,
            causal: config.is_causal,
            window: config.sliding_window,
            softcap: config.logit_softcapping,
            mask: context.mask.clone(),
        };
        self.o_proj.forward(&q.attention(&k, &v, &spec))
    }
}

impl Module for Attention {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.q_proj.visit(&join(path, "q_proj"), visit);
        self.k_proj.visit(&join(path, "k_proj"), visit);
        self.v_proj.visit(&join(path, "v_proj"), visit);
        self.o_proj.visit(&join(path, "o_proj"), visit);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q_norm.visit(&join(path, "q_norm"), visit);
            k_norm.visit(&join(path, "k_norm"), visit);
        }
    }
}
