//! The keys of a GGUF file to a `config.json`, and a [`Spec`] to keys.

use std::f64::consts::PI;

use loam_formats::{Gguf, GgufArray, GgufValue};
use loam_nn::{AttentionConfig, RopeConfig, RopeScaling};
use serde_json::{Map, Value, json};

use super::names::Architecture;
use crate::error::Error;
use crate::family::{self, Family};
use crate::model::set_labels_of;
use crate::spec::{Spec, Task};

/// What a file says by the tensors that it has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) vocab_size: usize,
    pub(super) has_head: bool,
    pub(super) has_attention_bias: bool,
    pub(super) has_feed_forward_bias: bool,
    /// Of T5, whose two forms share one architecture.
    pub(super) has_gate: bool,
    /// Of BERT: a dense layer after the first hidden state, kinds of token, and classes of a classifier.
    pub(super) has_pooler: bool,
    pub(super) token_types: usize,
    pub(super) labels: Option<usize>,
    /// What each frequency is divided by (Llama 3.1).
    pub(super) rope_factors: Option<Vec<f32>>,
    /// `dtype` of `config.json`.
    pub(super) dtype: &'static str,
}

/// Keys that begin with the architecture's name.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    fn size(&self, suffix: &str) -> Result<Option<usize>, Error> {
        Ok(self.gguf.size(&self.name(suffix))?)
    }

    fn number(&self, suffix: &str) -> Result<Option<f64>, Error> {
        Ok(self.gguf.number(&self.name(suffix))?)
    }

    fn required<T>(&self, suffix: &str, found: Option<T>) -> Result<T, Error> {
        found.ok_or_else(|| {
            let reason = format!("the key '{}' is missing", self.name(suffix));
            loam_formats::Error::Gguf { path: self.gguf.path().to_path_buf(), reason }.into()
        })
    }

    fn required_size(&self, suffix: &str) -> Result<usize, Error> {
        self.required(suffix, self.size(suffix)?)
    }

    fn required_number(&self, suffix: &str) -> Result<f64, Error> {
        self.required(suffix, self.number(suffix)?)
    }
}

/// The `config.json` that a file describes.
pub(super) fn config(gguf: &Gguf, architecture: &Architecture, facts: &Facts) -> Result<Value, Error> {
    let keys = Keys { gguf, architecture: architecture.name };
    let window = keys.size("attention.sliding_window")?.filter(|&window| window > 0);
    let experts = keys.size("expert_count")?.filter(|&count| count > 0);
    let family = match architecture.name {
        "llama" if experts.is_some() => "mixtral",
        "llama" if window.is_some() => "mistral",
        _ => architecture.families[0],
    };
    let family = family::by_name(family)?;
    let mut config = (family.defaults)();
    let map = config.as_object_mut().expect("defaults are an object");
    let mut set = |key: &str, value: Value| drop(map.insert(key.to_owned(), value));
    for (key, role) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = gguf.size(&format!("tokenizer.ggml.{role}_token_id"))? {
            set(key, json!(id));
        }
    }
    set("vocab_size", json!(facts.vocab_size));
    set("tie_word_embeddings", json!(!facts.has_head));
    set("dtype", json!(facts.dtype));
    if architecture.name == "gpt2" {
        set("n_positions", json!(keys.required_size("context_length")?));
        set("n_embd", json!(keys.required_size("embedding_length")?));
        set("n_layer", json!(keys.required_size("block_count")?));
        set("n_inner", json!(keys.required_size("feed_forward_length")?));
        set("n_head", json!(keys.required_size("attention.head_count")?));
        set("layer_norm_epsilon", json!(keys.required_number("attention.layer_norm_epsilon")?));
    } else if architecture.name == "t5" {
        let layers = keys.required_size("block_count")?;
        set("n_positions", json!(keys.size("context_length")?.unwrap_or(512)));
        set("d_model", json!(keys.required_size("embedding_length")?));
        set("num_layers", json!(layers));
        set("num_decoder_layers", json!(keys.size("decoder_block_count")?.unwrap_or(layers)));
        set("d_ff", json!(keys.required_size("feed_forward_length")?));
        set("num_heads", json!(keys.required_size("attention.head_count")?));
        set("d_kv", json!(keys.required_size("attention.key_length")?));
        set("layer_norm_epsilon", json!(keys.required_number("attention.layer_norm_rms_epsilon")?));
        set("relative_attention_num_buckets", json!(keys.required_size("attention.relative_buckets_count")?));
        set("feed_forward_proj", json!(if facts.has_gate { "gated-gelu" } else { "relu" }));
        set("decoder_start_token_id", json!(keys.size("decoder_start_token_id")?.unwrap_or(0)));
    } else if architecture.name == "bert" {
        like_bert(&keys, facts, family, map)?;
    } else {
        like_llama(&keys, architecture, facts, window, map)?;
        if let Some(experts) = experts {
            with_experts(&keys, experts, map)?;
        }
    }
    Ok(config)
}

/// The keys of BERT, whose activation is GELU in every file.
fn like_bert(keys: &Keys<'_>, facts: &Facts, family: &Family, config: &mut Map<String, Value>) -> Result<(), Error> {
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    let task = if facts.labels.is_some() { Task::SequenceClassification } else { Task::Embedding };
    set("architectures", json!([family.architecture_of(task)?]));
    set("max_position_embeddings", json!(keys.required_size("context_length")?));
    set("hidden_size", json!(keys.required_size("embedding_length")?));
    set("num_hidden_layers", json!(keys.required_size("block_count")?));
    set("intermediate_size", json!(keys.required_size("feed_forward_length")?));
    set("num_attention_heads", json!(keys.required_size("attention.head_count")?));
    set("layer_norm_eps", json!(keys.required_number("attention.layer_norm_epsilon")?));
    set("type_vocab_size", json!(facts.token_types));
    if !facts.has_pooler {
        set("add_pooling_layer", json!(false));
    }
    let Some(count) = facts.labels else { return Ok(()) };
    let key = keys.name("classifier.output_labels");
    match keys.gguf.texts(&key)?.filter(|names| names.len() == count) {
        Some(names) => set_labels_of(config, names),
        None => set_labels_of(config, &(0..count).map(|i| format!("LABEL_{i}")).collect::<Vec<_>>()),
    }
    Ok(())
}

/// The keys of a mixture of experts; llama.cpp always scales the weights of a token's experts to add up to one.
fn with_experts(keys: &Keys<'_>, experts: usize, config: &mut Map<String, Value>) -> Result<(), Error> {
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    let used = keys.required_size("expert_used_count")?;
    set("num_experts_per_tok", json!(used));
    set("output_router_logits", json!(false));
    if keys.architecture == "llama" {
        set("num_local_experts", json!(experts));
        return Ok(());
    }
    let all = keys.required_size("feed_forward_length")?;
    set("num_experts", json!(experts));
    set("moe_intermediate_size", json!(keys.size("expert_feed_forward_length")?.unwrap_or(all / used.max(1))));
    set("norm_topk_prob", json!(true));
    set("mlp_only_layers", json!([]));
    set("decoder_sparse_step", json!(1));
    Ok(())
}

/// The keys that the families which descend from Llama share.
fn like_llama(
    keys: &Keys<'_>,
    architecture: &Architecture,
    facts: &Facts,
    window: Option<usize>,
    config: &mut Map<String, Value>,
) -> Result<(), Error> {
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    let (hidden, layers) = (keys.required_size("embedding_length")?, keys.required_size("block_count")?);
    let heads = keys.required_size("attention.head_count")?;
    let width = keys.size("attention.key_length")?.unwrap_or(hidden / heads.max(1));
    if keys.size("attention.value_length")?.is_some_and(|other| other != width) {
        return Err(Error::config("head_dim", "differs between keys and values, which is not supported"));
    }
    set("max_position_embeddings", json!(keys.required_size("context_length")?));
    set("hidden_size", json!(hidden));
    set("num_hidden_layers", json!(layers));
    set("intermediate_size", json!(keys.required_size("feed_forward_length")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(keys.size("attention.head_count_kv")?.unwrap_or(heads)));
    set("rms_norm_eps", json!(keys.required_number("attention.layer_norm_rms_epsilon")?));
    let is_gemma = architecture.name.starts_with("gemma");
    if is_gemma || architecture.name.starts_with("qwen3") || width * heads != hidden {
        set("head_dim", json!(width));
    }
    for key in ["attention_bias", "mlp_bias"] {
        let has_bias = if key == "mlp_bias" { facts.has_feed_forward_bias } else { facts.has_attention_bias };
        if (architecture.name == "llama" || has_bias) && architecture.name != "qwen2" {
            set(key, json!(has_bias));
        }
    }
    // llama.cpp's own default, too.
    let theta = keys.number("rope.freq_base")?.unwrap_or(if architecture.name == "gemma3" { 1e6 } else { 1e4 });
    set("rope_theta", json!(theta));
    let rotary = keys.size("rope.dimension_count")?.unwrap_or(width);
    if rotary != width {
        set("partial_rotary_factor", json!(rotary as f64 / width.max(1) as f64));
    }
    if let Some(scaling) = scaling(keys, facts, theta, rotary)? {
        set("rope_scaling", scaling);
    }
    if is_gemma {
        set("query_pre_attn_scalar", json!(gemma_scalar(keys, hidden, heads, width, layers)?));
        if architecture.name == "gemma2" {
            set("attn_logit_softcapping", json!(keys.number("attn_logit_softcapping")?.unwrap_or(50.0)));
            set("final_logit_softcapping", json!(keys.number("final_logit_softcapping")?.unwrap_or(30.0)));
        } else {
            set("rope_local_base_freq", json!(keys.number("rope.freq_base_swa")?.unwrap_or(1e4)));
        }
    }
    set("sliding_window", json!(window));
    let Some(_) = window else { return Ok(()) };
    let sliding = sliding_layers(keys, architecture, layers)?;
    if is_gemma || architecture.name.starts_with("qwen") {
        let kind = |&is_sliding: &bool| if is_sliding { "sliding_attention" } else { "full_attention" };
        set("layer_types", sliding.iter().map(kind).collect());
    }
    if architecture.name.starts_with("qwen") {
        set("use_sliding_window", json!(true));
    }
    Ok(())
}

/// Which layers have a window: a list of truth values, or the last of every so many has none.
fn sliding_layers(keys: &Keys<'_>, architecture: &Architecture, layers: usize) -> Result<Vec<bool>, Error> {
    let key = keys.name("attention.sliding_window_pattern");
    let by_default = || (0..layers).map(architecture.is_sliding).collect();
    match keys.gguf.value(&key) {
        None => Ok(by_default()),
        Some(value) if value.as_array().is_some() => {
            let list = keys.gguf.numbers(&key)?.unwrap_or_default();
            if list.len() != layers {
                let reason = format!("'{key}' lists {} layers, the model has {layers}", list.len());
                return Err(loam_formats::Error::Gguf { path: keys.gguf.path().to_path_buf(), reason }.into());
            }
            Ok(list.iter().map(|&x| x != 0.0).collect())
        }
        Some(_) => match keys.gguf.size(&key)?.unwrap_or(0) {
            0 => Ok(by_default()),
            period => Ok((0..layers).map(|layer| layer % period != period - 1).collect()),
        },
    }
}

/// What the scores of Gemma are divided by the root of: stated by few files, known by size (as llama.cpp does).
fn gemma_scalar(keys: &Keys<'_>, hidden: usize, heads: usize, width: usize, layers: usize) -> Result<f64, Error> {
    if let Some(scale) = keys.number("attention.scale")?.filter(|&scale| scale > 0.0) {
        let scalar = 1.0 / (scale * scale);
        let whole = scalar.round();
        return Ok(if (scalar - whole).abs() < 1e-4 * whole { whole } else { scalar });
    }
    let is_largest = layers == if keys.architecture == "gemma2" { 46 } else { 62 };
    Ok(if is_largest { hidden / heads.max(1) } else { width } as f64)
}

/// `rope_scaling` of `config.json`.
fn scaling(keys: &Keys<'_>, facts: &Facts, theta: f64, rotary: usize) -> Result<Option<Value>, Error> {
    let original = keys.size("rope.scaling.original_context_length")?;
    if let Some(factors) = &facts.rope_factors {
        return llama3_scaling(keys, factors, original, theta, rotary).map(Some);
    }
    let kind = match keys.gguf.text(&keys.name("rope.scaling.type"))? {
        // Files of 2023 say it with the factor alone.
        None if keys.number("rope.scale_linear")?.is_some() => {
            return Ok(Some(json!({"rope_type": "linear", "factor": keys.number("rope.scale_linear")?})));
        }
        None | Some("none") => return Ok(None),
        Some(kind) => kind,
    };
    let factor = keys.required_number("rope.scaling.factor")?;
    let mut scaling = json!({"rope_type": kind, "factor": factor});
    if kind == "yarn" {
        if let Some(original) = original {
            scaling["original_max_position_embeddings"] = json!(original);
        }
        for (key, name) in
            [("attention_factor", "yarn_attn_factor"), ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")]
        {
            if let Some(value) = keys.number(&format!("rope.scaling.{name}"))? {
                scaling[key] = json!(value);
            }
        }
    }
    Ok(Some(scaling))
}

/// The numbers behind the factors of Llama 3.1. Files of others hold the factors alone, made with the numbers that all
/// those models have; others than these are refused.
fn llama3_scaling(
    keys: &Keys<'_>,
    factors: &[f32],
    original: Option<usize>,
    theta: f64,
    rotary: usize,
) -> Result<Value, Error> {
    let number = |suffix: &str, default: f64| Ok::<f64, Error>(keys.number(suffix)?.unwrap_or(default));
    let (low, high) = (number("rope.scaling.low_freq_factor", 1.0)?, number("rope.scaling.high_freq_factor", 4.0)?);
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let original = original.unwrap_or(8192) as f64;
    let expected = llama3_factors(factor, low, high, original, theta, rotary);
    let is_same = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b;
    if expected.len() != factors.len() || !factors.iter().zip(&expected).all(is_same) {
        let problem = "has factors of frequencies that do not follow from factor, low_freq_factor and high_freq_factor";
        return Err(Error::config("rope_scaling", problem));
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as usize,
    }))
}

/// What each frequency is divided by, as Llama 3.1 does.
fn llama3_factors(factor: f64, low: f64, high: f64, original: f64, theta: f64, rotary: usize) -> Vec<f32> {
    let one = |pair: usize| {
        let turns = original / (2.0 * PI * theta.powf(2.0 * pair as f64 / rotary as f64));
        if turns > high {
            1.0
        } else if turns < low {
            factor
        } else {
            let smooth = (turns - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..rotary / 2).map(|pair| one(pair) as f32).collect()
}

/// The factors that a file of this model must hold.
pub(super) fn rope_factors(spec: &Spec) -> Option<Vec<f32>> {
    let rope = spec.stack.layers[0].rope?;
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    } = rope.scaling
    else {
        return None;
    };
    Some(llama3_factors(factor, low, high, original, rope.rope_theta, rope.rotary_dim))
}

/// The keys of a model.
pub(super) fn keys(spec: &Spec, architecture: &Architecture, config: &Value) -> Vec<(String, GgufValue)> {
    let layer = &spec.stack.layers[0];
    let attention = &layer.attention;
    let mut keys: Vec<(String, GgufValue)> = Vec::new();
    let mut put = |suffix: &str, value: GgufValue| keys.push((format!("{}.{suffix}", architecture.name), value));
    let size = |size: usize| GgufValue::U32(u32::try_from(size).unwrap_or(u32::MAX));
    put("context_length", size(spec.max_position_embeddings));
    put("embedding_length", size(spec.hidden_size));
    put("block_count", size(spec.encoder.as_ref().unwrap_or(&spec.stack).layers.len()));
    let own_width = layer.feed_forward.intermediate_size;
    if let Some(experts) = layer.experts {
        put("expert_count", size(experts.num_experts));
        put("expert_used_count", size(experts.num_experts_per_tok));
        put("expert_feed_forward_length", size(own_width));
    }
    // Of dense layers, whether or not there are any.
    let is_apart = layer.experts.is_some() && config.get("moe_intermediate_size").is_some();
    let dense_width = config["intermediate_size"].as_u64().filter(|_| is_apart).and_then(|width| width.try_into().ok());
    put("feed_forward_length", size(dense_width.unwrap_or(own_width)));
    put("attention.head_count", size(attention.num_attention_heads));
    put("vocab_size", size(spec.vocab_size));
    if architecture.name == "gpt2" {
        put("attention.layer_norm_epsilon", layer.norm.eps.into());
        return keys;
    }
    if architecture.name == "bert" {
        bert_keys(spec, config, &mut put);
        keys.push(("tokenizer.ggml.token_type_count".to_owned(), size(spec.type_vocab_size)));
        return keys;
    }
    if let Some(encoder) = &spec.encoder {
        put("decoder_block_count", size(spec.stack.layers.len()));
        put("attention.key_length", size(attention.head_dim));
        put("attention.value_length", size(attention.head_dim));
        put("attention.layer_norm_epsilon", layer.norm.eps.into());
        put("attention.layer_norm_rms_epsilon", layer.norm.eps.into());
        put("attention.relative_buckets_count", size(encoder.relative_bias.map_or(0, |bias| bias.num_buckets)));
        return keys;
    }
    put("attention.head_count_kv", size(attention.num_key_value_heads));
    put("attention.key_length", size(attention.head_dim));
    put("attention.value_length", size(attention.head_dim));
    put("attention.layer_norm_rms_epsilon", layer.norm.eps.into());
    // What the layers without a window have is the model's.
    let full = spec.stack.layers.iter().find(|layer| layer.attention.sliding_window.is_none());
    if let Some(rope) = full.unwrap_or(layer).rope {
        put("rope.dimension_count", size(rope.rotary_dim));
        put("rope.freq_base", (rope.rope_theta as f32).into());
        put_scaling(&rope, &mut put);
    }
    if architecture.name.starts_with("gemma") {
        gemma_keys(spec, attention, &mut put);
    }
    let sliding: Vec<bool> = spec.stack.layers.iter().map(|layer| layer.attention.sliding_window.is_some()).collect();
    let window = spec.stack.layers.iter().find_map(|layer| layer.attention.sliding_window);
    if let Some(window) = window {
        put("attention.sliding_window", size(window));
        if sliding.iter().enumerate().any(|(layer, &is_sliding)| is_sliding != (architecture.is_sliding)(layer)) {
            put("attention.sliding_window_pattern", GgufValue::Array(GgufArray::Bool(sliding)));
        }
    } else if architecture.name == "phi3" {
        // Says that it is one of those without.
        put("attention.sliding_window", size(0));
    }
    keys
}

fn bert_keys(spec: &Spec, config: &Value, put: &mut impl FnMut(&str, GgufValue)) {
    /// llama.cpp's number for the scores of a classifier.
    const RANK: u32 = 4;
    put("attention.layer_norm_epsilon", spec.stack.layers[0].norm.eps.into());
    put("attention.causal", false.into());
    if spec.head.task != Task::SequenceClassification {
        return;
    }
    put("pooling_type", RANK.into());
    let name = |id: usize| config["id2label"][id.to_string()].as_str().map(str::to_owned);
    let names: Option<Vec<String>> = (0..spec.head.num_labels).map(name).collect();
    // Names that transformers makes up are none.
    if let Some(names) = names.filter(|names| names.iter().enumerate().any(|(i, name)| *name != format!("LABEL_{i}"))) {
        put("classifier.output_labels", GgufValue::Array(GgufArray::Text(names)));
    }
}

fn gemma_keys(spec: &Spec, attention: &AttentionConfig, put: &mut impl FnMut(&str, GgufValue)) {
    if let Some(scale) = attention.scale {
        put("attention.scale", scale.into());
    }
    if let Some(cap) = attention.logit_softcapping {
        put("attn_logit_softcapping", cap.into());
    }
    if let Some(cap) = spec.final_logit_softcapping {
        put("final_logit_softcapping", cap.into());
    }
    let sliding = spec.stack.layers.iter().find(|layer| layer.attention.sliding_window.is_some());
    if let Some(rope) = sliding.and_then(|layer| layer.rope).filter(|_| attention.qk_norm.is_some()) {
        put("rope.freq_base_swa", (rope.rope_theta as f32).into());
    }
}

fn put_scaling(rope: &RopeConfig, put: &mut impl FnMut(&str, GgufValue)) {
    let number = |x: f64| GgufValue::F32(x as f32);
    let length = |x: f64| GgufValue::U32(x as u32);
    match rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", "linear".into());
            put("rope.scaling.factor", number(factor));
        }
        // Readers take the factors of `rope_freqs.weight`; the numbers behind them have no name that all agree on.
        RopeScaling::Llama3 { low_freq_factor, high_freq_factor, original_max_position_embeddings, .. } => {
            put("rope.scaling.low_freq_factor", number(low_freq_factor));
            put("rope.scaling.high_freq_factor", number(high_freq_factor));
            put("rope.scaling.original_context_length", length(original_max_position_embeddings));
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_max_position_embeddings: original,
            ..
        } => {
            put("rope.scaling.type", "yarn".into());
            put("rope.scaling.factor", number(factor));
            put("rope.scaling.original_context_length", length(original));
            put("rope.scaling.yarn_beta_fast", number(beta_fast));
            put("rope.scaling.yarn_beta_slow", number(beta_slow));
            if attention_factor != 0.1 * factor.ln() + 1.0 {
                put("rope.scaling.yarn_attn_factor", number(attention_factor));
            }
        }
    }
}
