//! Random numbers that are a function of (seed, purpose, step, index).
//!
//! Every number comes from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): ten
//! rounds of multiplication that turn a 128-bit counter and a 64-bit key into 128 random bits. There is no state to
//! save or to share between threads: a dropout mask is computed again in the backward pass, a resumed run draws what
//! the uninterrupted one would have drawn.
//!
//! The draws of one [`Rng`] by different methods overlap (they read the same counter blocks), so use one purpose per
//! kind of draw.

use crate::parallel::{CHUNK, for_chunks};

const MULTIPLIER: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Philox4x32 with ten rounds: 128 random bits for a counter and a key.
#[inline(always)]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A family of random numbers, addressed by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    key: [u32; 2],
    step: u64,
}

impl Rng {
    /// The numbers of `purpose` at `step`, for one seed.
    pub fn new(seed: u64, purpose: &str, step: u64) -> Self {
        let mixed = mix(seed ^ mix(fnv1a(purpose)));
        Self { key: [mixed as u32, (mixed >> 32) as u32], step }
    }

    /// The four 32-bit words of a counter block.
    #[inline(always)]
    pub fn block(&self, block: u64) -> [u32; 4] {
        let (counter, key) = self.address(block);
        philox4x32(counter, key)
    }

    /// Counter and key of a block.
    #[inline(always)]
    pub(crate) fn address(&self, block: u64) -> ([u32; 4], [u32; 2]) {
        ([block as u32, (block >> 32) as u32, self.step as u32, (self.step >> 32) as u32], self.key)
    }

    /// 32 random bits.
    #[inline]
    pub fn u32(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// 64 random bits.
    #[inline]
    pub fn u64(&self, index: u64) -> u64 {
        let b = self.block(index / 2);
        let at = (index % 2) as usize * 2;
        u64::from(b[at]) | u64::from(b[at + 1]) << 32
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    #[inline]
    pub fn uniform_f32(&self, index: u64) -> f32 {
        unit_f32(self.u32(index))
    }

    /// Standard normal (Box and Muller, computed in f64 so that it hardly depends on the platform's library).
    pub fn normal_f32(&self, index: u64) -> f32 {
        let b = self.block(index / 4);
        let pair = if index % 4 < 2 { [b[0], b[1]] } else { [b[2], b[3]] };
        normal_pair(pair)[(index % 2) as usize]
    }

    /// Uniform in `0..n` for `n >= 1`, by multiplication: the bias is below n / 2^64.
    #[inline]
    pub fn below(&self, index: u64, n: u64) -> u64 {
        scale_to(self.u64(index), n)
    }

    /// Fills `out` with `mean + std * normal_f32(i)`.
    pub fn fill_normal(&self, out: &mut [f32], mean: f32, std: f32) {
        for_chunks(out, CHUNK, |offset, piece| {
            for (i, four) in piece.chunks_mut(4).enumerate() {
                let b = self.block((offset / 4 + i) as u64);
                let [n0, n1] = normal_pair([b[0], b[1]]);
                let [n2, n3] = normal_pair([b[2], b[3]]);
                for (x, n) in four.iter_mut().zip([n0, n1, n2, n3]) {
                    *x = mean + std * n;
                }
            }
        });
    }

    /// Fills `out` with `low + (high - low) * uniform_f32(i)`.
    pub fn fill_uniform(&self, out: &mut [f32], low: f32, high: f32) {
        for_chunks(out, CHUNK, |offset, piece| {
            for (i, four) in piece.chunks_mut(4).enumerate() {
                let words = self.block((offset / 4 + i) as u64);
                for (x, w) in four.iter_mut().zip(words) {
                    *x = low + (high - low) * unit_f32(w);
                }
            }
        });
    }

    /// A cursor over these numbers, starting at the first.
    pub fn stream(self) -> Stream {
        Stream { rng: self, position: 0 }
    }
}

/// A sequential cursor over an [`Rng`]: for shuffles, sampling and data, where the order of draws is the program's.
///
/// Its position is its whole state, so saving and restoring it takes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    rng: Rng,
    position: u64,
}

impl Stream {
    /// A stream keyed like [`Rng::new`].
    pub fn new(seed: u64, purpose: &str, step: u64) -> Self {
        Rng::new(seed, purpose, step).stream()
    }

    /// How many draws were made.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Continues as if `position` draws had been made.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let x = self.rng.u64(self.position);
        self.position += 1;
        x
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    pub fn next_f32(&mut self) -> f32 {
        unit_f32((self.next_u64() >> 32) as u32)
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..n` for `n >= 1`.
    pub fn next_below(&mut self, n: u64) -> u64 {
        scale_to(self.next_u64(), n)
    }

    /// Standard normal.
    pub fn next_normal(&mut self) -> f32 {
        let x = self.next_u64();
        normal_pair([x as u32, (x >> 32) as u32])[0]
    }

    /// Puts `items` in a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.next_below(i as u64 + 1) as usize);
        }
    }
}

/// Uniform in [0, 1) from the upper 24 bits.
#[inline(always)]
pub fn unit_f32(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

fn normal_pair([a, b]: [u32; 2]) -> [f32; 2] {
    // Half a step is added, so that the logarithm never sees zero.
    let u = (f64::from(a) + 0.5) / 4_294_967_296.0;
    let angle = f64::from(b) / 4_294_967_296.0 * std::f64::consts::TAU;
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = angle.sin_cos();
    [(radius * cos) as f32, (radius * sin) as f32]
}

#[inline(always)]
fn scale_to(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

/// 64-bit FNV-1a: a short, well-known hash of the purpose's name.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of SplitMix64: spreads neighbouring seeds over all bits.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::with_threads;

    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn seed_purpose_step_and_index_each_change_the_numbers() {
        let base = Rng::new(1, "dropout", 0).u64(0);
        assert_ne!(base, Rng::new(2, "dropout", 0).u64(0));
        assert_ne!(base, Rng::new(1, "init", 0).u64(0));
        assert_ne!(base, Rng::new(1, "dropout", 1).u64(0));
        assert_ne!(base, Rng::new(1, "dropout", 0).u64(1));
        assert_eq!(base, Rng::new(1, "dropout", 0).u64(0));
    }

    #[test]
    fn uniform_and_normal_draws_have_the_right_moments() {
        let (rng, n) = (Rng::new(7, "moments", 0), 200_000_u64);
        let moments = |f: &dyn Fn(u64) -> f32| {
            let (mut s, mut q) = (0.0_f64, 0.0_f64);
            for i in 0..n {
                let x = f64::from(f(i));
                s += x;
                q += x * x;
            }
            (s / n as f64, q / n as f64)
        };
        // Five standard errors: 1/sqrt(n) is 0.0022.
        let (mean, square) = moments(&|i| rng.uniform_f32(i));
        assert!((mean - 0.5).abs() < 0.004 && (square - 1.0 / 3.0).abs() < 0.004, "{mean} {square}");
        let (mean, square) = moments(&|i| rng.normal_f32(i));
        assert!(mean.abs() < 0.011 && (square - 1.0).abs() < 0.016, "{mean} {square}");
        let (mean, square) = moments(&|i| rng.below(i, 6) as f32);
        assert!((mean - 2.5).abs() < 0.02 && (square - 55.0 / 6.0).abs() < 0.1, "{mean} {square}");
    }

    #[test]
    fn filling_draws_the_indexed_numbers_whatever_the_thread_count() {
        let rng = Rng::new(3, "fill", 9);
        for n in [1, 5, CHUNK + 3] {
            let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
            with_threads(2, || rng.fill_normal(&mut a, 0.0, 1.0));
            with_threads(1, || rng.fill_uniform(&mut b, 0.0, 1.0));
            for i in [0, n / 2, n - 1] {
                assert_eq!(a[i], rng.normal_f32(i as u64));
                assert_eq!(b[i], rng.uniform_f32(i as u64));
            }
        }
    }

    #[test]
    fn a_stream_continues_from_its_position() {
        let mut a = Stream::new(5, "data", 0);
        let first: Vec<u64> = (0..9).map(|_| a.next_u64()).collect();
        let mut b = Stream::new(5, "data", 0);
        b.seek(4);
        assert_eq!(b.next_u64(), first[4]);
        assert_eq!(b.position(), 5);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&b.next_f32()) && (0.0..1.0).contains(&b.next_f64())));
        assert!((0..1000).all(|_| b.next_below(3) < 3 && b.next_normal().abs() < 7.0));
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_every_place_is_reachable() {
        let mut stream = Stream::new(11, "shuffle", 0);
        let mut counts = [[0_u32; 4]; 4];
        for _ in 0..4000 {
            let mut items = [0_usize, 1, 2, 3];
            stream.shuffle(&mut items);
            let mut sorted = items;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            for (place, item) in items.into_iter().enumerate() {
                counts[place][item] += 1;
            }
        }
        // Expected 1000 each, standard deviation 27.
        assert!(counts.iter().flatten().all(|&c| (860..1140).contains(&c)), "{counts:?}");
    }
}
