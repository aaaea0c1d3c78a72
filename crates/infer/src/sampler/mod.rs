//! From logits to a token: a function of the logits, the tokens before, the settings and the step (and, for mirostat
//! and constraints, of what was chosen so far).
//!
//! Before anything else, what a constraint or `min_tokens` forbids goes. The steps of [`Sampling::steps`] follow, each
//! on what the one before left; [`SamplerPreset`](loam_chat::SamplerPreset) tells what the presets differ in.
//!
//! - logit bias: added to the logits; minus infinity forbids;
//! - penalties: the logit of every token that already occurred is divided by the repetition penalty if positive,
//!   multiplied by it if negative; then loses the presence penalty once and the frequency penalty for each time;
//! - DRY: what would go on with a repeated passage loses multiplier · base^(length - allowed);
//! - temperature: logits are divided by it; 0 leaves the largest alone;
//! - top-k: the k largest;
//! - top-p: the smallest set of most likely tokens whose probabilities reach it, at least one;
//! - min-p: tokens at least this fraction as likely as the most likely one;
//! - typical: tokens whose surprise is nearest to the entropy, until they hold this much probability;
//! - top-nσ: logits at most n standard deviations below the largest;
//! - XTC: now and then, drops all tokens above a threshold but the least likely of them;
//! - mirostat: drops what is more surprising than μ, which follows the surprise of what was chosen.
//!
//! Equal logits rank by id, the lowest first. The draw is keyed by (seed, "sample", step): it depends on nothing else,
//! so a text can be reproduced whatever ran before it or beside it.

mod candidates;
mod filters;
mod mirostat;
mod penalties;

use loam_chat::{SamplerStep, Sampling};
use loam_kernels::rng::Rng;
use loam_tokenizer::Tokenizer;

use crate::Error;
use crate::constrain::{Constraint, Matcher};
use candidates::{Candidates, softmax};
use mirostat::Mirostat;
use penalties::Breakers;

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its natural log-probability under the model itself, before any setting changed the distribution.
    pub logprob: f32,
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    stop_ids: Vec<u32>,
    breakers: Breakers,
    mirostat: Option<Mirostat>,
    matcher: Option<Matcher>,
}

impl Sampler {
    /// A sampler for a sequence that ends at `stop_ids`, and whose text obeys `constraint` if there is one. Settings
    /// without meaning are errors.
    pub fn new(
        sampling: &Sampling,
        tokenizer: &Tokenizer,
        stop_ids: &[u32],
        constraint: Option<&Constraint>,
    ) -> Result<Self, Error> {
        sampling.validate()?;
        let vocab_size = tokenizer.vocab_size();
        if let Some(id) = sampling.logit_bias.keys().find(|id| **id as usize >= vocab_size) {
            let (name, expected) = ("logit_bias".into(), format!("ids below {vocab_size}"));
            return Err(loam_chat::Error::InvalidSampling { name, expected, found: id.to_string() }.into());
        }
        let breakers = match sampling.dry_multiplier > 0.0 {
            true => Breakers::new(&sampling.dry_sequence_breakers, tokenizer)?,
            false => Breakers::default(),
        };
        let matcher = constraint.map(Constraint::start);
        Ok(Self { stop_ids: stop_ids.to_vec(), breakers, matcher, ..Self::plain(sampling) })
    }

    fn plain(sampling: &Sampling) -> Self {
        let mirostat = (sampling.mirostat > 0)
            .then(|| Mirostat::new(sampling.mirostat, sampling.mirostat_tau, sampling.mirostat_eta));
        Self {
            sampling: sampling.clone(),
            stop_ids: Vec::new(),
            breakers: Breakers::default(),
            mirostat,
            matcher: None,
        }
    }

    /// Chooses the token of generation step `step` (0 for the first). `seen` are all tokens before it: the prompt, then
    /// the `step` tokens chosen so far.
    pub fn choose(&mut self, logits: &[f32], seen: &[u32], step: u64) -> Result<Choice, Error> {
        let left = self.candidates(logits, seen, step)?;
        let (token, probability) = draw(&left, self.sampling.seed, step);
        if let Some(mirostat) = &mut self.mirostat {
            mirostat.learn(probability);
        }
        if let Some(matcher) = &mut self.matcher {
            matcher.accept(token)?;
        }
        Ok(Choice { token, logprob: logprob(logits, token) as f32 })
    }

    /// The probability of every token in that step; 0 for those that cannot come.
    pub fn probabilities(&mut self, logits: &[f32], seen: &[u32], step: u64) -> Result<Vec<f32>, Error> {
        let left = self.candidates(logits, seen, step)?;
        let mut all = vec![0.0; logits.len()];
        for (c, p) in left.list.iter().zip(left.probabilities()) {
            all[c.token as usize] = p as f32;
        }
        Ok(all)
    }

    /// Whether the constraint leaves nothing more to say: the text is complete, also without an end token.
    pub fn is_finished(&self) -> bool {
        self.matcher.as_ref().is_some_and(Matcher::is_finished)
    }

    fn candidates(&mut self, logits: &[f32], seen: &[u32], step: u64) -> Result<Candidates, Error> {
        let mut left = Candidates::new(logits).ok_or(Error::NoFiniteLogit { step })?;
        if let Some(matcher) = &mut self.matcher {
            let allowed = matcher.allowed()?;
            left.list.retain(|c| allowed.contains(c.token));
            if left.list.is_empty() {
                return Err(Error::NoFiniteLogit { step });
            }
        }
        if step < self.sampling.min_tokens as u64 {
            left.retain_some(|c| !self.stop_ids.contains(&c.token));
        }
        for &kind in self.sampling.steps() {
            self.apply(kind, &mut left, seen, step, logits.len());
        }
        Ok(left)
    }

    fn apply(&self, kind: SamplerStep, left: &mut Candidates, seen: &[u32], step: u64, vocab_size: usize) {
        let s = &self.sampling;
        match kind {
            SamplerStep::LogitBias => self.add_bias(left),
            SamplerStep::Penalties => penalties::penalties(left, seen, step as usize, s),
            SamplerStep::Dry => penalties::dry(left, seen, &self.breakers, s),
            SamplerStep::TopNSigma => filters::top_n_sigma(left, s.top_n_sigma),
            SamplerStep::TopK => filters::top_k(left, s.top_k, s.preset),
            SamplerStep::TypicalP => filters::typical_p(left, s.typical_p, s.preset),
            SamplerStep::TopP => filters::top_p(left, s.top_p),
            SamplerStep::MinP => filters::min_p(left, s.min_p),
            SamplerStep::Xtc => filters::xtc(left, s, step),
            SamplerStep::Temperature => filters::temperature(left, s),
            SamplerStep::Mirostat => self.mirostat.iter().for_each(|m| m.cut(left, vocab_size)),
        }
    }

    fn add_bias(&self, left: &mut Candidates) {
        for (&token, &bias) in &self.sampling.logit_bias {
            if let Some(c) = left.find(token) {
                c.logit += f64::from(bias);
            }
        }
        left.retain_some(|c| c.logit.is_finite());
    }
}

/// As [`Sampler::choose`], for settings that need neither a state nor a vocabulary: mirostat, and DRY with breakers, are
/// errors.
pub fn choose(logits: &[f32], seen: &[u32], sampling: &Sampling, step: u64) -> Result<Choice, Error> {
    let problem = "needs to know the sequence: choose its tokens with a Sampler";
    if sampling.mirostat > 0 {
        return Err(Error::Setting { key: "mirostat", problem });
    }
    if sampling.dry_multiplier > 0.0 && !sampling.dry_sequence_breakers.is_empty() {
        return Err(Error::Setting { key: "dry_sequence_breakers", problem });
    }
    Sampler::plain(sampling).choose(logits, seen, step)
}

/// The natural log-probability of `token` under `logits`.
pub fn logprob(logits: &[f32], token: u32) -> f64 {
    f64::from(logits[token as usize]) - log_total(logits)
}

/// The `count` most likely tokens and their natural log-probabilities under `logits`, the most likely first, by id among
/// equals.
pub fn top_logprobs(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let Some(mut left) = Candidates::new(logits).filter(|_| count > 0) else { return Vec::new() };
    if count < left.list.len() {
        left.list.select_nth_unstable_by(count - 1, candidates::rank);
        left.list.truncate(count);
    }
    let total = log_total(logits);
    left.ranked().iter().map(|c| (c.token, (c.logit - total) as f32)).collect()
}

/// Logarithm of the sum of exponentials of what is a number.
fn log_total(logits: &[f32]) -> f64 {
    let largest = greedy(logits).map_or(0.0, |token| logits[token as usize]);
    let total: f64 = logits.iter().filter(|x| !x.is_nan()).map(|&x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + total.ln()
}

/// The most likely token, the lowest id among equals. `None` where no logit is finite.
pub fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &logit) in logits.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|(_, value)| logit > value) {
            best = Some((token as u32, logit));
        }
    }
    best.map(|(token, _)| token)
}

/// A candidate and its probability.
fn draw(left: &Candidates, seed: u64, step: u64) -> (u32, f64) {
    let at = Rng::new(seed, "sample", step).stream().next_f64();
    let probabilities = softmax(&left.list);
    let mut sum = 0.0;
    let hit = probabilities.iter().position(|p| {
        sum += p;
        sum > at
    });
    // Rounding may leave the sum a hair below 1: then it is the last one that may come.
    let hit = hit.or_else(|| probabilities.iter().rposition(|p| *p > 0.0)).unwrap_or_default();
    (left.list[hit].token, probabilities[hit])
}

#[cfg(test)]
mod tests;
