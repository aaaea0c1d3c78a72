//! Sums and the like over whole slices, and column sums. Every sum has one order, whatever the thread count.

use crate::isa::{Isa, isa};
use crate::parallel::{CHUNK, for_chunks, reduce};
use crate::scratch::with_scratch;
use crate::simd::{Kernel, Simd, dispatch_on};

/// Elements that are summed in f32 before the sum goes on in f64.
const F32_RUN: usize = 2048;

/// What is added up.
#[derive(Clone, Copy)]
enum Term {
    X,
    XY,
}

impl Term {
    #[inline(always)]
    fn add<S: Simd>(self, s: S, acc: S::V, x: S::V, y: S::V) -> S::V {
        match self {
            Term::X => s.add(acc, x),
            Term::XY => s.fma(x, y, acc),
        }
    }
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
            let (mut xs, mut ys) = (x.chunks_exact(4 * S::LANES), y.chunks_exact(4 * S::LANES));
            for (x, y) in (&mut xs).zip(&mut ys) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let at = i * S::LANES;
                    *acc = self.term.add(s, *acc, s.load(&x[at..]), s.load(&y[at..]));
                }
            }
            for (x, y) in xs.remainder().chunks(S::LANES).zip(ys.remainder().chunks(S::LANES)) {
                acc[0] = self.term.add(s, acc[0], s.load_partial(x), s.load_partial(y));
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
        // 0 x is 0, and NaN for infinity and NaN: a flag that costs no branch.
        let (mut largest, mut poison) = ([s.zero(); 4], [s.zero(); 4]);
        let mut blocks = self.0.chunks_exact(4 * S::LANES);
        for block in &mut blocks {
            for i in 0..4 {
                let x = s.abs(s.load(&block[i * S::LANES..]));
                largest[i] = s.max(x, largest[i]);
                poison[i] = s.fma(x, s.zero(), poison[i]);
            }
        }
        for x in blocks.remainder().chunks(S::LANES) {
            let x = s.abs(s.load_partial(x));
            largest[0] = s.max(x, largest[0]);
            poison[0] = s.fma(x, s.zero(), poison[0]);
        }
        let largest = s.max(s.max(largest[0], largest[1]), s.max(largest[2], largest[3]));
        let poison = s.add(s.add(poison[0], poison[1]), s.add(poison[2], poison[3]));
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

/// Columns that one piece of work sums where the work is cut by columns.
const COLUMNS: usize = 512;
/// Most blocks of rows that are summed apart.
const MAX_BLOCKS: usize = 32;
/// Fewer rows than this are not cut into blocks.
const FEW_ROWS: usize = 64;

pub(crate) fn column_sums_on(isa: Isa, out: &mut [f32], x: &[f32], width: usize) {
    assert!(out.len() == width && x.len().is_multiple_of(width.max(1)), "column_sums: {} of {width}", x.len());
    if x.len() <= CHUNK || x.len() < FEW_ROWS * width {
        return sum_by_columns(isa, out, x, width);
    }
    // Blocks of rows are read as they lie in memory; their borders depend on the shape alone.
    let rows = x.len() / width;
    let block = rows.div_ceil(MAX_BLOCKS);
    with_scratch(rows.div_ceil(block) * width, |partial| {
        for_chunks(partial, width, |at, partial| {
            let first = at * block;
            partial.fill(0.0);
            let x = &x[first..(first + block * width).min(x.len())];
            dispatch_on(isa, ColumnSums { out: partial, x, width, first: 0 });
        });
        sum_by_columns(isa, out, partial, width);
    });
}

fn sum_by_columns(isa: Isa, out: &mut [f32], x: &[f32], width: usize) {
    // A small matrix is one piece: handing it out costs more than adding it up.
    let columns = if x.len() <= CHUNK { width } else { COLUMNS };
    for_chunks(out, columns, |first, out| dispatch_on(isa, ColumnSums { out, x, width, first }));
}

/// Adds the columns from `first` on, as many as `out` has, of all rows.
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
        let columns = self.first..self.first + self.out.len();
        // Four rows per visit to the sums: less traffic, and less rounding.
        let mut fours = self.x.chunks_exact(4 * self.width);
        for four in &mut fours {
            let (a, rest) = four.split_at(self.width);
            let (b, rest) = rest.split_at(self.width);
            let (c, d) = rest.split_at(self.width);
            let rows = [a, b, c, d].map(|row| &row[columns.clone()]);
            for (i, out) in self.out.chunks_mut(S::LANES).enumerate() {
                let at = i * S::LANES..i * S::LANES + out.len();
                let (a, b) = (s.load_partial(&rows[0][at.clone()]), s.load_partial(&rows[1][at.clone()]));
                let (c, d) = (s.load_partial(&rows[2][at.clone()]), s.load_partial(&rows[3][at]));
                let sum = s.add(s.load_partial(out), s.add(s.add(a, b), s.add(c, d)));
                s.store_partial(out, sum);
            }
        }
        for row in fours.remainder().chunks_exact(self.width) {
            for (out, x) in self.out.chunks_mut(S::LANES).zip(row[columns.clone()].chunks(S::LANES)) {
                let sum = s.add(s.load_partial(out), s.load_partial(x));
                s.store_partial(out, sum);
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
