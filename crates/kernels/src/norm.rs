//! Layer normalisation and RMS normalisation over the last dimension, with their gradients.
//!
//! Both are one loop: RMS normalisation is layer normalisation that takes the mean to be zero. The forward pass keeps
//! per row what the backward pass needs: (mean, rstd), or rstd alone, where rstd is 1 / √(variance + eps).

use crate::isa::{Isa, isa};
use crate::parallel::{for_chunks2, for_chunks3};
use crate::reduce::column_sums_on;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, Simd, dispatch_on};

/// Elements that one piece of work normalises.
const PIECE: usize = 8 * 1024;
/// Most blocks of rows whose weight gradients are summed apart.
const MAX_BLOCKS: usize = 32;

/// `out = (x - mean) * rstd * weight + bias` per row of `weight.len()`; `stats` gets (mean, rstd) per row.
pub fn layer_norm(out: &mut [f32], stats: &mut [f32], x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    forward::<true>(isa(), out, stats, x, (weight, bias), eps);
}

/// `out = x * rstd * weight` per row of `weight.len()`, with rstd = 1 / √(mean of x² + eps); `stats` gets rstd per row.
pub fn rms_norm(out: &mut [f32], stats: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    forward::<false>(isa(), out, stats, x, (weight, None), eps);
}

/// Gradient of [`layer_norm`]: writes `dx`, adds to `dweight` and `dbias`.
pub fn layer_norm_backward(
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    stats: &[f32],
) {
    backward::<true>(isa(), dx, dweight, dbias, Saved { dy, x, weight, stats });
}

/// Gradient of [`rms_norm`]: writes `dx`, adds to `dweight`.
pub fn rms_norm_backward(dx: &mut [f32], dweight: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], stats: &[f32]) {
    backward::<false>(isa(), dx, dweight, None, Saved { dy, x, weight, stats });
}

/// Numbers kept per row: with the mean or without.
const fn kept(centred: bool) -> usize {
    if centred { 2 } else { 1 }
}

fn forward<const CENTRED: bool>(
    isa: Isa,
    out: &mut [f32],
    stats: &mut [f32],
    x: &[f32],
    (weight, bias): (&[f32], Option<&[f32]>),
    eps: f32,
) {
    let width = weight.len();
    check("norm", width, x.len(), out.len(), stats.len(), CENTRED);
    assert!(bias.is_none_or(|b| b.len() == width), "norm: weight and bias differ in length");
    if width == 0 {
        return;
    }
    let rows = (PIECE / width).max(1);
    for_chunks2((out, rows * width), (stats, rows * kept(CENTRED)), |i, out, stats| {
        let x = &x[i * rows * width..][..out.len()];
        dispatch_on(isa, Forward::<CENTRED> { out, stats, x, weight, bias, eps });
    });
}

fn check(op: &str, width: usize, x: usize, other: usize, stats: usize, centred: bool) {
    let rows = x / width.max(1);
    assert!(
        rows * width == x && other == x && stats == rows * kept(centred),
        "{op}: {x} elements and {stats} statistics do not fit rows of {width}"
    );
}

struct Forward<'a, const CENTRED: bool> {
    out: &'a mut [f32],
    stats: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl<const CENTRED: bool> Kernel for Forward<'_, CENTRED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        let rows = self.out.chunks_exact_mut(width).zip(self.x.chunks_exact(width));
        for ((out, x), stats) in rows.zip(self.stats.chunks_exact_mut(kept(CENTRED))) {
            let mean = if CENTRED { deviation_sum(s, x, 0.0, false) / width as f32 } else { 0.0 };
            let variance = deviation_sum(s, x, mean, true) / width as f32;
            let rstd = 1.0 / (variance + self.eps).sqrt();
            if CENTRED {
                stats[0] = mean;
            }
            stats[kept(CENTRED) - 1] = rstd;
            let (mean, rstd) = (s.splat(mean), s.splat(rstd));
            let lanes = S::LANES;
            for (i, (out, x)) in out.chunks_mut(lanes).zip(x.chunks(lanes)).enumerate() {
                let at = i * lanes..i * lanes + x.len();
                let centred = if CENTRED { s.sub(s.load_partial(x), mean) } else { s.load_partial(x) };
                let normal = s.mul(centred, rstd);
                let weight = s.load_partial(&self.weight[at.clone()]);
                let y = match self.bias {
                    Some(bias) => s.fma(normal, weight, s.load_partial(&bias[at])),
                    None => s.mul(normal, weight),
                };
                s.store_partial(out, y);
            }
        }
    }
}

/// The sum of `x - mean`, or of its squares.
#[inline(always)]
fn deviation_sum<S: Simd>(s: S, x: &[f32], mean: f32, squared: bool) -> f32 {
    let mean_v = s.splat(mean);
    let mut acc = [s.zero(); 4];
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, acc) in acc.iter_mut().enumerate() {
            let d = s.sub(s.load(&block[i * S::LANES..]), mean_v);
            *acc = if squared { s.fma(d, d, *acc) } else { s.add(*acc, d) };
        }
    }
    for x in blocks.remainder().chunks(S::LANES) {
        // The lanes past the end hold zero, not the mean.
        let d = s.select(s.first(x.len()), s.sub(s.load_partial(x), mean_v), s.zero());
        acc[0] = if squared { s.fma(d, d, acc[0]) } else { s.add(acc[0], d) };
    }
    s.reduce_sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])))
}

/// What the forward pass knew, and the gradient that comes in.
#[derive(Clone, Copy)]
struct Saved<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    weight: &'a [f32],
    stats: &'a [f32],
}

fn backward<const CENTRED: bool>(
    isa: Isa,
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
    saved: Saved<'_>,
) {
    let width = saved.weight.len();
    check("norm backward", width, saved.x.len(), dx.len(), saved.stats.len(), CENTRED);
    assert!(saved.dy.len() == saved.x.len() && dweight.len() == width, "norm backward: lengths differ");
    if saved.x.is_empty() {
        return;
    }
    let rows = saved.x.len() / width;
    // The blocks depend on the shape alone, so the sums have one order whatever the thread count.
    let block = rows.div_ceil(MAX_BLOCKS).max((PIECE / width).max(1));
    let blocks = rows.div_ceil(block);
    with_scratch(2 * blocks * width, |partial| {
        let (weight_sums, bias_sums) = partial.split_at_mut(blocks * width);
        for_chunks3((dx, block * width), (weight_sums, width), (bias_sums, width), |i, dx, dweight, dbias| {
            let rows = i * block..i * block + dx.len() / width;
            let (elements, kept) = (rows.start * width..rows.end * width, kept(CENTRED));
            let saved = Saved {
                dy: &saved.dy[elements.clone()],
                x: &saved.x[elements],
                stats: &saved.stats[rows.start * kept..rows.end * kept],
                ..saved
            };
            dweight.fill(0.0);
            dbias.fill(0.0);
            dispatch_on(isa, Backward::<CENTRED> { dx, dweight, dbias, saved });
        });
        let (weight_sums, bias_sums) = partial.split_at(blocks * width);
        column_sums_on(isa, dweight, weight_sums, width);
        if let Some(dbias) = dbias {
            column_sums_on(isa, dbias, bias_sums, width);
        }
    });
}

struct Backward<'a, const CENTRED: bool> {
    dx: &'a mut [f32],
    dweight: &'a mut [f32],
    dbias: &'a mut [f32],
    saved: Saved<'a>,
}

impl<const CENTRED: bool> Kernel for Backward<'_, CENTRED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Saved { dy, x, weight, stats } = self.saved;
        let width = weight.len();
        let rows = self.dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
        for (((dx, dy), x), stats) in rows.zip(stats.chunks_exact(kept(CENTRED))) {
            let row = Row { dy, x, weight, mean: if CENTRED { stats[0] } else { 0.0 }, rstd: stats[kept(CENTRED) - 1] };
            let (g, g_normal) = row.sums::<S, CENTRED>(s, self.dweight, self.dbias);
            row.input_gradient(s, dx, g / width as f32, g_normal / width as f32);
        }
    }
}

/// One row of the backward pass. With x̂ the normalised row and g = dy * weight, dx = rstd (g - mean(g) - x̂ mean(g x̂)).
struct Row<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    weight: &'a [f32],
    mean: f32,
    rstd: f32,
}

impl Row<'_> {
    /// The sums of g and g x̂; adds the row's part to the gradients of weight and bias.
    #[inline(always)]
    fn sums<S: Simd, const CENTRED: bool>(&self, s: S, dweight: &mut [f32], dbias: &mut [f32]) -> (f32, f32) {
        let (mean, rstd) = (s.splat(self.mean), s.splat(self.rstd));
        let (mut sum_g, mut sum_g_normal) = (s.zero(), s.zero());
        for (i, (dweight, dbias)) in dweight.chunks_mut(S::LANES).zip(dbias.chunks_mut(S::LANES)).enumerate() {
            let at = i * S::LANES..i * S::LANES + dweight.len();
            let dy = s.load_partial(&self.dy[at.clone()]);
            // Lanes past the end have dy zero and so add nothing.
            let normal = s.mul(s.sub(s.load_partial(&self.x[at.clone()]), mean), rstd);
            let g = s.mul(dy, s.load_partial(&self.weight[at]));
            sum_g_normal = s.fma(g, normal, sum_g_normal);
            let sum = s.fma(dy, normal, s.load_partial(dweight));
            s.store_partial(dweight, sum);
            if CENTRED {
                sum_g = s.add(sum_g, g);
                let sum = s.add(s.load_partial(dbias), dy);
                s.store_partial(dbias, sum);
            }
        }
        (s.reduce_sum(sum_g), s.reduce_sum(sum_g_normal))
    }

    #[inline(always)]
    fn input_gradient<S: Simd>(&self, s: S, dx: &mut [f32], mean_g: f32, mean_g_normal: f32) {
        let (mean, rstd) = (s.splat(self.mean), s.splat(self.rstd));
        let (mean_g, mean_g_normal) = (s.splat(mean_g), s.splat(mean_g_normal));
        for (i, dx) in dx.chunks_mut(S::LANES).enumerate() {
            let at = i * S::LANES..i * S::LANES + dx.len();
            let normal = s.mul(s.sub(s.load_partial(&self.x[at.clone()]), mean), rstd);
            let g = s.mul(s.load_partial(&self.dy[at.clone()]), s.load_partial(&self.weight[at]));
            s.store_partial(dx, s.mul(rstd, s.neg_fma(normal, mean_g_normal, s.sub(g, mean_g))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::testable;
    use crate::naive;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    const SHAPES: [(usize, usize); 12] =
        [(0, 4), (1, 1), (3, 3), (2, 7), (5, 8), (4, 9), (3, 15), (2, 16), (3, 17), (2, 31), (40, 33), (3, 100)];

    fn normal(n: usize, purpose: &str, mean: f32) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, n as u64).fill_normal(&mut x, mean, 1.0);
        x
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    /// Loss of one row in f64, as a function of (x, weight, bias) in one slice.
    fn loss(all: &[f64], dy: &[f64], centred: bool) -> f64 {
        let n = dy.len();
        let (x, weight, bias) = (&all[..n], &all[n..2 * n], &all[2 * n..]);
        let y = if centred { naive::layer_norm(x, weight, bias, 1e-2) } else { naive::rms_norm(x, weight, 1e-2) };
        y.iter().zip(dy).map(|(y, dy)| y * dy).sum()
    }

    fn check<const CENTRED: bool>(isa: Isa, rows: usize, width: usize) {
        let (x, dy) = (normal(rows * width, "x", 0.5), normal(rows * width, "dy", 0.0));
        let (weight, bias) = (normal(width, "weight", 1.0), normal(width, "bias", 0.0));
        let bias_given = CENTRED.then_some(&bias[..]);
        let mut stats = vec![f32::NAN; rows * kept(CENTRED)];
        let (mut out, mut dx) = (vec![f32::NAN; rows * width], vec![f32::NAN; rows * width]);
        forward::<CENTRED>(isa, &mut out, &mut stats, &x, (&weight, bias_given), 1e-2);
        let (mut dweight, mut dbias) = (vec![1.0; width], vec![1.0; width]);
        let saved = Saved { dy: &dy, x: &x, weight: &weight, stats: &stats };
        backward::<CENTRED>(isa, &mut dx, &mut dweight, CENTRED.then_some(&mut dbias[..]), saved);
        let (mut exact_dweight, mut exact_dbias) = (vec![1.0; width], vec![1.0; width]);
        let near = |got: f32, exact: f64, scale: f64, what: &str| {
            // A few f32 roundings of numbers of size `scale`; eps of 0.01 keeps 1 / std below 10.
            let error = (f64::from(got) - exact).abs();
            assert!(error <= 1e-5 * (exact.abs() + scale), "{isa:?} {rows}x{width} {what}: {got} != {exact}");
        };
        for r in 0..rows {
            let at = r * width..(r + 1) * width;
            let all = [wide(&x[at.clone()]), wide(&weight), wide(&bias)].concat();
            let dy = wide(&dy[at.clone()]);
            let y = if CENTRED {
                naive::layer_norm(&all[..width], &wide(&weight), &wide(&bias), 1e-2)
            } else {
                naive::rms_norm(&all[..width], &wide(&weight), 1e-2)
            };
            let slopes = naive::gradient(&all, |all| loss(all, &dy, CENTRED));
            for j in 0..width {
                near(out[at.start + j], y[j], 1.0, "out");
                near(dx[at.start + j], slopes[j], 3.0, "dx");
                exact_dweight[j] += slopes[width + j];
                exact_dbias[j] += if CENTRED { slopes[2 * width + j] } else { 0.0 };
            }
        }
        for j in 0..width {
            near(dweight[j], exact_dweight[j], rows as f64 + 1.0, "dweight");
            near(dbias[j], exact_dbias[j], rows as f64 + 1.0, "dbias");
        }
    }

    #[test]
    fn both_norms_and_their_gradients_equal_f64_on_odd_sizes() {
        for isa in testable() {
            for (rows, width) in SHAPES {
                check::<true>(isa, rows, width);
                check::<false>(isa, rows, width);
            }
        }
    }

    #[test]
    fn the_thread_count_changes_no_bit() {
        let (rows, width) = (300, 100);
        let (x, dy, weight) =
            (normal(rows * width, "x", 0.5), normal(rows * width, "dy", 0.0), normal(width, "w", 1.0));
        let run = |threads| {
            let (mut out, mut stats, mut dx) = (vec![0.0; rows * width], vec![0.0; 2 * rows], vec![0.0; rows * width]);
            let (mut dweight, mut dbias) = (vec![0.0; width], vec![0.0; width]);
            with_threads(threads, || {
                layer_norm(&mut out, &mut stats, &x, &weight, Some(&weight), 1e-5);
                layer_norm_backward(&mut dx, &mut dweight, Some(&mut dbias), &dy, &x, &weight, &stats);
            });
            (out, stats, dx, dweight, dbias)
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn a_large_mean_does_not_swamp_the_variance() {
        let x: Vec<f32> = (0..64).map(|i| 10_000.0 + (i % 2) as f32).collect();
        let (mut out, mut stats) = ([0.0; 64], [0.0; 2]);
        layer_norm(&mut out, &mut stats, &x, &[1.0; 64], None, 0.0);
        assert!(out.iter().enumerate().all(|(i, y)| (y - if i % 2 == 1 { 1.0 } else { -1.0 }).abs() < 1e-3), "{out:?}");
    }
}
