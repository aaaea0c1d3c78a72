//! How fast a model will be: the time that its own kernels take here, on weights of its types and shapes, for a piece of a
//! prompt and for one token of each sequence, with few and with many positions before them. Nothing is known of the
//! machine beforehand.

use super::sample::Sample;
use crate::failure::Failure;
use crate::table::short;
use loam_kernels::rng::Rng;
use loam_models::{Forward, Input, KV_PAGE, KvCache, KvType, LanguageModel, Plan, RunShape, kv_numbers};
use loam_tensor::{Tensor, no_grad};
use std::time::{Duration, Instant};

/// Most bytes of weights that are made up: far more than the processor's caches hold, so that a token's weights come from
/// memory as they do in a run.
const MOST_BYTES: usize = 1 << 30;
/// Blocks that read a piece of a prompt: it takes them so long that it does not matter where their weights are.
const PROMPT_BLOCKS: usize = 2;
/// Time of all measurements together, but each is made at least [`LEAST_RUNS`] times.
const BUDGET: Duration = Duration::from_millis(1600);
const LEAST_RUNS: usize = 3;
/// Few positions.
const SHALLOW: usize = 16;

/// What speeds are wanted of.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub kv: KvType,
    pub sequences: usize,
    /// The longest context.
    pub context: usize,
    /// Tokens of a prompt at once.
    pub chunk: usize,
}

/// A model's weights, made up once for all measurements.
pub struct Bench<'a> {
    outline: &'a LanguageModel,
    whole: Sample,
    few: Sample,
    /// Bytes that keys and values may take.
    room: usize,
}

/// Seconds that parts of a pass take, measured.
pub struct Rates {
    layers: usize,
    /// Of one block, for one token of a prompt without anything before it, and more for each position before it.
    prompt: Line,
    /// Of one block, for one token of each sequence.
    step: Line,
    /// Norm and head of one position of each sequence.
    head: f64,
    bound_by_weights: bool,
}

/// `at_zero + slope * positions`.
#[derive(Clone, Copy, Debug)]
struct Line {
    at_zero: f64,
    slope: f64,
}

impl Line {
    /// Through two points, or level through the second where they are one.
    fn through(points: [(f64, f64); 2]) -> Self {
        let [(x, y), (far_x, far_y)] = points;
        let slope = if far_x > x { ((far_y - y) / (far_x - x)).max(0.0) } else { 0.0 };
        Self { at_zero: (far_y - slope * far_x).max(0.0), slope }
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

impl<'a> Bench<'a> {
    /// Makes weights up, in no more than a part of `available` bytes.
    pub fn new(outline: &'a LanguageModel, types: &Plan, available: usize) -> Result<Self, Failure> {
        let whole = Sample::new(outline, types, MOST_BYTES.min(available / 4))?;
        let few = whole.fewer(outline, PROMPT_BLOCKS)?;
        Ok(Self { outline, whole, few, room: available / 4 })
    }

    /// Measures, as one of `runs` measurements.
    pub fn measure(&self, asked: Asked, runs: usize) -> Result<Rates, Failure> {
        let budget = BUDGET / runs.max(1) as u32 / 4;
        let deep = self.depth(asked);
        let chunk = asked.chunk.min(deep + 1);
        let first = self.time_prompt(asked, chunk, 0, budget)?;
        let last = match deep + 1 - chunk {
            0 => first,
            depth => self.time_prompt(asked, chunk, depth, budget)?,
        };
        let (near, _) = self.time_step(asked, SHALLOW.min(deep), budget)?;
        let (far, head) = self.time_step(asked, deep, budget)?;
        let step = Line::through([near, far]);
        Ok(Rates {
            layers: self.outline.spec().stack.layers.len(),
            prompt: Line::through([first, last]),
            step,
            head,
            bound_by_weights: asked.sequences == 1 && step.at_zero > step.slope * deep as f64,
        })
    }

    /// Positions before the last of the longest context, or as many as there is room for.
    fn depth(&self, asked: Asked) -> usize {
        let spec = self.whole.model.spec();
        let position = kv_numbers(spec) as f64 * asked.kv.bytes() * asked.sequences as f64;
        let depth = (asked.context - 1).min((self.room as f64 / position) as usize);
        // A step at the border of a page copies nothing of the one before, as nearly all steps of a run do.
        if depth > KV_PAGE { depth / KV_PAGE * KV_PAGE } else { depth }
    }

    /// A piece of a prompt after `depth` positions: how many a token of it sees on the average, and the seconds of a token
    /// in a block.
    fn time_prompt(&self, asked: Asked, chunk: usize, depth: usize, budget: Duration) -> Result<(f64, f64), Failure> {
        let (model, vocab) = (&self.few.model, self.outline.spec().vocab_size as u64);
        let draw = Rng::new(0, "plan", 0);
        let tokens: Vec<u32> = (0..chunk).map(|i| draw.below(i as u64, vocab) as u32).collect();
        let filled = self.few.filled(asked.kv, depth, depth + chunk);
        let mut times = Vec::new();
        repeat(budget, || {
            let mut cache = filled.clone();
            let forward = Forward { cache: Some(&mut cache), ..Forward::default() };
            let start = Instant::now();
            no_grad(|| model.hidden(&Input::rows(&tokens, 1), forward))?;
            times.push(start.elapsed().as_secs_f64());
            Ok(())
        })?;
        let fastest = times.into_iter().fold(f64::INFINITY, f64::min);
        Ok((depth as f64 + chunk as f64 / 2.0, fastest / (self.few.blocks() * chunk) as f64))
    }

    /// One token of each sequence after `depth` positions: these and the seconds of a block; and the seconds of the head.
    fn time_step(&self, asked: Asked, depth: usize, budget: Duration) -> Result<((f64, f64), f64), Failure> {
        let filled = |_| self.whole.filled(asked.kv, depth, depth + 1);
        let filled: Vec<KvCache> = (0..asked.sequences).map(filled).collect();
        let (mut blocks, mut head) = (Vec::new(), Vec::new());
        repeat(budget, || {
            let (of_blocks, of_head) = self.whole.time_step(&mut filled.clone())?;
            blocks.push(of_blocks);
            head.push(of_head);
            Ok(())
        })?;
        Ok(((depth as f64, median(blocks) / self.whole.blocks() as f64), median(head)))
    }
}

impl Rates {
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

/// Works until `budget` is spent, but [`LEAST_RUNS`] times at least.
fn repeat(budget: Duration, mut work: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut runs = 0;
    while runs < LEAST_RUNS || begin.elapsed() < budget {
        work()?;
        runs += 1;
    }
    Ok(())
}

/// The time in the middle.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
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
