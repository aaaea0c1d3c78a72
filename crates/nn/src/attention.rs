//! Multi-head and grouped-query attention.

use loam_tensor::{AttentionSpec, Parameter, Tensor};

use crate::context::{LayerContext, Memory};
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
    /// How many positions it sees, its own counted: back, and as many forth where it is not causal.
    pub sliding_window: Option<usize>,
    /// Norm of every head's query and key (Qwen3, Gemma 3).
    pub qk_norm: Option<NormConfig>,
    /// Soft cap of the scores (Gemma 2).
    pub logit_softcapping: Option<f32>,
}

impl AttentionConfig {
    /// What sees itself and what came before, without biases.
    pub fn causal(num_attention_heads: usize, num_key_value_heads: usize, head_dim: usize) -> Self {
        Self {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            has_qkv_bias: false,
            has_output_bias: false,
            scale: None,
            is_causal: true,
            sliding_window: None,
            qk_norm: None,
            logit_softcapping: None,
        }
    }

    /// The same with biases on all projections, or on none.
    pub fn with_biases(self, has_biases: bool) -> Self {
        Self { has_qkv_bias: has_biases, has_output_bias: has_biases, ..self }
    }

    /// The same, seeing every position.
    pub fn both_ways(self) -> Self {
        Self { is_causal: false, ..self }
    }
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
        let (mut q, (mut k, mut v)) = (self.queries(x, context), self.keys_and_values(x, context));
        if let Some(tables) = &context.rope {
            q = q.rope(tables);
            k = k.rope(tables);
        }
        if let Some(prefix) = &context.prefix {
            (k, v) = (prefix.put(&k, &prefix.keys), prefix.put(&v, &prefix.values));
        }
        (q, k, v) = (q.stored(), k.stored(), v.stored());
        if let Some(cache) = cache {
            let spec = AttentionSpec { segments: context.segments.clone(), bias: context.bias.clone(), ..self.spec() };
            let mixed = match &context.runs {
                Some(runs) if cache.is_joined() => cache.attend_in_runs([&q, &k, &v], runs, &spec),
                _ => cache.attend([&q, &k, &v], &spec),
            };
            return self.o_proj.forward(&mixed, context);
        }
        let (segments, runs) = (context.segments.clone(), context.runs.clone());
        let spec = AttentionSpec { segments, runs, bias: context.bias.clone(), ..self.spec() };
        self.o_proj.forward(&q.attention(&k, &v, &spec), context)
    }

    /// Queries from `x` `[batch, time, hidden]`, keys and values from the memory, which a cache keeps for later calls.
    pub fn forward_cross(
        &self,
        x: &Tensor,
        context: &LayerContext,
        memory: &Memory,
        cache: Option<&mut LayerCache>,
    ) -> Tensor {
        let stored = || {
            let (k, v) = self.keys_and_values(&memory.hidden, context);
            (k.stored(), v.stored())
        };
        let (k, v) = match cache {
            Some(cache) => cache.memory.get_or_insert_with(stored).clone(),
            None => stored(),
        };
        // Where the source has documents, one decoder row without any belongs to the first.
        let whole_row = || vec![0; x.size(0) * x.size(1)].into();
        let query_segments = memory.segments.as_ref().map(|_| context.segments.clone().unwrap_or_else(whole_row));
        let spec = AttentionSpec { segments: memory.segments.clone(), query_segments, ..self.spec() };
        self.o_proj.forward(&self.queries(x, context).stored().attention(&k, &v, &spec), context)
    }

    fn queries(&self, x: &Tensor, context: &LayerContext) -> Tensor {
        let q = self.q_proj.forward(x, context).split_heads(self.config.num_attention_heads);
        self.qk_norm.as_ref().map_or(q.clone(), |(norm, _)| norm.forward(&q))
    }

    fn keys_and_values(&self, x: &Tensor, context: &LayerContext) -> (Tensor, Tensor) {
        let heads = self.config.num_key_value_heads;
        let k = self.k_proj.forward(x, context).split_heads(heads);
        let v = self.v_proj.forward(x, context).split_heads(heads);
        (self.qk_norm.as_ref().map_or(k.clone(), |(_, norm)| norm.forward(&k)), v)
    }

    fn spec(&self) -> AttentionSpec {
        AttentionSpec {
            scale: self.config.scale,
            causal: self.config.is_causal,
            window: self.config.sliding_window,
            softcap: self.config.logit_softcapping,
            ..AttentionSpec::default()
        }
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

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        self.q_proj.visit_linears(&join(path, "q_proj"), visit);
        self.k_proj.visit_linears(&join(path, "k_proj"), visit);
        self.v_proj.visit_linears(&join(path, "v_proj"), visit);
        self.o_proj.visit_linears(&join(path, "o_proj"), visit);
    }
}
