//! The depth dial: one number from which a whole pretraining run follows.
//!
//! | what | rule |
//! |---|---|
//! | width | 64 per layer |
//! | head dimension | 32 up to width 256, else 64 |
//! | feed-forward width | gated: 8/3 of the width, rounded up to a multiple of 64; else 4 times the width |
//! | context | 256 tokens up to 4 layers, 512 up to 8, else 1024 |
//! | learning rate | 6e-4 · (768 / width)^0.5 |
//! | tokens of the run | 12 per parameter of the matrix products (Hoffmann et al. 2022 find about 20 per parameter; at small sizes the embedding dominates, and half of that is enough) |
//! | tokens per step | 16384 · (tokens of the run / 1e8)^0.383, rounded to a power of two (exponent: nanochat) |

use serde_json::{Map, Value, json};

/// Tokens per parameter of the matrix products, by default.
pub(crate) const TOKENS_PER_PARAMETER: f64 = 12.0;

/// Sizes of a model of some depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DepthRule {
    /// Layers.
    pub depth: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a gated feed-forward.
    pub gated_width: usize,
    /// Context in tokens.
    pub context: usize,
}

/// The sizes that follow from a depth.
pub fn depth_rule(depth: usize) -> DepthRule {
    let width = 64 * depth;
    let head_dim = if width <= 256 { 32 } else { 64 };
    let context = match depth {
        0..=4 => 256,
        5..=8 => 512,
        _ => 1024,
    };
    DepthRule {
        depth,
        width,
        heads: width / head_dim,
        gated_width: (8 * width).div_ceil(3).next_multiple_of(64),
        context,
    }
}

impl DepthRule {
    /// The sizes under the names of a family's `config.json`.
    pub(crate) fn config(&self, family: &str) -> Map<String, Value> {
        let fields = match family {
            "gpt2" => json!({
                "n_layer": self.depth, "n_embd": self.width, "n_head": self.heads, "n_positions": self.context,
            }),
            _ => json!({
                "num_hidden_layers": self.depth, "hidden_size": self.width, "num_attention_heads": self.heads,
                "num_key_value_heads": self.heads, "intermediate_size": self.gated_width,
                "max_position_embeddings": self.context, "tie_word_embeddings": true,
            }),
        };
        fields.as_object().cloned().unwrap_or_default()
    }
}

/// Learning rate of a model of this width.
pub(crate) fn learning_rate(width: usize) -> f64 {
    round_to_two_digits(6e-4 * (768.0 / width as f64).sqrt())
}

/// Tokens per optimizer step of a run over this many tokens.
pub(crate) fn batch_tokens(tokens: u64) -> u64 {
    let exact = 16384.0 * (tokens as f64 / 1e8).powf(0.383);
    1 << exact.log2().round().clamp(8.0, 24.0) as u32
}

fn round_to_two_digits(x: f64) -> f64 {
    let unit = 10f64.powf(x.log10().floor() - 1.0);
    // Through text, so that the number reads as written.
    format!("{:e}", (x / unit).round())
        .parse::<f64>()
        .map_or(x, |digits| format!("{digits}e{}", unit.log10().round()).parse().unwrap_or(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_depth_gives_heads_that_fill_the_width() {
        for depth in 1..=32 {
            let rule = depth_rule(depth);
            assert_eq!(rule.width % rule.heads, 0, "depth {depth}");
            assert_eq!(rule.width / rule.heads % 2, 0, "rotary positions need an even head");
            assert!(rule.gated_width >= 8 * rule.width / 3 && rule.gated_width.is_multiple_of(64));
        }
        assert_eq!(depth_rule(6), DepthRule { depth: 6, width: 384, heads: 6, gated_width: 1024, context: 512 });
    }

    #[test]
    fn the_learning_rate_falls_and_the_batch_grows_with_size() {
        assert_eq!(learning_rate(768), 6e-4);
        assert_eq!(learning_rate(192), 1.2e-3);
        assert_eq!(learning_rate(384), 8.5e-4);
        assert_eq!(batch_tokens(100_000_000), 16384);
        assert!(batch_tokens(10_000_000) < 16384 && batch_tokens(1_000_000_000) > 16384);
        assert!(batch_tokens(1).is_power_of_two());
    }
}
