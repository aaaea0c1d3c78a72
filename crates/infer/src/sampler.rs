//! From logits to a token: a pure function of the logits, the tokens before, the settings and the step.
//!
//! Settings apply in the order of transformers, each to what the one before left:
//! 1. repetition penalty: the logit of every token that already occurred (in the prompt or since) is divided by it if
//!    positive, multiplied by it if negative;
//! 2. temperature: logits are divided by it; 0 is greedy and skips everything below;
//! 3. top-k: the k largest;
//! 4. top-p: the smallest set of most likely tokens whose probabilities reach it, at least one;
//! 5. min-p: tokens at least this fraction as likely as the most likely one.
//!
//! Equal logits rank by id, the lowest first. The draw is keyed by (seed, "sample", step): it depends on nothing else,
//! so a text can be reproduced whatever ran before it or beside it.

use loam_chat::Sampling;
use loam_kernels::rng::Rng;

use crate::Error;

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its natural log-probability under the model itself, before any setting changed the distribution.
    pub logprob: f32,
}

/// Chooses the token of generation step `step` (0 for the first). `seen` are all tokens before it, the prompt included.
pub fn choose(logits: &[f32], seen: &[u32], sampling: &Sampling, step: u64) -> Result<Choice, Error> {
    let largest = largest(logits).ok_or(Error::NoFiniteLogit { step })?;
    let candidates = candidates(logits, seen, sampling).ok_or(Error::NoFiniteLogit { step })?;
    let token = draw(&candidates, sampling.seed, step);
    let total: f64 = logits.iter().filter(|x| !x.is_nan()).map(|&x| f64::from(x - largest).exp()).sum();
    let logprob = f64::from(logits[token as usize] - largest) - total.ln();
    Ok(Choice { token, logprob: logprob as f32 })
}

/// The probability of every token after the settings; 0 for those they exclude. `None` where no logit is finite.
pub fn probabilities(logits: &[f32], seen: &[u32], sampling: &Sampling) -> Option<Vec<f32>> {
    let candidates = candidates(logits, seen, sampling)?;
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let mut all = vec![0.0; logits.len()];
    for c in &candidates {
        all[c.token as usize] = (c.weight / total) as f32;
    }
    Some(all)
}

/// The natural log-probability of `token` under `logits`.
pub fn logprob(logits: &[f32], token: u32) -> f64 {
    let largest = largest(logits).unwrap_or(0.0);
    let total: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    f64::from(logits[token as usize] - largest) - total.ln()
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

/// A token that may be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Probability up to a common factor: the largest has 1.
    weight: f64,
}

fn largest(logits: &[f32]) -> Option<f32> {
    greedy(logits).map(|token| logits[token as usize])
}

/// What the settings leave, in ascending order of ids.
fn candidates(logits: &[f32], seen: &[u32], sampling: &Sampling) -> Option<Vec<Candidate>> {
    let penalised = penalise(logits, seen, sampling.repetition_penalty);
    let logits = penalised.as_deref().unwrap_or(logits);
    let best = greedy(logits)?;
    let top = logits[best as usize];
    if sampling.temperature == 0.0 {
        return Some(vec![Candidate { token: best, logit: top, weight: 1.0 }]);
    }
    // A logit that is not a number, or minus infinity, is a token that cannot come.
    let finite = logits.iter().enumerate().filter(|(_, logit)| logit.is_finite());
    let mut left: Vec<Candidate> = finite
        .map(|(token, &logit)| {
            let weight = (f64::from(logit - top) / f64::from(sampling.temperature)).exp();
            Candidate { token: token as u32, logit, weight }
        })
        .collect();
    keep_top_k(&mut left, sampling.top_k);
    keep_top_p(&mut left, f64::from(sampling.top_p));
    left.retain(|c| c.weight >= f64::from(sampling.min_p));
    left.sort_unstable_by_key(|c| c.token);
    Some(left)
}

/// The logits after the repetition penalty, or `None` where it changes nothing.
fn penalise(logits: &[f32], seen: &[u32], penalty: f32) -> Option<Vec<f32>> {
    if penalty == 1.0 || seen.is_empty() {
        return None;
    }
    let mut changed = logits.to_vec();
    for &token in seen {
        if let Some(&logit) = logits.get(token as usize) {
            changed[token as usize] = if logit < 0.0 { logit * penalty } else { logit / penalty };
        }
    }
    Some(changed)
}

/// Most likely first, then by id.
fn rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

fn keep_top_k(left: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < left.len() {
        left.select_nth_unstable_by(k - 1, rank);
        left.truncate(k);
    }
}

fn keep_top_p(left: &mut Vec<Candidate>, p: f64) {
    if p >= 1.0 {
        return;
    }
    left.sort_unstable_by_key(|c| c.token);
    let total: f64 = left.iter().map(|c| c.weight).sum();
    // All tokens below this share together have less than 1 - p, so none of them can be needed: no need to sort them.
    let share = total * (1.0 - p) / left.len() as f64;
    left.retain(|c| c.weight >= share.min(1.0));
    left.sort_unstable_by(rank);
    let mut before = 0.0;
    let needed = left.iter().take_while(|c| {
        let keep = before < p * total;
        before += c.weight;
        keep
    });
    let count = needed.count().max(1);
    left.truncate(count);
}

fn draw(candidates: &[Candidate], seed: u64, step: u64) -> u32 {
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let at = Rng::new(seed, "sample", step).stream().next_f64() * total;
    let mut sum = 0.0;
    let hit = candidates.iter().find(|c| {
        sum += c.weight;
        sum > at
    });
    // Rounding may leave the sum a hair below its own total: then it is the last one.
    hit.or(candidates.last()).expect("at least one candidate always remains").token
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_testkit::samplers;

    #[test]
    fn every_setting_gives_the_probabilities_of_transformers() {
        let table = samplers();
        assert!(table.cases.len() >= 16);
        for case in &table.cases {
            let sampling = Sampling {
                temperature: case.temperature.unwrap_or(1.0),
                top_k: case.top_k.unwrap_or(0),
                top_p: case.top_p.unwrap_or(1.0),
                min_p: case.min_p.unwrap_or(0.0),
                repetition_penalty: case.repetition_penalty.unwrap_or(1.0),
                ..Sampling::default()
            };
            let found = probabilities(&table.logits[&case.logits], &table.prompt, &sampling).unwrap();
            for (token, (a, b)) in found.iter().zip(&case.probabilities).enumerate() {
                assert!(
                    (a - b).abs() < 1e-6 && (*a == 0.0) == (*b == 0.0),
                    "{}: token {token}: {a} and {b}",
                    case.name
                );
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let sampling = Sampling { seed: 7, ..Sampling::default() };
        let expected = probabilities(&logits, &[], &sampling).unwrap();
        let n = 20_000;
        let mut counts = [0_u32; 4];
        for step in 0..n {
            counts[choose(&logits, &[], &sampling, step).unwrap().token as usize] += 1;
        }
        for (count, p) in counts.iter().zip(expected) {
            // Five standard errors.
            assert!((f64::from(*count) / n as f64 - f64::from(p)).abs() < 5.0 * (0.25 / n as f64).sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn the_draw_depends_on_seed_and_step_and_on_nothing_else() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let row = |seed| -> Vec<u32> {
            let sampling = Sampling { seed, ..Sampling::default() };
            (0..20).map(|step| choose(&logits, &[], &sampling, step).unwrap().token).collect()
        };
        assert_eq!(row(1), row(1));
        assert_ne!(row(1), row(2));
        assert!(row(1).windows(2).any(|w| w[0] != w[1]));
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals_and_top_k_keeps_the_lowest_ids() {
        let logits = [1.0, 3.0, 3.0, 3.0];
        assert_eq!(choose(&logits, &[], &Sampling::greedy(), 0).unwrap().token, 1);
        let two = probabilities(&logits, &[], &Sampling { top_k: 2, ..Sampling::default() }).unwrap();
        assert_eq!(two, [0.0, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn the_log_probability_is_the_models_own_whatever_the_settings() {
        let logits = [0.5, -1.0, 2.0];
        let choice = choose(&logits, &[2], &Sampling { repetition_penalty: 1.5, ..Sampling::greedy() }, 0).unwrap();
        let total: f64 = logits.iter().map(|&x: &f32| f64::from(x).exp()).sum();
        assert!((f64::from(choice.logprob) - (2.0 - total.ln())).abs() < 1e-6);
        assert!((logprob(&logits, 1) - (-1.0 - total.ln())).abs() < 1e-9);
    }

    #[test]
    fn logits_that_are_not_numbers_never_win_and_all_of_them_is_an_error() {
        let some = [f32::NAN, 0.0, f32::NEG_INFINITY];
        for step in 0..20 {
            let choice = choose(&some, &[], &Sampling::default(), step).unwrap();
            assert_eq!((choice.token, choice.logprob), (1, 0.0));
        }
        let error = choose(&[f32::NAN; 3], &[], &Sampling::default(), 4).unwrap_err();
        assert!(error.to_string().contains("no finite logit") && error.hint().is_some());
    }
}
