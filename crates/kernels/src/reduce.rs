//! Sums and the like over whole slices, and column sums. Every sum has one order, whatever the thread count.

use crate::isa::{Isa, isa};
use crate::parallel::{CHUNK, for_chunks, reduce};
use crate::simd::{Kernel, Simd, dispatch_on};

/// Elements that are summed in f32 before the sum goes on in f64.
const F32_RUN: usize = 2048;

/// What is added up.
#[derive(Clone, Copy)]
enum Term {
    X,
    XY,
}

/// Sums `x` or `x * y`: f32 vectors within short runs, f64 across them.
struct Sum<'a> {
    term: Term,
    x: &'a [f32],
    y: &'a [f32],
}
impl Kernel for Sum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut total = 0.0;
        for (x, y) in self.x.chunks(F32_RUN).zip(self.y.chunks(F32_RUN)) {
            let mut acc = [s.zero(); 4];
            for (x, y) in x.chunks(4 * S::LANES).zip(y.chunks(4 * S::LANES)) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let at = (i * S::LANES).min(x.len());
                    let vx = s.load_partial(&x[at..]);
                    *acc = match self.term {
                        Term::X => s.add(*acc, vx),
                        Term::XY => s.fma(vx, s.load_partial(&y[at..]), *acc),
                    };
                }
            }
            let acc = s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3]));
            total += f64::from(s.reduce_sum(acc));
        }
        total
    }
}

/// Sum of all elements.
pub fn sum(x: &[f32]) -> f32 {
    sum_on(isa(), x) as f32
}

/// Sum of squares.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    dot_on(isa(), x, x)
}

/// Sum of products.
pub fn dot(x: &[f32], y: &[f32]) -> f64 {
    dot_on(isa(), x, y)
}

fn sum_on(isa: Isa, x: &[f32]) -> f64 {
    let part = |r: std::ops::Range<usize>| dispatch_on(isa, Sum { term: Term::X, x: &x[r.clone()], y: &x[r] });
    reduce(x.len(), CHUNK, part, |a, b| a + b).unwrap_or(0.0)
}

fn dot_on(isa: Isa, x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "dot: lengths differ");
    let part = |r: std::ops::Range<usize>| dispatch_on(isa, Sum { term: Term::XY, x: &x[r.clone()], y: &y[r] });
    reduce(x.len(), CHUNK, part, |a, b| a + b).unwrap_or(0.0)
}

/// Largest |x|, NaN if any element is NaN.
struct MaxAbs<'a>(&'a [f32]);
impl Kernel for MaxAbs<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (mut largest, mut poison) = (s.zero(), s.zero());
        for x in self.0.chunks(S::LANES) {
            let x = s.abs(s.load_partial(x));
            largest = s.max(x, largest);
            // 0 x is 0, and NaN for infinity and NaN: a flag that costs no branch.
            poison = s.fma(x, s.zero(), poison);
        }
        let finite = s.all(s.eq(poison, s.zero()));
        if finite || self.0.iter().all(|x| !x.is_nan()) { s.reduce_max(largest) } else { f32::NAN }
    }
}

/// Largest absolute value; 0 for an empty slice, NaN where any element is NaN.
pub fn max_abs(x: &[f32]) -> f32 {
    max_abs_on(isa(), x)
}

fn max_abs_on(isa: Isa, x: &[f32]) -> f32 {
    let fold = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
    reduce(x.len(), CHUNK, |r| f64::from(dispatch_on(isa, MaxAbs(&x[r]))), fold).unwrap_or(0.0) as f32
}

/// Whether no element is infinite or NaN.
pub fn all_finite(x: &[f32]) -> bool {
    max_abs(x).is_finite()
}

/// `out[j] += sum over rows of x[row][j]`, for `x` with rows of `width`.
pub fn column_sums(out: &mut [f32], x: &[f32], width: usize) {
    column_sums_on(isa(), out, x, width);
}

/// Columns that one piece of work sums: 512 bytes of each row.
const COLUMNS: usize = 128;
/// Rows that are summed before their sum is added to the total, which keeps the rounding error of long columns small.
const ROWS: usize = 64;

pub(crate) fn column_sums_on(isa: Isa, out: &mut [f32], x: &[f32], width: usize) {
    assert!(out.len() == width && x.len().is_multiple_of(width.max(1)), "column_sums: {} of {width}", x.len());
    // A small matrix is one piece: handing it out costs more than adding it up.
    let columns = if x.len() <= CHUNK { width } else { COLUMNS };
    for_chunks(out, columns, |first, out| dispatch_on(isa, ColumnSums { out, x, width, first }));
}

struct ColumnSums<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    width: usize,
    first: usize,
}
impl Kernel for ColumnSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for rows in self.x.chunks(ROWS * self.width) {
            for (i, out) in self.out.chunks_mut(4 * S::LANES).enumerate() {
                let first = self.first + i * 4 * S::LANES;
                let mut acc = [s.zero(); 4];
                for row in rows.chunks_exact(self.width) {
                    let row = &row[first..first + out.len()];
                    for (j, acc) in acc.iter_mut().enumerate() {
                        let at = (j * S::LANES).min(row.len());
                        *acc = s.add(*acc, s.load_partial(&row[at..]));
                    }
                }
                for (out, acc) in out.chunks_mut(S::LANES).zip(acc) {
                    let sum = s.add(s.load_partial(out), acc);
                    s.store_partial(out, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::testable;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    const SIZES: [usize; 14] = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 5000, 3 * CHUNK + 7];

    fn normal(n: usize) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, "reduce", n as u64).fill_normal(&mut x, 0.5, 1.0);
        x
    }

    #[test]
    fn sums_equal_f64_sums_on_every_size() {
        for isa in testable() {
            for n in SIZES {
                let (x, y) = (normal(n), normal(n + 1));
                let y = &y[..n];
                let exact: f64 = x.iter().map(|&x| f64::from(x)).sum();
                // f32 runs of 2048 / 32 additions: a few units of 2^-24 of the absolute sum, which is about 1 per element.
                let tolerance = 1e-6 * (n as f64 + 1.0);
                assert!((sum_on(isa, &x) - exact).abs() <= tolerance, "{isa:?} {n}");
                let exact: f64 = x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                assert!((dot_on(isa, &x, y) - exact).abs() <= 2.0 * tolerance, "{isa:?} {n}");
                assert_eq!(max_abs_on(isa, &x), x.iter().fold(0.0_f32, |m, x| m.max(x.abs())));
            }
        }
        assert!((f64::from(sum(&[1.5; 9])) - 13.5).abs() < 1e-6 && (sum_of_squares(&[2.0; 9]) - 36.0).abs() < 1e-6);
        assert_eq!(dot(&[2.0, 3.0], &[5.0, 7.0]), 31.0);
    }

    #[test]
    fn one_bad_element_is_found_wherever_it_is() {
        for isa in testable() {
            for n in SIZES {
                for place in [0, n / 2, n.saturating_sub(1)] {
                    let mut x = normal(n.max(1));
                    assert!(max_abs_on(isa, &x).is_finite());
                    x[place] = f32::NAN;
                    assert!(max_abs_on(isa, &x).is_nan(), "{isa:?} {n}");
                    x[place] = f32::NEG_INFINITY;
                    assert_eq!(max_abs_on(isa, &x), f32::INFINITY);
                    assert!(!all_finite(&x));
                }
            }
        }
        assert!(all_finite(&[]) && all_finite(&[f32::MAX, -1.0]));
    }

    #[test]
    fn column_sums_add_to_what_is_there_and_ignore_the_thread_count() {
        for isa in testable() {
            for (rows, width) in
                [(0, 3), (1, 1), (3, 7), (9, 8), (65, 17), (200, 33), (70, 300), (1000, 129), (40_000, 1)]
            {
                let x = normal(rows * width);
                let run = |threads| {
                    let mut out = vec![1.0; width];
                    with_threads(threads, || column_sums_on(isa, &mut out, &x, width));
                    out
                };
                let out = run(1);
                assert_eq!(out, run(2));
                for (j, &sum) in out.iter().enumerate() {
                    let exact = 1.0 + (0..rows).map(|i| f64::from(x[i * width + j])).sum::<f64>();
                    assert!((f64::from(sum) - exact).abs() <= 1e-6 * (rows as f64 + 10.0), "{isa:?} {rows}x{width}");
                }
            }
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_thread_count() {
        let x = normal(200 * CHUNK + 3);
        let sums = |threads| with_threads(threads, || (sum(&x).to_bits(), sum_of_squares(&x).to_bits()));
        assert_eq!(sums(1), sums(2));
    }
}
