//! One row of a plan, really run: in a process of its own, whose memory is that of the run alone.

use super::pace::{median, step};
use crate::Outcome;
use crate::failure::Failure;
use crate::machine;
use crate::output;
use loam_kernels::rng::Rng;
use loam_models::{Forward, Input, KvCache, KvType, LanguageModel};
use loam_tensor::{no_grad, pool_stats};
use serde_json::json;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

/// Tokens that each sequence writes.
const STEPS: usize = 16;

/// The row: context, sequences, tokens of a piece of prompt, type of keys and values, with commas between.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub context: usize,
    pub sequences: usize,
    pub chunk: usize,
    pub kv: KvType,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.context, self.sequences, self.chunk, self.kv.name())
    }
}

impl FromStr for Probe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').collect();
        let [context, sequences, chunk, kv] = parts[..] else { return Err("expected four values".into()) };
        let number = |text: &str| text.parse::<usize>().map_err(|e| e.to_string()).map(|n| n.max(1));
        Ok(Self { context: number(context)?, sequences: number(sequences)?, chunk: number(chunk)?, kv: kv.parse()? })
    }
}

/// Opens a model, fills the context of every sequence but for some steps, and takes these.
pub fn run(path: &Path, asked: Probe) -> Result<Outcome, Failure> {
    let Probe { context, sequences, chunk, kv } = asked;
    let before = machine::resident_bytes().unwrap_or(0);
    let model = LanguageModel::open_to_run(path)?;
    let vocab = model.spec().vocab_size as u64;
    let rng = Rng::new(0, "probe", 0);
    let draw = |at: usize| rng.below(at as u64, vocab) as u32;
    let steps = STEPS.min(context / 2).max(1);
    if context < 2 {
        return Err(Failure::new("a context of one position has no room for a prompt"));
    }
    let prompt: Vec<u32> = (0..context - steps).map(draw).collect();
    // Pages of the file are there before time is taken, as they are in a server's second answer.
    no_grad(|| model.last_logits(&Input::rows(&prompt[..1], 1), Forward::default()))?;
    let (mut caches, mut prefill) = (Vec::new(), f64::INFINITY);
    for _ in 0..sequences {
        let mut cache = model.new_cache_of(kv);
        cache.limit(context);
        let start = Instant::now();
        read(&model, &prompt, chunk, &mut cache)?;
        prefill = prefill.min(start.elapsed().as_secs_f64());
        caches.push(cache);
    }
    if sequences == 1 {
        // A second try, in the same memory.
        let cache = &mut caches[0];
        cache.truncate(0);
        let start = Instant::now();
        read(&model, &prompt, chunk, cache)?;
        prefill = prefill.min(start.elapsed().as_secs_f64());
    }
    let mut times = Vec::new();
    for at in 0..steps {
        let tokens: Vec<u32> = (0..sequences).map(|s| draw(at * sequences + s)).collect();
        let start = Instant::now();
        let places: Vec<u32> = (0..sequences as u32).collect();
        no_grad(|| model.logits_at(&step(&model, &tokens, &mut caches)?, &places, &Default::default()))?;
        times.push(start.elapsed().as_secs_f64());
    }
    let pool = pool_stats();
    output::json(&json!({
        "before_bytes": before, "peak_rss_bytes": machine::peak_bytes(), "anonymous_bytes": machine::anonymous_bytes(),
        "pool_bytes": pool.live_bytes + pool.idle_bytes, "pool_peak_bytes": pool.peak_bytes,
        "prefill_tokens_per_s": prompt.len() as f64 / prefill,
        "decode_tokens_per_s": sequences as f64 / median(times),
    }))?;
    Ok(Outcome::Done)
}

/// Reads a prompt piece by piece; the last piece goes through the head.
fn read(model: &LanguageModel, prompt: &[u32], chunk: usize, cache: &mut KvCache) -> Result<(), Failure> {
    for piece in prompt.chunks(chunk) {
        let forward = Forward { cache: Some(cache), ..Forward::default() };
        no_grad(|| model.hidden(&Input::rows(piece, 1), forward))?;
    }
    Ok(())
}
