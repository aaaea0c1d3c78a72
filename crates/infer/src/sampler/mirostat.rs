//! Mirostat: keeps the surprise of the text near a target.

use super::candidates::{Candidate, Candidates, softmax};

/// Version 1 estimates the slope of the distribution from so many tokens.
const ESTIMATED_FROM: usize = 100;

/// What mirostat has learned from the tokens so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mirostat {
    version: u8,
    tau: f64,
    eta: f64,
    /// The largest surprise that is let through, in bits.
    pub(super) mu: f64,
}

impl Mirostat {
    /// At the start of a text μ is twice the target.
    pub(super) fn new(version: u8, tau: f32, eta: f32) -> Self {
        let tau = f64::from(tau);
        Self { version, tau, eta: f64::from(eta), mu: 2.0 * tau }
    }

    /// Keeps the most likely tokens: in version 2 those whose surprise is at most μ, in version 1 as many as a Zipf
    /// distribution of the slope found would give that surprise. `vocab_size` counts all tokens there are.
    pub(super) fn cut(&self, left: &mut Candidates, vocab_size: usize) {
        let ranked = left.ranked();
        let probabilities = softmax(&ranked);
        let count = match self.version {
            1 => self.zipf_count(&ranked, vocab_size),
            _ => probabilities.iter().take_while(|p| -p.log2() <= self.mu).count(),
        };
        left.set(ranked[..count.clamp(1, ranked.len())].to_vec());
    }

    fn zipf_count(&self, ranked: &[Candidate], vocab_size: usize) -> usize {
        let (mut products, mut squares) = (0.0, 0.0);
        for (i, pair) in ranked.windows(2).take(ESTIMATED_FROM - 1).enumerate() {
            let t = ((i + 2) as f64 / (i + 1) as f64).ln();
            // The logarithm of the ratio of two probabilities is the difference of their logits.
            products += t * (pair[0].logit - pair[1].logit);
            squares += t * t;
        }
        let slope = products / squares;
        let excess = slope - 1.0;
        let mass = 1.0 - (vocab_size as f64).powf(-excess);
        // A conversion takes what is not a number for 0.
        (excess * self.mu.exp2() / mass).powf(1.0 / slope) as usize
    }

    /// Learns from the probability that the chosen token had among those that were kept.
    pub(super) fn learn(&mut self, probability: f64) {
        self.mu -= self.eta * (-probability.log2() - self.tau);
    }
}
