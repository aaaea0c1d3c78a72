//! [`Spec`]: a model as data. A family translates `config.json` into one; the stacks run it.

use loam_nn::{AttentionConfig, FeedForwardConfig, NormConfig, RopeConfig};

/// How tokens learn where they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Position {
    /// A learned vector per position, added to the token's (GPT-2).
    Learned,
    /// Rotated queries and keys (Llama).
    Rope(RopeConfig),
}

/// One block: norm, attention, norm, feed-forward, each around a residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// Norm before attention and before the feed-forward.
    pub norm: NormConfig,
    /// Attention.
    pub attention: AttentionConfig,
    /// Feed-forward.
    pub feed_forward: FeedForwardConfig,
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
    /// Blocks, first to last.
    pub layers: Vec<LayerSpec>,
    /// Norm after the last block.
    pub final_norm: NormConfig,
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
