//! What this machine can do at most, measured: the roof that everything else is compared with.

use crate::isa::has_bf16_dot;
use crate::parallel::for_chunks;
use crate::simd::{Kernel, Simd, dispatch};
use std::time::Instant;

/// Runs of a measurement; the fastest counts, since the machine's other users only ever make one longer.
const RUNS: usize = 25;
/// Independent sums: two units, four to five cycles each, and some to spare.
const CHAINS: usize = 12;
/// Multiply-adds per chain and run: about 20 ms.
const STEPS: usize = 2_000_000;
/// Values read per run: 256 MiB, far beyond every cache.
const READ: usize = 64 << 20;

fn fastest(mut work: impl FnMut()) -> f64 {
    work();
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(|_| time(&mut work)).fold(f64::INFINITY, f64::min)
}

struct Chains;

impl Kernel for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (factor, step) = (s.splat(std::hint::black_box(0.999_999)), s.splat(std::hint::black_box(1e-6)));
        let mut sums = [s.zero(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = s.fma(*sum, factor, step);
            }
        }
        sums.iter().map(|&sum| s.reduce_sum(sum)).sum()
    }
}

/// f32 operations per second of all threads of the rayon pool in force: multiply-adds in registers, counted as two.
pub fn peak_flop_per_s() -> f64 {
    let threads = rayon::current_num_threads();
    let lanes = crate::isa().lanes();
    let mut results = vec![0.0_f32; threads];
    let seconds = fastest(|| for_chunks(&mut results, 1, |_, result| result[0] = dispatch(Chains)));
    std::hint::black_box(&results);
    2.0 * (threads * lanes * CHAINS * STEPS) as f64 / seconds
}

/// The same for operands in bf16, given the peak in f32. A dot instruction takes two products per lane at the same rate;
/// tiles are measured; elsewhere bf16 operands are multiplied as f32.
pub fn peak_bf16_flop_per_s(peak_f32: f64) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if crate::isa::has_tiles() {
        return peak_of_tiles();
    }
    if has_bf16_dot() { 2.0 * peak_f32 } else { peak_f32 }
}

/// Products of tiles from the first-level cache.
#[cfg(target_arch = "x86_64")]
fn peak_of_tiles() -> f64 {
    use crate::tiles::{Aligned, Left, SIDE, Shape, Tiles};
    /// Steps of a product, products per run.
    const SIZES: [usize; 2] = [16, 5_000];
    let threads = rayon::current_num_threads();
    let mut results = vec![0.0_f32; threads];
    let seconds = fastest(|| {
        for_chunks(&mut results, 1, |_, result| {
            let (left, right) = (Aligned([0.5_f32; 2 * SIDE * SIDE]), Aligned([0.5_f32; SIZES[0] * 2 * SIDE * SIDE]));
            let (tiles, mut c) = (Tiles::new(&Shape::WHOLE), Aligned([0.0_f32; 4 * SIDE * SIDE]));
            let left = Left { at: left.0.as_ptr(), stride: 4 * SIDE, step: 0 };
            for _ in 0..SIZES[1] {
                // SAFETY: one step of left is read again and again, and both others are as large as they must be.
                unsafe {
                    tiles.multiply_bf16(SIZES[0], left, [right.0.as_ptr(); 2], (c.0.as_mut_ptr(), 8 * SIDE, false))
                };
            }
            result[0] = c.0[0];
        });
    });
    std::hint::black_box(&results);
    (threads * SIZES[0] * SIZES[1] * 2 * (2 * SIDE) * (2 * SIDE) * (2 * SIDE)) as f64 / seconds
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.zero(); CHAINS];
        for piece in self.0.chunks_exact(CHAINS * S::LANES) {
            for (sum, values) in sums.iter_mut().zip(piece.chunks_exact(S::LANES)) {
                *sum = s.add(*sum, s.load(values));
            }
        }
        sums.iter().map(|&sum| s.reduce_sum(sum)).sum()
    }
}

/// Bytes per second that all threads of the rayon pool in force read from memory, one after the other.
pub fn read_bytes_per_s() -> f64 {
    let threads = rayon::current_num_threads();
    let values = vec![1.0_f32; READ];
    let share = READ / threads;
    let mut results = vec![0.0_f32; threads];
    let seconds = fastest(|| {
        for_chunks(&mut results, 1, |index, result| result[0] = dispatch(Sum(&values[index * share..][..share])));
    });
    std::hint::black_box(&results);
    4.0 * (share * threads) as f64 / seconds
}
