//! BART (Lewis et al. 2020) and Marian (Junczys-Dowmunt et al. 2018), which is the original Transformer (Vaswani et al.
//! 2017) with an activation of choice: two stacks, norms last, one token table for both.

use loam_nn::{AttentionConfig, FeedForwardConfig, NormConfig};
use serde_json::{Value, json};

use super::Family;
use crate::config::Config;
use crate::error::Error;
use crate::spec::{HeadSpec, LayerSpec, Position, Residual, Spec, StackSpec, Task};
use crate::weight_map::{Transform::*, WeightMap, row};

pub(super) const BART: Family = Family {
    name: "bart",
    architectures: &[("BartForConditionalGeneration", Task::LanguageModel)],
    spec: |c| {
        // The table begins two rows late, and the embeddings have a norm.
        like_bart(BART.name, c, |layers| StackSpec::post_norm(Position::Learned { offset: 2 }, layers))
    },
    weights: WEIGHTS,
    defaults: || defaults(&BART, "gelu", false),
};

pub(super) const MARIAN: Family = Family {
    name: "marian",
    architectures: &[("MarianMTModel", Task::LanguageModel)],
    spec: |c| {
        if !c.flag("share_encoder_decoder_embeddings", true)? {
            return Err(Error::config("share_encoder_decoder_embeddings", "is false, which is not supported"));
        }
        like_bart(MARIAN.name, c, |layers| StackSpec {
            embedding_norm: None,
            ..StackSpec::post_norm(Position::Sinusoidal { interleaved: false }, layers)
        })
    },
    weights: WEIGHTS,
    defaults: || defaults(&MARIAN, "relu", true),
};

const WEIGHTS: WeightMap = WeightMap {
    rows: &[
        row("model.shared.weight", "embed_tokens.weight", Keep),
        row("model.[encoder|decoder].embed_positions.weight", "[encoder.|]embed_positions.weight", Keep),
        row(
            "model.[encoder|decoder].layernorm_embedding.[weight|bias]",
            "[encoder.|]embedding_norm.[weight|bias]",
            Keep,
        ),
        row(
            "model.[encoder|decoder].layers.{i}.self_attn.[q_proj|k_proj|v_proj|out_proj].[weight|bias]",
            "[encoder.|]layers.{i}.attention.[q_proj|k_proj|v_proj|o_proj].[weight|bias]",
            Keep,
        ),
        row(
            "model.[encoder|decoder].layers.{i}.self_attn_layer_norm.[weight|bias]",
            "[encoder.|]layers.{i}.attention_norm.[weight|bias]",
            Keep,
        ),
        row(
            "model.decoder.layers.{i}.encoder_attn.[q_proj|k_proj|v_proj|out_proj].[weight|bias]",
            "layers.{i}.cross_attention.[q_proj|k_proj|v_proj|o_proj].[weight|bias]",
            Keep,
        ),
        row(
            "model.decoder.layers.{i}.encoder_attn_layer_norm.[weight|bias]",
            "layers.{i}.cross_attention_norm.[weight|bias]",
            Keep,
        ),
        row(
            "model.[encoder|decoder].layers.{i}.[fc1|fc2].[weight|bias]",
            "[encoder.|]layers.{i}.feed_forward.[up_proj|down_proj].[weight|bias]",
            Keep,
        ),
        row(
            "model.[encoder|decoder].layers.{i}.final_layer_norm.[weight|bias]",
            "[encoder.|]layers.{i}.feed_forward_norm.[weight|bias]",
            Keep,
        ),
        row("lm_head.weight", "lm_head.weight", Keep),
        row("final_logits_bias", "lm_head.bias", AsRow),
    ],
    // Marian's are sines and cosines.
    ignored_suffixes: &["embed_positions.weight", ".version"],
    copies: &["lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"],
    optional_prefix: "",
};

fn like_bart(family: &'static str, c: Config<'_>, stack: impl Fn(Vec<LayerSpec>) -> StackSpec) -> Result<Spec, Error> {
    let hidden_size = c.size("d_model")?;
    let norm = NormConfig::layer(1e-5);
    let activation = c.activation("activation_function", "gelu")?;
    let block = |heads: &'static str, width: &'static str| {
        let heads_here = c.size(heads)?;
        c.divides(heads, heads_here, "d_model", hidden_size)?;
        let attention = AttentionConfig::causal(heads_here, heads_here, hidden_size / heads_here).with_biases(true);
        let feed_forward =
            FeedForwardConfig { intermediate_size: c.size(width)?, activation, gated: false, has_bias: true };
        Ok::<_, Error>(LayerSpec::new(Residual::PostNorm, norm, attention, feed_forward))
    };
    let mut encoder = block("encoder_attention_heads", "encoder_ffn_dim")?;
    encoder.attention.is_causal = false;
    let mut decoder = block("decoder_attention_heads", "decoder_ffn_dim")?;
    decoder.cross_attention = Some(decoder.attention.both_ways());
    Ok(Spec {
        family,
        vocab_size: c.size("vocab_size")?,
        hidden_size,
        max_position_embeddings: c.size("max_position_embeddings")?,
        type_vocab_size: 0,
        embedding_scale: c.flag("scale_embedding", false)?.then(|| (hidden_size as f32).sqrt()),
        stack: stack(vec![decoder; c.size("decoder_layers")?]),
        encoder: Some(stack(vec![encoder; c.size("encoder_layers")?])),
        head: HeadSpec { has_bias: true, is_bias_frozen: true, ..HeadSpec::tokens() },
        final_logit_softcapping: None,
        tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
        initializer_range: c.number("init_std", 0.02)? as f32,
        is_scaled_by_inputs: false,
    })
}

fn defaults(family: &Family, activation: &str, scales: bool) -> Value {
    json!({
        "architectures": [family.architectures[0].0],
        "model_type": family.name,
        "is_encoder_decoder": true,
        "vocab_size": 32000,
        "d_model": 256,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 1024,
        "decoder_ffn_dim": 1024,
        "activation_function": activation,
        "max_position_embeddings": 512,
        "scale_embedding": scales,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "init_std": 0.02,
        "tie_word_embeddings": true,
    })
}
