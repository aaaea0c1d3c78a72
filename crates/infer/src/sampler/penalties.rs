//! The steps that look at what was written before.

use std::collections::BTreeMap;

use loam_chat::{SamplerPreset, Sampling};
use loam_tokenizer::{Special, Tokenizer};
use rustc_hash::FxHashMap;

use super::candidates::Candidates;
use crate::Error;

/// The last tokens that a window of `last_n` covers; -1 is all of them.
fn window(tokens: &[u32], last_n: i32) -> &[u32] {
    match usize::try_from(last_n) {
        Ok(n) => &tokens[tokens.len().saturating_sub(n)..],
        Err(_) => tokens,
    }
}

/// Repetition penalty, then frequency and presence. `seen` are prompt and output, of which the last `written` are the
/// output.
pub(super) fn penalties(left: &mut Candidates, seen: &[u32], written: usize, sampling: &Sampling) {
    let preset_window = || sampling.preset.penalty_window().map_or(-1, |n| n as i32);
    let last_n = sampling.penalty_last_n.unwrap_or_else(preset_window);
    if sampling.repetition_penalty != 1.0 {
        let factor = f64::from(sampling.repetition_penalty);
        for &token in counts(window(seen, last_n)).keys() {
            if let Some(c) = left.find(token) {
                c.logit = if c.logit <= 0.0 { c.logit * factor } else { c.logit / factor };
            }
        }
    }
    if sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
        let counted = match sampling.preset {
            SamplerPreset::LlamaCpp => seen,
            SamplerPreset::Hf | SamplerPreset::OpenAi => &seen[seen.len() - written.min(seen.len())..],
        };
        for (token, count) in counts(window(counted, last_n)) {
            if let Some(c) = left.find(token) {
                c.logit -= f64::from(sampling.presence_penalty) + f64::from(sampling.frequency_penalty) * count;
            }
        }
    }
}

fn counts(tokens: &[u32]) -> FxHashMap<u32, f64> {
    let mut counts = FxHashMap::default();
    for &token in tokens {
        *counts.entry(token).or_insert(0.0) += 1.0;
    }
    counts
}

/// Rows of tokens that no repeated passage reaches across: for the token that begins one, what follows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Breakers(BTreeMap<u32, Vec<Vec<u32>>>);

/// Longest breaker in bytes, and most tokens after its first: longer ones are cut, as llama.cpp does.
const LONGEST: (usize, usize) = (40, 20);

impl Breakers {
    /// The ways in which the vocabulary writes each of some texts: a token that contains it, or a token that ends with
    /// its beginning, followed by the rest.
    pub(super) fn new(texts: &[String], tokenizer: &Tokenizer) -> Result<Self, Error> {
        let mut found: BTreeMap<u32, Vec<Vec<u32>>> = BTreeMap::new();
        let ids = 0..tokenizer.vocab_size() as u32;
        let words: Vec<String> = ids.map(|id| tokenizer.decode(&[id], false).unwrap_or_default()).collect();
        for text in texts {
            let text = &text[..text.floor_char_boundary(LONGEST.0)];
            for (id, word) in (0..).zip(&words) {
                for rest in rests(word, text) {
                    let mut tail = tokenizer.encode(rest, Special::Ignore)?;
                    tail.truncate(LONGEST.1);
                    let tails = found.entry(id).or_default();
                    if !tails.contains(&tail) {
                        tails.push(tail);
                    }
                }
            }
        }
        Ok(Self(found))
    }

    /// How many tokens lie after the last breaker among `seen`; all of them if there is none.
    fn reach(&self, seen: &[u32]) -> usize {
        for (at, token) in seen.iter().enumerate().rev() {
            let tails = self.0.get(token).into_iter().flatten();
            let after = &seen[at + 1..];
            if let Some(longest) = tails.filter(|tail| after.starts_with(tail)).map(Vec::len).max() {
                return after.len() - longest;
            }
        }
        seen.len()
    }

    fn is_alone(&self, token: u32) -> bool {
        self.0.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }
}

/// What is left of `text` where a token's text holds all of it (nothing), or ends with a part of it.
fn rests<'a>(word: &str, text: &'a str) -> Vec<&'a str> {
    if word.contains(text) {
        return vec![""];
    }
    let borders = text.char_indices().map(|(at, _)| at).skip(1);
    borders.filter(|&at| word.ends_with(&text[..at])).map(|at| &text[at..]).collect()
}

/// "Don't repeat yourself": a token that would make the last n tokens and itself a repetition of an earlier passage loses
/// multiplier · base^(n - allowed), if n is at least `allowed`.
pub(super) fn dry(left: &mut Candidates, seen: &[u32], breakers: &Breakers, sampling: &Sampling) {
    let (base, allowed) = (f64::from(sampling.dry_base), sampling.dry_allowed_length);
    let seen = window(seen, sampling.dry_penalty_last_n);
    if sampling.dry_multiplier == 0.0 || base < 1.0 || seen.len() <= allowed {
        return;
    }
    let reach = breakers.reach(seen);
    if reach < allowed {
        return;
    }
    let mut longest: FxHashMap<u32, usize> = FxHashMap::default();
    let repeated = common_suffixes(seen);
    for (&length, &next) in repeated.iter().zip(&seen[1..]) {
        let length = length.min(reach);
        if length >= allowed {
            let most = longest.entry(next).or_insert(length);
            *most = length.max(*most);
        }
    }
    // What keeps the penalty within f32; a base of 1 does not grow.
    let most = if base > 1.000001 { (f64::from(f32::MAX).ln() / base.ln()).floor() } else { f64::INFINITY };
    for (token, length) in longest {
        if let Some(c) = left.find(token).filter(|_| !breakers.is_alone(token)) {
            let power = ((length - allowed) as f64).min(most);
            c.logit -= f64::from(sampling.dry_multiplier) * base.powf(power);
        }
    }
}

/// For each beginning of `seen` but the whole, how many of its last tokens are also the last of `seen`: the Z-algorithm
/// from the end, in linear time.
fn common_suffixes(seen: &[u32]) -> Vec<usize> {
    let (n, from_end) = (seen.len(), |i: usize| seen[seen.len() - 1 - i]);
    let mut z = vec![0; n];
    let (mut start, mut end) = (0, 0);
    for k in 1..n {
        let mut length = if k < end { z[k - start].min(end - k) } else { 0 };
        while k + length < n && from_end(length) == from_end(k + length) {
            length += 1;
        }
        if k + length > end {
            (start, end) = (k, k + length);
        }
        z[k] = length;
    }
    z[1..].iter().rev().copied().collect()
}

#[cfg(test)]
impl Breakers {
    pub(super) fn of(rows: &[Vec<u32>]) -> Self {
        let mut found: BTreeMap<u32, Vec<Vec<u32>>> = BTreeMap::new();
        for row in rows {
            found.entry(row[0]).or_default().push(row[1..].to_vec());
        }
        Self(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_tokenizer::{TrainConfig, TrainKind, train};

    #[test]
    fn the_lengths_of_common_suffixes_are_those_found_by_comparing() {
        let mut state = 1_u32;
        for len in 1..60 {
            let seen: Vec<u32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state >> 30
                })
                .collect();
            let naive = (1..len).map(|end| {
                let pairs = seen[..end].iter().rev().zip(seen.iter().rev());
                pairs.take_while(|(a, b)| a == b).count()
            });
            assert_eq!(common_suffixes(&seen), naive.collect::<Vec<_>>());
        }
    }

    #[test]
    fn breakers_are_found_inside_of_tokens_and_across_them() {
        let config = TrainConfig { vocab_size: 300, ..TrainConfig::new(TrainKind::ByteBpe) };
        let text = "so: a: the end.\n\nso: b: the end.\n\n";
        let tokenizer = train([Ok::<_, std::io::Error>(text.to_owned())], &config, &mut |_| {}).unwrap();
        let breakers = Breakers::new(&[":".into(), "\n\n".into()], &tokenizer).unwrap();
        let ids = |text: &str| tokenizer.encode(text, Special::Ignore).unwrap();
        for (text, after) in [("so: the", " the"), ("end.\n\nso", "so"), ("a:", "")] {
            assert_eq!(breakers.reach(&ids(text)), ids(after).len(), "{text:?}");
        }
        let one = tokenizer.token_to_id("Ċ").unwrap();
        assert_eq!(breakers.reach(&[one]), 1);
        assert_eq!(breakers.reach(&[one, one, ids("s")[0]]), 1);
        assert!(breakers.is_alone(ids(":")[0]) && !breakers.is_alone(one));
    }
}
