//! The garden's random draws: one counter-based stream per (seed, purpose, index), so that document 1,000 is the same
//! whether or not the 999 before it were made.

use loam_kernels::rng::Stream;

/// A stream of draws.
pub struct Draw(Stream);

impl Draw {
    /// The stream of `index` within `purpose`.
    pub fn new(seed: u64, purpose: &str, index: u64) -> Draw {
        Draw(Stream::new(seed, purpose, index))
    }

    /// A number below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.next_below(n as u64) as usize
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.0.next_below(u64::from(high - low) + 1) as u32
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.0.next_below(100) < percent
    }

    /// One of `items`, which is not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// One of several wordings.
    pub fn wording<'a>(&mut self, wordings: &[&'a str]) -> &'a str {
        wordings[self.below(wordings.len())]
    }

    /// Puts `items` in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.0.shuffle(items);
    }
}
