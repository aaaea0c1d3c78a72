//! A model of a few blocks with weights of any numbers, but of the right types and sizes, in memory as a file's are.

use super::pace::step;
use crate::failure::Failure;
use loam_kernels::quant::{can_quantise, quantise};
use loam_models::{KvCache, KvType, LanguageModel, Plan};
use loam_tensor::{DType, GgmlType, Nf4, Parameter, Raw, SharedBytes, Tensor, no_grad};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Blocks of a model, spread over its depth, with its own embeddings and head.
pub struct Sample {
    pub model: LanguageModel,
    /// Which block of the model each block is like.
    sources: Vec<usize>,
}

impl Sample {
    /// As many blocks as fit into `most` bytes, at least one.
    pub fn new(outline: &LanguageModel, types: &Plan, most: usize) -> Result<Self, Failure> {
        let layers = outline.spec().stack.layers.len();
        let blocks = (most / (outline.product_bytes(types) / layers).max(1)).clamp(1, layers);
        let sources = spread(layers, blocks);
        let model = LanguageModel::outline_of(&shortened(outline.config(), layers, &sources))?;
        for (name, parameter) in model.parameters() {
            match types
                .get(&source_name(&name, &sources))
                .copied()
                .filter(|ty| !matches!(ty, DType::F32 | DType::Ggml(GgmlType::F32)))
            {
                Some(ty) => parameter.replace(repeated(&parameter, ty)),
                None => parameter.set(&pattern(parameter.count())),
            }
        }
        Ok(Self { model, sources })
    }

    /// The same weights, but of fewer blocks.
    pub fn fewer(&self, outline: &LanguageModel, most: usize) -> Result<Self, Failure> {
        let places = spread(self.blocks(), most.min(self.blocks()));
        let sources: Vec<usize> = places.iter().map(|&place| self.sources[place]).collect();
        let layers = outline.spec().stack.layers.len();
        let model = LanguageModel::outline_of(&shortened(outline.config(), layers, &sources))?;
        let whole: HashMap<String, Parameter> = self.model.parameters().into_iter().collect();
        for (name, parameter) in model.parameters() {
            if let Some(other) = whole.get(&source_name(&name, &places)) {
                parameter.replace(other.value());
            }
        }
        Ok(Self { model, sources })
    }

    pub fn blocks(&self) -> usize {
        self.sources.len()
    }

    /// A cache that holds `depth` positions of any numbers, with room for `room`.
    pub fn filled(&self, kv: KvType, depth: usize, room: usize) -> KvCache {
        let mut cache = self.model.new_cache_of(kv);
        cache.limit(room);
        if depth == 0 {
            return cache;
        }
        for (layer, spec) in cache.layers.iter_mut().zip(&self.model.spec().stack.layers) {
            let a = &spec.attention;
            let numbers = Tensor::full([1, depth, a.num_key_value_heads, a.head_dim], 0.1).stored();
            layer.append(&numbers, &numbers);
        }
        cache
    }

    /// One token of each sequence, and its logits: the seconds of the blocks, and those of the head. One after the other,
    /// as in a run: alone, the head would find its weights in the processor's caches.
    pub fn time_step(&self, caches: &mut Vec<KvCache>) -> Result<(f64, f64), Failure> {
        let sequences = caches.len();
        let places: Vec<u32> = (0..sequences as u32).collect();
        let start = Instant::now();
        let hidden = no_grad(|| step(&self.model, &vec![0; sequences], caches))?;
        let blocks = start.elapsed().as_secs_f64();
        no_grad(|| self.model.logits_at(&hidden, &places, &Default::default()))?;
        Ok((blocks, start.elapsed().as_secs_f64() - blocks))
    }
}

/// `count` of `all` places, evenly far apart.
fn spread(all: usize, count: usize) -> Vec<usize> {
    (0..count).map(|i| (2 * i + 1) * all / (2 * count)).collect()
}

/// The name in the whole model of a weight of the sample.
fn source_name(name: &str, sources: &[usize]) -> String {
    let parts = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match parts.and_then(|(index, rest)| Some((sources.get(index.parse::<usize>().ok()?)?, rest))) {
        Some((source, rest)) => format!("layers.{source}.{rest}"),
        None => name.to_owned(),
    }
}

/// A weight whose rows are all alike. Zeros are blocks of every type, of those, too, that are only read.
fn repeated(parameter: &Parameter, ty: DType) -> Raw {
    let shape = parameter.shape();
    let DType::Ggml(ty) = ty else {
        return Raw::nf4(Nf4::encode(&pattern(shape.count()), true), [shape[0], shape[1]]);
    };
    let mut row = vec![0; DType::Ggml(ty).bytes(shape[1])];
    if can_quantise(ty) {
        quantise(ty, &pattern(shape[1]), None, &mut row);
    }
    let bytes: SharedBytes = Arc::new(row.repeat(shape[0]));
    Raw::quantised(ty, [shape[0], shape[1]], bytes, 0)
}

/// Numbers around zero, no two neighbours alike.
fn pattern(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.05).collect()
}

/// `config.json` with these blocks alone.
fn shortened(config: &Value, layers: usize, sources: &[usize]) -> Value {
    let mut config = config.clone();
    for key in ["num_hidden_layers", "n_layer"] {
        if config.get(key).is_some() {
            config[key] = json!(sources.len());
        }
    }
    for value in config.as_object_mut().into_iter().flat_map(|keys| keys.values_mut()) {
        if let Some(list) = value.as_array_mut().filter(|list| list.len() == layers) {
            *list = sources.iter().map(|&source| list[source].clone()).collect();
        }
    }
    config
}
