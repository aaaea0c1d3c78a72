//! `loam bench infer MODEL`: prompts and decoding of a model on disk, in llama-bench's terms.

use super::{Roof, round};
use crate::args::ModelBench;
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output;
use crate::setup::Environment;
use loam_formats::Gguf;
use loam_kernels::rng::Rng;
use loam_models::{Forward, Input, KvCache, LanguageModel, footprint};
use loam_tensor::{DType, no_grad};
use loam_train::peak_rss_mib;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Tokens of a prompt that go through the model together, as llama-bench's `n_ubatch`.
const AT_ONCE: usize = 512;

/// A measurement: tokens of a prompt or decoded ones, and how long each repetition took.
struct Test {
    prompt: usize,
    tokens: usize,
    seconds: Vec<f64>,
}

impl Test {
    fn count(&self) -> usize {
        self.prompt + self.tokens
    }

    fn per_second(&self) -> Vec<f64> {
        self.seconds.iter().map(|seconds| self.count() as f64 / seconds).collect()
    }

    fn name(&self, depth: usize) -> String {
        let what = if self.prompt > 0 { format!("pp{}", self.prompt) } else { format!("tg{}", self.tokens) };
        if depth > 0 { format!("{what} @ d{depth}") } else { what }
    }
}

pub fn run(name: &str, wanted: &ModelBench, json: bool, environment: &Environment) -> Result<(), Failure> {
    let started = Instant::now();
    let path = model_path(name, environment)?;
    let model = LanguageModel::open_to_run(&path)?;
    check(&model, wanted)?;
    let load_s = started.elapsed().as_secs_f64();
    let tests = no_grad(|| tests(&model, wanted))?;
    // Before the roof is measured, which reads a large buffer.
    let rss = peak_rss_mib();
    let roof = (!wanted.no_roof).then(Roof::measured);
    let share = |test: &Test| {
        let mean_s = mean(&test.seconds) / test.tokens.max(1) as f64;
        let bytes = streamed_bytes(&model, wanted.n_depth + test.tokens / 2) as f64;
        (test.tokens > 0).then_some(()).and(roof.as_ref()).map(|roof| bytes / mean_s / roof.bytes_per_s)
    };
    if json {
        let list: Vec<Value> = tests
            .iter()
            .map(|test| {
                let mut value = described(&model, &path, wanted, test);
                value["load_ms"] = json!(round(1e3 * load_s, 1));
                value["peak_rss_mib"] = json!(rss);
                value["share_of_bandwidth"] = json!(share(test).map(|share| round(share, 3)));
                value["read_gb_per_s"] = json!(roof.as_ref().map(|roof| round(roof.bytes_per_s / 1e9, 1)));
                value
            })
            .collect();
        return output::json(&Value::Array(list));
    }
    for test in &tests {
        let rates = test.per_second();
        let mut line =
            format!("{}: {:.2} ± {:.2} tokens/s", test.name(wanted.n_depth), mean(&rates), deviation(&rates));
        if let Some(share) = share(test) {
            line += &format!(", {:.0} % of memory speed", 100.0 * share);
        }
        output::line(&line)?;
    }
    output::line(&format!("opened in {:.0} ms, at most {} MiB", 1e3 * load_s, rss))
}

fn check(model: &LanguageModel, wanted: &ModelBench) -> Result<(), Failure> {
    if wanted.n_prompt == 0 && wanted.n_gen == 0 {
        return Err(Failure::with_hint("nothing to measure", "ask for a prompt (-p 512) or tokens (-n 128)"));
    }
    if model.spec().encoder.is_some() || !model.spec().is_causal() {
        let hint = "give a model that continues a text";
        return Err(Failure::with_hint(format!("{} does not decode", model.spec().summary()), hint));
    }
    Ok(())
}

fn tests(model: &LanguageModel, wanted: &ModelBench) -> Result<Vec<Test>, Failure> {
    let mut cache = model.new_cache();
    cache.limit(wanted.n_depth + wanted.n_prompt.max(wanted.n_gen));
    read(model, &draw(model, "bench depth", wanted.n_depth), &mut cache)?;
    let mut tests = Vec::new();
    if wanted.n_prompt > 0 {
        let ids = draw(model, "bench prompt", wanted.n_prompt);
        let seconds = repeated(wanted, &cache, |cache| read(model, &ids, cache))?;
        tests.push(Test { prompt: wanted.n_prompt, tokens: 0, seconds });
    }
    if wanted.n_gen > 0 {
        let ids = draw(model, "bench decode", wanted.n_gen);
        let seconds = repeated(wanted, &cache, |cache| ids.chunks(1).try_for_each(|id| read(model, id, cache)))?;
        tests.push(Test { prompt: 0, tokens: wanted.n_gen, seconds });
    }
    Ok(tests)
}

/// Seconds of each repetition, which starts from the same cache; one more before warms up.
fn repeated(
    wanted: &ModelBench,
    filled: &KvCache,
    work: impl Fn(&mut KvCache) -> Result<(), Failure>,
) -> Result<Vec<f64>, Failure> {
    let warm_up = usize::from(wanted.repetitions.get() > 1);
    let mut seconds = Vec::new();
    for _ in 0..wanted.repetitions.get() + warm_up {
        let mut cache = filled.clone();
        let start = Instant::now();
        work(&mut cache)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds.split_off(warm_up))
}

/// Runs tokens through the model.
fn read(model: &LanguageModel, ids: &[u32], cache: &mut KvCache) -> Result<(), Failure> {
    for ids in ids.chunks(AT_ONCE) {
        model.last_logits(&Input::rows(ids, 1), Forward { cache: Some(cache), ..Forward::default() })?;
    }
    Ok(())
}

fn draw(model: &LanguageModel, purpose: &str, count: usize) -> Vec<u32> {
    let rng = Rng::new(0, purpose, 0);
    let vocabulary = model.spec().vocab_size as u64;
    (0..count).map(|i| rng.below(i as u64, vocabulary) as u32).collect()
}

/// Bytes of all weights.
fn model_bytes(model: &LanguageModel) -> usize {
    model.parameters().iter().map(|(_, parameter)| parameter.bytes()).sum()
}

/// Bytes that decoding a token reads at least: the weights of all products, and keys and values of `position` tokens.
fn streamed_bytes(model: &LanguageModel, position: usize) -> usize {
    let spec = model.spec();
    let table = match spec.tie_word_embeddings {
        true => 0,
        // Of a table that is no head, one row is read.
        false => model
            .parameters()
            .iter()
            .find(|(_, parameter)| parameter.shape()[0] == spec.vocab_size)
            .map_or(0, |(_, parameter)| parameter.bytes()),
    };
    model_bytes(model) - table + footprint(spec).kv_bytes_per_token_f32 * position
}

/// llama-bench's fields, as far as they mean something here.
fn described(model: &LanguageModel, path: &Path, wanted: &ModelBench, test: &Test) -> Value {
    let nanoseconds: Vec<f64> = test.seconds.iter().map(|seconds| (1e9 * seconds).round()).collect();
    let rates = test.per_second();
    json!({
        "model_filename": path, "model_type": model_type(model, path),
        "model_size": model_bytes(model), "model_n_params": model.num_parameters(),
        "n_batch": AT_ONCE, "n_ubatch": AT_ONCE, "n_threads": rayon::current_num_threads(),
        "type_k": "f32", "type_v": "f32", "backends": "CPU",
        "n_prompt": test.prompt, "n_gen": test.tokens, "n_depth": wanted.n_depth,
        "avg_ns": mean(&nanoseconds).round(), "stddev_ns": deviation(&nanoseconds).round(),
        "avg_ts": round(mean(&rates), 4), "stddev_ts": round(deviation(&rates), 4),
        "samples_ns": nanoseconds, "samples_ts": rates.iter().map(|&rate| round(rate, 4)).collect::<Vec<_>>(),
    })
}

/// The architecture, and the element type of most of its bytes.
fn model_type(model: &LanguageModel, path: &Path) -> String {
    let architecture = Gguf::is_one(path)
        .then(|| Gguf::open(path).ok()?.text("general.architecture").ok()?.map(str::to_owned))
        .flatten()
        .or_else(|| model.config()["model_type"].as_str().map(str::to_owned));
    let largest = model.parameters().into_iter().max_by_key(|(_, parameter)| parameter.bytes());
    let dtype = largest.map_or(DType::F32, |(_, parameter)| parameter.dtype());
    format!("{} {dtype}", architecture.unwrap_or_default())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Of a sample: divided by one less than there are.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if values.len() > 1 { (squares / (values.len() - 1) as f64).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_mean_and_a_sample_deviation() {
        let test = Test { prompt: 0, tokens: 10, seconds: vec![1.0, 2.0] };
        assert_eq!(test.per_second(), [10.0, 5.0]);
        assert_eq!(mean(&[1.0, 2.0, 3.0]), 2.0);
        assert_eq!(deviation(&[1.0, 2.0, 3.0]), 1.0);
        assert_eq!(deviation(&[5.0]), 0.0);
        assert_eq!(test.name(8192), "tg10 @ d8192");
    }
}
