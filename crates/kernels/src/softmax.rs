//! Softmax and its logarithm over the last dimension, with their gradients.

use crate::isa::{Isa, isa};
use crate::math::exp;
use crate::parallel::for_chunks;
use crate::simd::{Kernel, Simd, dispatch_on};

/// Elements that one piece of work handles; at least one row.
const PIECE: usize = 8 * 1024;

/// Rows of `width` in one piece of work.
pub(crate) fn rows_per_piece(width: usize) -> usize {
    (PIECE / width).max(1)
}

/// `out = e^x / sum of e^x` per row of `width`.
pub fn softmax(out: &mut [f32], x: &[f32], width: usize) {
    forward(isa(), false, out, x, width);
}

/// `out = ln softmax(x)` per row of `width`.
pub fn log_softmax(out: &mut [f32], x: &[f32], width: usize) {
    forward(isa(), true, out, x, width);
}

/// Gradient of [`softmax`] from its output `y`: `dx = y (dy - sum of y dy)`.
pub fn softmax_backward(dx: &mut [f32], y: &[f32], dy: &[f32], width: usize) {
    backward(isa(), false, dx, y, dy, width);
}

/// Gradient of [`log_softmax`] from its output `y`: `dx = dy - e^y (sum of dy)`.
pub fn log_softmax_backward(dx: &mut [f32], y: &[f32], dy: &[f32], width: usize) {
    backward(isa(), true, dx, y, dy, width);
}

/// `out[row] = ln of the sum of e^x` over each row of `width`.
pub fn log_sum_exp(out: &mut [f32], x: &[f32], width: usize) {
    log_sum_exp_on(isa(), out, x, width);
}

fn forward(isa: Isa, logarithm: bool, out: &mut [f32], x: &[f32], width: usize) {
    check("softmax", width, x.len(), out.len());
    for_chunks(out, rows_per_piece(width) * width, |at, out| {
        let x = &x[at..at + out.len()];
        if logarithm {
            dispatch_on(isa, Forward::<true> { out, x, width });
        } else {
            dispatch_on(isa, Forward::<false> { out, x, width });
        }
    });
}

fn backward(isa: Isa, logarithm: bool, dx: &mut [f32], y: &[f32], dy: &[f32], width: usize) {
    check("softmax backward", width, y.len(), dx.len());
    assert_eq!(y.len(), dy.len(), "softmax backward: lengths differ");
    for_chunks(dx, rows_per_piece(width) * width, |at, dx| {
        let (y, dy) = (&y[at..at + dx.len()], &dy[at..at + dx.len()]);
        if logarithm {
            dispatch_on(isa, Backward::<true> { dx, y, dy, width });
        } else {
            dispatch_on(isa, Backward::<false> { dx, y, dy, width });
        }
    });
}

fn log_sum_exp_on(isa: Isa, out: &mut [f32], x: &[f32], width: usize) {
    assert!(width > 0 && x.len() == out.len() * width, "log_sum_exp: {} elements, rows of {width}", x.len());
    let rows = rows_per_piece(width);
    for_chunks(out, rows, |first, out| {
        let x = &x[first * width..][..out.len() * width];
        dispatch_on(isa, LogSumExp { out, x, width });
    });
}

fn check(op: &str, width: usize, x: usize, out: usize) {
    assert!(width > 0 && x == out && x.is_multiple_of(width), "{op}: {x} elements, {out} results, rows of {width}");
}

/// Largest element of a row; NaN lanes are passed over, as the sum that follows finds them.
#[inline(always)]
pub(crate) fn row_max<S: Simd>(s: S, row: &[f32]) -> f32 {
    let mut max = [s.splat(f32::NEG_INFINITY); 4];
    let mut blocks = row.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, max) in max.iter_mut().enumerate() {
            *max = s.max(s.load(&block[i * S::LANES..]), *max);
        }
    }
    for x in blocks.remainder().chunks(S::LANES) {
        let x = s.select(s.first(x.len()), s.load_partial(x), max[0]);
        max[0] = s.max(x, max[0]);
    }
    s.reduce_max(s.max(s.max(max[0], max[1]), s.max(max[2], max[3])))
}

/// The sum of e^(x - max) over a row.
#[inline(always)]
pub(crate) fn row_exp_sum<S: Simd>(s: S, row: &[f32], max: f32) -> f32 {
    let max = s.splat(max);
    let mut sum = [s.zero(); 2];
    let mut blocks = row.chunks_exact(2 * S::LANES);
    for block in &mut blocks {
        for (i, sum) in sum.iter_mut().enumerate() {
            *sum = s.add(*sum, exp(s, s.sub(s.load(&block[i * S::LANES..]), max)));
        }
    }
    for x in blocks.remainder().chunks(S::LANES) {
        let e = exp(s, s.sub(s.load_partial(x), max));
        sum[0] = s.add(sum[0], s.select(s.first(x.len()), e, s.zero()));
    }
    s.reduce_sum(s.add(sum[0], sum[1]))
}

struct Forward<'a, const LOG: bool> {
    out: &'a mut [f32],
    x: &'a [f32],
    width: usize,
}
impl<const LOG: bool> Kernel for Forward<'_, LOG> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (out, x) in self.out.chunks_exact_mut(self.width).zip(self.x.chunks_exact(self.width)) {
            let max = row_max(s, x);
            if LOG {
                let shift = s.splat(max + row_exp_sum(s, x, max).ln());
                for (out, x) in out.chunks_mut(S::LANES).zip(x.chunks(S::LANES)) {
                    s.store_partial(out, s.sub(s.load_partial(x), shift));
                }
            } else {
                out.copy_from_slice(x);
                let sum = row_exp_in_place(s, out, max);
                scale_row(s, out, 1.0 / sum);
            }
        }
    }
}

/// `row = e^(row - max)`; returns the sum.
#[inline(always)]
pub(crate) fn row_exp_in_place<S: Simd>(s: S, row: &mut [f32], max: f32) -> f32 {
    let max = s.splat(max);
    let mut sum = [s.zero(); 2];
    let mut blocks = row.chunks_exact_mut(2 * S::LANES);
    for block in &mut blocks {
        for (i, sum) in sum.iter_mut().enumerate() {
            let x = &mut block[i * S::LANES..];
            let e = exp(s, s.sub(s.load(x), max));
            s.store(x, e);
            *sum = s.add(*sum, e);
        }
    }
    for x in blocks.into_remainder().chunks_mut(S::LANES) {
        let e = exp(s, s.sub(s.load_partial(x), max));
        s.store_partial(x, e);
        sum[0] = s.add(sum[0], s.select(s.first(x.len()), e, s.zero()));
    }
    s.reduce_sum(s.add(sum[0], sum[1]))
}

/// `row *= factor`
#[inline(always)]
pub(crate) fn scale_row<S: Simd>(s: S, row: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for x in row.chunks_mut(S::LANES) {
        let y = s.mul(s.load_partial(x), factor);
        s.store_partial(x, y);
    }
}

struct Backward<'a, const LOG: bool> {
    dx: &'a mut [f32],
    y: &'a [f32],
    dy: &'a [f32],
    width: usize,
}
impl<const LOG: bool> Kernel for Backward<'_, LOG> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.dx.chunks_exact_mut(self.width).zip(self.y.chunks_exact(self.width));
        for ((dx, y), dy) in rows.zip(self.dy.chunks_exact(self.width)) {
            let mut sum = s.zero();
            for (y, dy) in y.chunks(S::LANES).zip(dy.chunks(S::LANES)) {
                let dy = s.load_partial(dy);
                sum = if LOG { s.add(sum, dy) } else { s.fma(s.load_partial(y), dy, sum) };
            }
            let sum = s.splat(s.reduce_sum(sum));
            for ((dx, y), dy) in dx.chunks_mut(S::LANES).zip(y.chunks(S::LANES)).zip(dy.chunks(S::LANES)) {
                let (y, dy) = (s.load_partial(y), s.load_partial(dy));
                s.store_partial(dx, if LOG { s.neg_fma(exp(s, y), sum, dy) } else { s.mul(y, s.sub(dy, sum)) });
            }
        }
    }
}

struct LogSumExp<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    width: usize,
}
impl Kernel for LogSumExp<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (out, x) in self.out.iter_mut().zip(self.x.chunks_exact(self.width)) {
            let max = row_max(s, x);
            *out = max + row_exp_sum(s, x, max).ln();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::testable;
    use crate::naive;
    use crate::rng::Rng;

    const SHAPES: [(usize, usize); 12] =
        [(0, 4), (1, 1), (3, 3), (2, 7), (5, 8), (4, 9), (3, 15), (2, 16), (3, 17), (2, 31), (700, 33), (2, 1000)];

    fn normal(n: usize, purpose: &str) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, n as u64).fill_normal(&mut x, -5.0, 3.0);
        x
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn softmax_its_logarithm_and_log_sum_exp_equal_f64() {
        for isa in testable() {
            for (rows, width) in SHAPES {
                let x = normal(rows * width, "x");
                let (mut y, mut log_y) = (vec![f32::NAN; rows * width], vec![f32::NAN; rows * width]);
                let mut lse = vec![f32::NAN; rows];
                forward(isa, false, &mut y, &x, width);
                forward(isa, true, &mut log_y, &x, width);
                log_sum_exp_on(isa, &mut lse, &x, width);
                for r in 0..rows {
                    let x = wide(&x[r * width..][..width]);
                    let (exact, exact_lse) = (naive::softmax(&x), naive::log_sum_exp(&x));
                    assert!((f64::from(lse[r]) - exact_lse).abs() < 3e-6 * (1.0 + exact_lse.abs()));
                    for j in 0..width {
                        let (y, log_y) = (f64::from(y[r * width + j]), f64::from(log_y[r * width + j]));
                        assert!((y - exact[j]).abs() <= 5e-6 * exact[j], "{isa:?} {rows}x{width}: {y} != {}", exact[j]);
                        assert!((log_y - exact[j].ln()).abs() <= 2e-6 * (1.0 + exact[j].ln().abs()));
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for isa in testable() {
            for (rows, width) in SHAPES.into_iter().filter(|(r, w)| r * w < 600) {
                let (x, dy) = (normal(rows * width, "x"), normal(rows * width, "dy"));
                for logarithm in [false, true] {
                    let (mut y, mut dx) = (vec![0.0; rows * width], vec![f32::NAN; rows * width]);
                    forward(isa, logarithm, &mut y, &x, width);
                    backward(isa, logarithm, &mut dx, &y, &dy, width);
                    for r in 0..rows {
                        let at = r * width..(r + 1) * width;
                        let dy = wide(&dy[at.clone()]);
                        let value = |x: &[f64]| -> f64 {
                            let y = naive::softmax(x);
                            y.iter().zip(&dy).map(|(y, dy)| dy * if logarithm { y.ln() } else { *y }).sum()
                        };
                        let exact = naive::gradient(&wide(&x[at.clone()]), value);
                        // Sums of `width` terms of size |dy|.
                        let scale = dy.iter().map(|d| d.abs()).sum::<f64>();
                        for (dx, e) in dx[at].iter().zip(exact) {
                            assert!((f64::from(*dx) - e).abs() <= 1e-6 * scale, "{isa:?} {rows}x{width}: {dx} != {e}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn minus_infinity_is_probability_zero() {
        for isa in testable() {
            let mut y = [f32::NAN; 10];
            let mut x = [1.0; 10];
            x[3] = f32::NEG_INFINITY;
            forward(isa, false, &mut y, &x, 10);
            assert!(y[3] == 0.0 && (y[0] - 1.0 / 9.0).abs() < 1e-6);
            forward(isa, false, &mut y, &[-1e30; 10], 10);
            assert!(y.iter().all(|y| (y - 0.1).abs() < 1e-6), "very small inputs do not underflow: {y:?}");
        }
    }
}
