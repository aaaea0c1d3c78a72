//! The tokens that may still be drawn.

use std::cmp::Ordering;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f64,
}

/// Most likely first, then by id.
pub(super) fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Tokens with finite logits. Between two steps they are in ascending order of ids, and at least one is left.
#[derive(Debug, Clone)]
pub(super) struct Candidates {
    pub(super) list: Vec<Candidate>,
}

impl Candidates {
    /// All tokens whose logit is finite: one that is minus infinity, or not a number, cannot come. `None` where that
    /// leaves nothing.
    pub(super) fn new(logits: &[f32]) -> Option<Self> {
        let finite = (0..).zip(logits).filter(|(_, logit)| logit.is_finite());
        let list: Vec<_> = finite.map(|(token, &logit)| Candidate { token, logit: f64::from(logit) }).collect();
        (!list.is_empty()).then_some(Self { list })
    }

    pub(super) fn find(&mut self, token: u32) -> Option<&mut Candidate> {
        let at = self.list.binary_search_by_key(&token, |c| c.token).ok()?;
        Some(&mut self.list[at])
    }

    /// Keeps those for which `keep` says so, or all of them if that were none.
    pub(super) fn retain_some(&mut self, keep: impl Fn(&Candidate) -> bool) {
        if self.list.iter().any(&keep) {
            self.list.retain(keep);
        }
    }

    /// Keeps these, which are some of the candidates in any order.
    pub(super) fn set(&mut self, mut list: Vec<Candidate>) {
        list.sort_unstable_by_key(|c| c.token);
        self.list = list;
    }

    /// The most likely one, the lowest id among equals.
    pub(super) fn best(&self) -> Candidate {
        let first = self.list[0];
        self.list[1..].iter().fold(first, |best, c| if c.logit > best.logit { *c } else { best })
    }

    /// Most likely first, then by id.
    pub(super) fn ranked(&self) -> Vec<Candidate> {
        let mut ranked = self.list.clone();
        ranked.sort_unstable_by(rank);
        ranked
    }

    /// The probability of each, in the order of the list.
    pub(super) fn probabilities(&self) -> Vec<f64> {
        softmax(&self.list)
    }
}

/// The probability of each of some candidates, at least one.
pub(super) fn softmax(list: &[Candidate]) -> Vec<f64> {
    let top = list.iter().map(|c| c.logit).fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = list.iter().map(|c| (c.logit - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
    weights
}

/// The entropy of a distribution in nats.
pub(super) fn entropy(probabilities: &[f64]) -> f64 {
    probabilities.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
}
