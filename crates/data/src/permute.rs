//! A pseudo-random order of any length that is computed, not stored: place `i` of the order costs a few hashes, so a
//! run resumes anywhere in it at once.

use std::ops::Range;

use loam_kernels::rng::Rng;

/// A permutation of `0..len`: a four-round Feistel network over the next even power of two, walked until it lands
/// inside.
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The order of `len` things for (seed, purpose, epoch).
    pub fn new(len: u64, seed: u64, purpose: &str, epoch: u64) -> Self {
        let rng = Rng::new(seed, purpose, epoch);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|i| rng.u64(i as u64)) }
    }

    /// What stands at place `index`, which is below the length.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "place {index} of an order of {}", self.len);
        let mut value = index;
        loop {
            value = self.round_trip(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn round_trip(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// Epoch and row of each of some samples of an endless training run that sees all of `rows` rows once per epoch, in an
/// order of its own.
pub fn epoch_order(rows: u64, seed: u64, samples: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let mut order: Option<(u64, Permutation)> = None;
    samples.map(move |sample| {
        let (epoch, place) = (sample / rows, sample % rows);
        let order = match order.take() {
            Some((of, known)) if of == epoch => order.insert((of, known)),
            _ => order.insert((epoch, Permutation::new(rows, seed, "rows", epoch))),
        };
        (epoch, order.1.at(place))
    })
}

/// The finaliser of MurmurHash3.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_taken_once_for_any_length() {
        for len in [1, 2, 3, 5, 16, 17, 100, 1023, 1025, 5000] {
            let order = Permutation::new(len, 7, "test", 0);
            let mut places: Vec<u64> = (0..len).map(|i| order.at(i)).collect();
            places.sort_unstable();
            assert!(places.into_iter().eq(0..len), "length {len}");
        }
    }

    #[test]
    fn another_seed_or_epoch_gives_another_order() {
        let order = |seed, epoch| -> Vec<u64> {
            let order = Permutation::new(1000, seed, "test", epoch);
            (0..1000).map(|i| order.at(i)).collect()
        };
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_eq!(order(1, 0), order(1, 0));
        let stays = order(1, 0).iter().enumerate().filter(|&(i, &at)| i as u64 == at).count();
        assert!(stays < 10, "{stays} of 1000 stay in place");
    }
}
