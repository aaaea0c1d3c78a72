//! How fast a generation was.

use std::time::Duration;

/// Times of one generation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time of the pass over the prompt.
    pub prompt: Duration,
    /// Passes over single tokens after it.
    pub steps: usize,
    /// Time of those, sampling included.
    pub decode: Duration,
}

impl Timings {
    /// Prompt tokens read per second.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt)
    }

    /// Tokens written per second, the prompt's time apart.
    pub fn tokens_per_s(&self) -> f64 {
        rate(self.steps, self.decode)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_divide_counts_by_their_own_time() {
        let half = Duration::from_millis(500);
        let timings = Timings { prompt_tokens: 100, prompt: half, steps: 10, decode: 2 * half };
        assert_eq!((timings.prompt_tokens_per_s(), timings.tokens_per_s()), (200.0, 10.0));
        assert_eq!(Timings::default().tokens_per_s(), 0.0);
    }
}
