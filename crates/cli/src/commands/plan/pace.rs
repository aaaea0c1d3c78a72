//! How fast a model will be, from a few of its blocks, run with weights of any numbers but of the right types and sizes.

use crate::failure::Failure;
use crate::table::short;
use loam_kernels::quant::{can_quantise, quantise};
use loam_kernels::rng::Rng;
use loam_models::{Forward, Input, KvCache, LanguageModel, Mix, RunShape, Spec};
use loam_tensor::{DType, Parameter, Raw, SharedBytes, Tensor, no_grad};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of weights that are enough to tell memory's speed from caches'.
const ENOUGH: usize = 64 << 20;
/// Time of all calibrations together.
const BUDGET: Duration = Duration::from_millis(1600);
/// Tokens of a measured piece of prompt.
const PIECE: usize = 64;
/// Positions before those that are measured: few, and many.
const DEPTHS: [usize; 2] = [64, 1024];

/// Seconds that parts of a pass take, measured.
pub struct Rates {
    layers: usize,
    /// Of one block, for one token of a prompt without anything before it, and more for each position before it.
    prompt: Line,
    /// Of one block, for one token of each sequence.
    step: Line,
    /// Norm and head of one position of each sequence.
    head: f64,
    /// Bytes of a block's weights over its time without any context: how near it is to memory's speed.
    bound_by_weights: bool,
}

/// `at_zero + slope * positions`.
#[derive(Clone, Copy, Debug)]
struct Line {
    at_zero: f64,
    slope: f64,
}

impl Line {
    fn through(points: [(f64, f64); 2]) -> Self {
        let slope = ((points[1].1 - points[0].1) / (points[1].0 - points[0].0)).max(0.0);
        Self { at_zero: (points[0].1 - slope * points[0].0).max(0.0), slope }
    }

    fn at(&self, positions: f64) -> f64 {
        self.at_zero + self.slope * positions
    }
}

/// Predicted speeds, and the seconds they come from.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub prefill_tokens_per_s: f64,
    pub decode_tokens_per_s: f64,
    prompt: Line,
    step: Line,
    head: f64,
    layers: usize,
    bound_by_weights: bool,
}

impl Pace {
    /// Whether decoding waits for weights more than for anything else.
    pub fn is_bound_by_weights(&self) -> bool {
        self.bound_by_weights
    }

    /// The formulas with their numbers.
    pub fn explained(&self, shape: &RunShape) -> Vec<String> {
        let us = |s: f64| format!("{:.2} µs", 1e6 * s);
        vec![
            format!(
                "prefill = 1 / (layers {} x ({} + {} x half of {} positions)) = {}",
                self.layers,
                us(self.prompt.at_zero),
                us(self.prompt.slope),
                shape.context,
                short(self.prefill_tokens_per_s, "tokens/s")
            ),
            format!(
                "decode = sequences {} / (layers {} x ({} + {} x {} positions) + head {}) = {}",
                shape.sequences,
                self.layers,
                us(self.step.at_zero),
                us(self.step.slope),
                shape.context,
                us(self.head),
                short(self.decode_tokens_per_s, "tokens/s")
            ),
        ]
    }
}

impl Rates {
    /// Measures a few blocks of a model in some types. `runs` such measurements share the time.
    pub fn measure(outline: &LanguageModel, mix: Option<Mix>, sequences: usize, runs: usize) -> Result<Self, Failure> {
        let (blocks, model) = sample(outline, mix)?;
        let spec = model.spec();
        let budget = BUDGET / runs.max(1) as u32 / 5;
        let prompt = Rng::new(0, "plan", 0);
        let tokens: Vec<u32> = (0..PIECE).map(|i| prompt.below(i as u64, spec.vocab_size as u64) as u32).collect();
        let room = spec.max_position_embeddings;
        let depths = DEPTHS.map(|depth| depth.min(room.saturating_sub(PIECE)).max(1));
        let head = fastest(budget / 2, || {
            let x = Tensor::full([1, sequences, spec.hidden_size], 0.5);
            no_grad(|| model.logits_at(&x, &(0..sequences as u32).collect::<Vec<_>>(), &Default::default())).map(|_| ())
        })?;
        let mut of_prompt = [(0.0, 0.0); 2];
        let mut of_step = [(0.0, 0.0); 2];
        for (place, &depth) in depths.iter().enumerate() {
            let mut cache = filled(&model, depth, depth + PIECE);
            let time = fastest(budget, || {
                cache.truncate(depth);
                let forward = Forward { cache: Some(&mut cache), ..Forward::default() };
                no_grad(|| model.hidden(&Input::rows(&tokens, 1), forward)).map(|_| ())
            })?;
            of_prompt[place] = ((depth + PIECE / 2) as f64, time / (blocks * PIECE) as f64);
            let mut caches: Vec<KvCache> = (0..sequences).map(|_| filled(&model, depth, depth + 1)).collect();
            let time = fastest(budget, || {
                caches.iter_mut().for_each(|cache| cache.truncate(depth));
                no_grad(|| step(&model, &tokens[..1].repeat(sequences), &mut caches)).map(|_| ())
            })?;
            of_step[place] = (depth as f64, time / blocks as f64);
        }
        let line = |points: [(f64, f64); 2]| match points[0].0 < points[1].0 {
            true => Line::through(points),
            false => Line { at_zero: points[0].1, slope: 0.0 },
        };
        let step = line(of_step);
        Ok(Self {
            layers: outline.spec().stack.layers.len(),
            prompt: line(of_prompt),
            step,
            head,
            bound_by_weights: sequences == 1 && step.at_zero > step.slope * depths[1] as f64,
        })
    }

    /// What that makes of a prompt that fills the context, and of writing at its end.
    pub fn pace(&self, shape: &RunShape) -> Pace {
        let (layers, context) = (self.layers as f64, shape.context as f64);
        let token = layers * self.prompt.at(context / 2.0);
        let step = layers * self.step.at(context) + self.head;
        Pace {
            prefill_tokens_per_s: 1.0 / token,
            decode_tokens_per_s: shape.sequences as f64 / step,
            prompt: self.prompt,
            step: self.step,
            head: self.head,
            layers: self.layers,
            bound_by_weights: self.bound_by_weights,
        }
    }
}

/// Runs a piece of work until `budget` is spent, but twice at least; the time of the fastest run.
fn fastest<E: Into<Failure>>(budget: Duration, mut work: impl FnMut() -> Result<(), E>) -> Result<f64, Failure> {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 2 || begin.elapsed() < budget {
        let start = Instant::now();
        work().map_err(Into::into)?;
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}

/// One token of each sequence: hidden states.
pub fn step(model: &LanguageModel, tokens: &[u32], caches: &mut Vec<KvCache>) -> Result<Tensor, loam_models::Error> {
    if let [cache] = &mut caches[..] {
        return model.hidden(&Input::rows(tokens, 1), Forward { cache: Some(cache), ..Forward::default() });
    }
    let positions: Vec<u32> = caches.iter().map(|cache| cache.len() as u32).collect();
    let mut joined = KvCache::join(std::mem::take(caches));
    let runs: Vec<usize> = (0..=tokens.len()).collect();
    let input = Input {
        tokens,
        batch: 1,
        time: tokens.len(),
        positions: Some(&positions),
        runs: Some(runs.into()),
        ..Input::default()
    };
    let hidden = model.hidden(&input, Forward { cache: Some(&mut joined), ..Forward::default() });
    *caches = joined.split();
    hidden
}

/// A cache that holds `depth` positions of any numbers, with room for `room`.
fn filled(model: &LanguageModel, depth: usize, room: usize) -> KvCache {
    let mut cache = model.new_cache();
    cache.reserve(room);
    for (layer, spec) in cache.layers.iter_mut().zip(&model.spec().stack.layers) {
        let a = &spec.attention;
        let numbers = Tensor::full([1, depth, a.num_key_value_heads, a.head_dim], 0.1);
        layer.append(&numbers, &numbers);
    }
    cache
}

/// As many blocks as have [`ENOUGH`] weights, with the model's own embeddings and head; how many that are.
fn sample(outline: &LanguageModel, mix: Option<Mix>) -> Result<(usize, LanguageModel), Failure> {
    let spec = outline.spec();
    let layers = spec.stack.layers.len();
    let per_block = outline.product_bytes(mix).div_ceil(layers);
    let blocks = ENOUGH.div_ceil(per_block.max(1)).clamp(1, layers);
    let model = LanguageModel::outline_of(&shortened(outline.config(), spec, blocks))?;
    let plan = mix.map(|mix| outline.plan(mix)).unwrap_or_default();
    for (name, parameter) in model.parameters() {
        let ty = plan.get(&name).copied().filter(|ty| *ty != loam_tensor::GgmlType::F32 && can_quantise(*ty));
        match ty {
            Some(ty) => parameter.replace(repeated(&parameter, ty)),
            None => parameter.set(&pattern(parameter.count())),
        }
    }
    Ok((blocks, model))
}

/// A weight whose rows are all alike.
fn repeated(parameter: &Parameter, ty: loam_tensor::GgmlType) -> Raw {
    let shape = parameter.shape();
    let mut row = vec![0; DType::Ggml(ty).bytes(shape[1])];
    quantise(ty, &pattern(shape[1]), None, &mut row);
    let bytes: SharedBytes = Arc::new(row.repeat(shape[0]));
    Raw::quantised(ty, [shape[0], shape[1]], bytes, 0)
}

/// Numbers around zero, no two neighbours alike.
fn pattern(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.05).collect()
}

/// `config.json` with so many blocks.
fn shortened(config: &Value, spec: &Spec, blocks: usize) -> Value {
    let (mut config, layers) = (config.clone(), spec.stack.layers.len());
    for key in ["num_hidden_layers", "n_layer"] {
        if config.get(key).is_some() {
            config[key] = json!(blocks);
        }
    }
    for value in config.as_object_mut().into_iter().flat_map(|keys| keys.values_mut()) {
        if let Some(list) = value.as_array_mut().filter(|list| list.len() == layers) {
            list.truncate(blocks);
        }
    }
    config
}
