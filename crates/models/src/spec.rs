//! [`Spec`]: a model as data. A family translates `config.json` into one; the stacks run it.

use loam_nn::{AttentionConfig, ExpertsConfig, FeedForwardConfig, NormConfig, RopeConfig};

/// How tokens learn where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// A learned vector per position, added to the token's (GPT-2).
    Learned {
        /// Rows of the table before that of position 0 (OPT has two).
        offset: usize,
    },
    /// Rotated queries and keys, each layer as it says (Llama).
    Rotary,
}

/// Where a block's norms are, and what its two halves read. x is the block's input, A attention, F the feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `y = x + A(norm(x))`, then `y + F(norm(y))`.
    PreNorm,
    /// `y = x + norm(A(norm(x)))`, then `y + norm(F(norm(y)))` (Gemma 2).
    Sandwich,
    /// `x + A(norm(x)) + F(norm'(x))` (GPT-NeoX).
    Parallel,
    /// `x + A(norm(x)) + F(norm(x))`, one norm for both (PaLM, GPT-J).
    ParallelSharedNorm,
}

/// One block: attention and a feed-forward around a residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// How its parts are joined.
    pub residual: Residual,
    /// Its norms.
    pub norm: NormConfig,
    /// Rotation of queries and keys.
    pub rope: Option<RopeConfig>,
    /// Attention.
    pub attention: AttentionConfig,
    /// Feed-forward, or each of the experts.
    pub feed_forward: FeedForwardConfig,
    /// Experts and their router, where there is more than one feed-forward.
    pub experts: Option<ExpertsConfig>,
}

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Family name, as `model_type` writes it.
    pub family: &'static str,
    /// Tokens it knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest context it was made for.
    pub max_position_embeddings: usize,
    /// Positions.
    pub position: Position,
    /// Factor on token embeddings (Gemma).
    pub embedding_scale: Option<f32>,
    /// Blocks, first to last.
    pub layers: Vec<LayerSpec>,
    /// Norm after the last block.
    pub final_norm: NormConfig,
    /// Soft cap of the logits (Gemma 2).
    pub final_logit_softcapping: Option<f32>,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
}

impl Spec {
    /// Widest head times heads: the sizes a reader asks for first, as one line.
    pub fn summary(&self) -> String {
        let layer = &self.layers[0];
        format!(
            "{}: {} layers, hidden {}, {} heads ({} kv) of {}, feed-forward {}, vocabulary {}, context {}",
            self.family,
            self.layers.len(),
            self.hidden_size,
            layer.attention.num_attention_heads,
            layer.attention.num_key_value_heads,
            layer.attention.head_dim,
            layer.feed_forward.intermediate_size,
            self.vocab_size,
            self.max_position_embeddings
        )
    }
}
