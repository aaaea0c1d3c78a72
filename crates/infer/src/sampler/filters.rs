//! The steps that cut, and the temperature.

use loam_chat::{SamplerPreset, Sampling};
use loam_kernels::rng::Rng;

use super::candidates::{Candidate, Candidates, entropy, rank, softmax};

/// Below this temperature vLLM is greedy.
const GREEDY_BELOW: f32 = 1e-5;

/// The temperature that stands for "the most likely token": no division, one candidate left.
pub(super) fn is_greedy(sampling: &Sampling) -> bool {
    match sampling.preset {
        SamplerPreset::OpenAi => sampling.temperature < GREEDY_BELOW,
        SamplerPreset::Hf | SamplerPreset::LlamaCpp => sampling.temperature <= 0.0,
    }
}

/// Divides the logits. With a range, the divisor goes from its lower end for a certain next token to its upper end for
/// equally likely ones: low + (high - low) · (H / Hmax)^exponent, where Hmax counts the tokens that are left.
pub(super) fn temperature(left: &mut Candidates, sampling: &Sampling) {
    if sampling.dynatemp_range <= 0.0 {
        return divide(left, f64::from(sampling.temperature), is_greedy(sampling));
    }
    if left.list.len() < 2 {
        return;
    }
    let (middle, range) = (f64::from(sampling.temperature), f64::from(sampling.dynatemp_range));
    let (low, high) = ((middle - range).max(0.0), middle + range);
    let share = entropy(&left.probabilities()) / (left.list.len() as f64).ln();
    let dynamic = low + (high - low) * share.powf(f64::from(sampling.dynatemp_exponent));
    divide(left, dynamic, dynamic <= 0.0);
}

fn divide(left: &mut Candidates, temperature: f64, is_greedy: bool) {
    if is_greedy {
        left.list = vec![left.best()];
    } else if temperature != 1.0 {
        left.list.iter_mut().for_each(|c| c.logit /= temperature);
    }
}

/// The k largest logits. llama.cpp keeps k of them, the others also what equals the k-th.
pub(super) fn top_k(left: &mut Candidates, k: usize, preset: SamplerPreset) {
    if k == 0 || k >= left.list.len() {
        return;
    }
    let mut ranked = left.list.clone();
    let (_, &mut last, _) = ranked.select_nth_unstable_by(k - 1, rank);
    match preset {
        SamplerPreset::Hf | SamplerPreset::OpenAi => left.list.retain(|c| c.logit >= last.logit),
        SamplerPreset::LlamaCpp => left.list.retain(|c| rank(c, &last).is_le()),
    }
}

/// The smallest set of most likely tokens whose probabilities reach p: a token stays if those before it do not.
pub(super) fn top_p(left: &mut Candidates, p: f32) {
    if p >= 1.0 {
        return;
    }
    let p = f64::from(p);
    let mut list: Vec<(f64, Candidate)> = left.probabilities().into_iter().zip(left.list.iter().copied()).collect();
    // All tokens below this share together have less than 1 - p, so none of them can be needed: no need to sort them.
    let share = (1.0 - p) / list.len() as f64;
    list.retain(|(probability, _)| *probability >= share);
    list.sort_unstable_by(|a, b| rank(&a.1, &b.1));
    let mut before = 0.0;
    let needed = list.iter().take_while(|(probability, _)| {
        let keep = before < p;
        before += probability;
        keep
    });
    let count = needed.count().max(1);
    list.truncate(count);
    left.set(list.into_iter().map(|(_, c)| c).collect());
}

/// Tokens at least this fraction as likely as the most likely one.
pub(super) fn min_p(left: &mut Candidates, p: f32) {
    if p > 0.0 {
        let least = left.best().logit + f64::from(p).ln();
        left.list.retain(|c| c.logit >= least);
    }
}

/// Tokens whose surprise is nearest to the entropy, until they hold p of the probability.
pub(super) fn typical_p(left: &mut Candidates, p: f32, preset: SamplerPreset) {
    if p >= 1.0 {
        return;
    }
    let (probabilities, p) = (left.probabilities(), f64::from(p));
    let expected = entropy(&probabilities);
    let mut order: Vec<(f64, usize)> = probabilities.iter().map(|p| (-p.ln() - expected).abs()).zip(0..).collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(rank(&left.list[a.1], &left.list[b.1])));
    let mut sum = 0.0;
    let is_last = |&(_, at): &(f64, usize)| {
        sum += probabilities[at];
        if preset == SamplerPreset::LlamaCpp { sum > p } else { sum >= p }
    };
    let last = order.iter().position(is_last).unwrap_or(order.len() - 1);
    // transformers keeps what is exactly as typical as the last one, too.
    let equals = order[last + 1..].iter().take_while(|(distance, _)| *distance == order[last].0).count();
    let count = last + 1 + if preset == SamplerPreset::LlamaCpp { 0 } else { equals };
    left.set(order[..count].iter().map(|&(_, at)| left.list[at]).collect());
}

/// Logits at most n standard deviations (of the logits that are left) below the largest.
pub(super) fn top_n_sigma(left: &mut Candidates, n: f32) {
    if n <= 0.0 {
        return;
    }
    let count = left.list.len() as f64;
    let mean = left.list.iter().map(|c| c.logit).sum::<f64>() / count;
    let variance = left.list.iter().map(|c| (c.logit - mean).powi(2)).sum::<f64>() / count;
    let least = left.best().logit - f64::from(n) * variance.sqrt();
    left.list.retain(|c| c.logit >= least);
}

/// Exclude top choices: as often as `xtc_probability` says, all tokens that reach the threshold are dropped but the
/// least likely of them. Its chance is drawn for itself, keyed by (seed, "xtc", step).
pub(super) fn xtc(left: &mut Candidates, sampling: &Sampling, step: u64) {
    if sampling.xtc_probability <= 0.0 || sampling.xtc_threshold > 0.5 || left.list.len() < 2 {
        return;
    }
    if Rng::new(sampling.seed, "xtc", step).stream().next_f32() > sampling.xtc_probability {
        return;
    }
    let ranked = left.ranked();
    let reach = softmax(&ranked).iter().take_while(|p| **p >= f64::from(sampling.xtc_threshold)).count();
    left.set(ranked[reach.saturating_sub(1)..].to_vec());
}
