//! T5 (Raffel et al. 2020): two stacks, RMS norms first, positions as biases on the scores, one token table for both.

use loam_nn::{Activation, AttentionConfig, FeedForwardConfig, NormConfig};
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, RelativeBias, Residual, Spec, StackSpec, Task};
use crate::weight_map::{Transform::Keep, WeightMap, row};

/// Where feed-forwards are gated, all of them are.
const GATE: &str = "layers.0.feed_forward.gate_proj.weight";

pub(super) const FAMILY: Family = Family {
    name: "t5",
    architectures: &[("T5ForConditionalGeneration", Task::LanguageModel)],
    spec,
    weights: WeightMap {
        rows: &[
            row("shared.weight", "embed_tokens.weight", Keep),
            row(
                "[encoder|decoder].block.{i}.layer.0.SelfAttention.[q|k|v|o].weight",
                "[encoder.|]layers.{i}.attention.[q|k|v|o]_proj.weight",
                Keep,
            ),
            row(
                "[encoder|decoder].block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "[encoder.|]relative_bias.weight",
                Keep,
            ),
            row(
                "[encoder|decoder].block.{i}.layer.0.layer_norm.weight",
                "[encoder.|]layers.{i}.attention_norm.weight",
                Keep,
            ),
            row(
                "decoder.block.{i}.layer.1.EncDecAttention.[q|k|v|o].weight",
                "layers.{i}.cross_attention.[q|k|v|o]_proj.weight",
                Keep,
            ),
            row("decoder.block.{i}.layer.1.layer_norm.weight", "layers.{i}.cross_attention_norm.weight", Keep),
            row(
                "encoder.block.{i}.layer.1.DenseReluDense.[wi|wo].weight",
                "encoder.layers.{i}.feed_forward.[up|down]_proj.weight",
                Keep,
            )
            .beside(GATE, false),
            row(
                "encoder.block.{i}.layer.1.DenseReluDense.[wi_0|wi_1|wo].weight",
                "encoder.layers.{i}.feed_forward.[gate|up|down]_proj.weight",
                Keep,
            )
            .beside(GATE, true),
            row(
                "decoder.block.{i}.layer.2.DenseReluDense.[wi|wo].weight",
                "layers.{i}.feed_forward.[up|down]_proj.weight",
                Keep,
            )
            .beside(GATE, false),
            row(
                "decoder.block.{i}.layer.2.DenseReluDense.[wi_0|wi_1|wo].weight",
                "layers.{i}.feed_forward.[gate|up|down]_proj.weight",
                Keep,
            )
            .beside(GATE, true),
            row("encoder.block.{i}.layer.1.layer_norm.weight", "encoder.layers.{i}.feed_forward_norm.weight", Keep),
            row("decoder.block.{i}.layer.2.layer_norm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
            row("[encoder|decoder].final_layer_norm.weight", "[encoder.|]norm.weight", Keep),
            row("lm_head.weight", "lm_head.weight", Keep),
        ],
        ignored_suffixes: &[],
        copies: &["lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
        optional_prefix: "",
    },
    defaults,
};

fn spec(c: Config<'_>) -> Result<Spec, Error> {
    let (hidden_size, heads) = (c.size("d_model")?, c.size("num_heads")?);
    let norm = NormConfig::rms(c.number("layer_norm_epsilon", 1e-6)?);
    let (gated, activation) = activation(c)?;
    let feed_forward = FeedForwardConfig { intermediate_size: c.size("d_ff")?, activation, gated, has_bias: false };
    // Scores are not scaled: fresh weights are as small as would make up for it.
    let attention = AttentionConfig { scale: Some(1.0), ..AttentionConfig::causal(heads, heads, c.size("d_kv")?) };
    let block = |attention| LayerSpec::new(Residual::PreNorm, norm, attention, feed_forward);
    let relative_bias = Some(RelativeBias {
        num_buckets: c.optional_size("relative_attention_num_buckets")?.unwrap_or(32),
        max_distance: c.optional_size("relative_attention_max_distance")?.unwrap_or(128),
    });
    let stack = |layer: LayerSpec, count: usize| StackSpec {
        relative_bias,
        ..StackSpec::pre_norm(Position::InAttention, vec![layer; count])
    };
    let num_layers = c.size("num_layers")?;
    let decoder = LayerSpec { cross_attention: Some(attention.both_ways()), ..block(attention) };
    let tie_word_embeddings = c.flag("tie_word_embeddings", true)?;
    let scales = c.flag("scale_decoder_outputs", tie_word_embeddings)?;
    Ok(Spec {
        family: FAMILY.name,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings: c.optional_size("n_positions")?.unwrap_or(512),
        type_vocab_size: 0,
        embedding_scale: None,
        stack: stack(decoder, c.optional_size("num_decoder_layers")?.unwrap_or(num_layers)),
        encoder: Some(stack(block(attention.both_ways()), num_layers)),
        head: HeadSpec { scale: scales.then(|| (hidden_size as f32).powf(-0.5)), ..HeadSpec::tokens() },
        final_logit_softcapping: None,
        tie_word_embeddings,
        initializer_range: c.number("initializer_factor", 1.0)? as f32,
        is_scaled_by_inputs: true,
    })
}

/// `feed_forward_proj`: an activation, or `gated-` and one; GELU is the tanh form there.
fn activation(c: Config<'_>) -> Result<(bool, Activation), Error> {
    let text = c.text("feed_forward_proj", "relu")?;
    let (gated, name) = text.strip_prefix("gated-").map_or((false, text), |name| (true, name));
    let name = if gated && name == "gelu" { "gelu_new" } else { name };
    let found = Activation::by_name(name);
    Ok((gated, found.ok_or_else(|| Error::config("feed_forward_proj", format!("is `{text}`, which is not known")))?))
}

fn defaults() -> Value {
    json!({
        "architectures": [FAMILY.architectures[0].0],
        "model_type": FAMILY.name,
        "is_encoder_decoder": true,
        "vocab_size": 32128,
        "d_model": 256,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "n_positions": 512,
        "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "tie_word_embeddings": true,
    })
}
