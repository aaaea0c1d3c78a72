//! The best scale of a few numbers: what llama.cpp's quantisation searches for, so that files are alike.
//!
//! Each search tries some scales, rounds, and keeps the one whose least squares are smallest, every number counting by
//! its weight.

/// Numbers smaller than this are all zero.
const TINY: f32 = 1e-15;

/// The nearest integer, ties to even, for sizes below 2^22.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The number that is largest in size, the first of equals.
pub(super) fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0_f32, |most, &x| if x.abs() > most.abs() { x } else { most })
}

/// A scale for `x = scale * l` with `l` in `-levels..levels`; writes `l + levels`. `weights` are 1 for each `x^2` if
/// absent.
pub(super) fn symmetric(levels: i32, x: &[f32], weights: Option<&[f32]>, l: &mut [u8]) -> f32 {
    let most = largest(x);
    if most.abs() < TINY {
        l.fill(0);
        return 0.0;
    }
    let weight = |i: usize| weights.map_or(x[i] * x[i], |weights| weights[i]);
    let level = |inverse: f32, x: f32| nearest(inverse * x).clamp(-levels, levels - 1);
    let fit = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0_f32, 0.0_f32);
        for (i, &x) in x.iter().enumerate() {
            let l = level(inverse, x) as f32;
            sum_lx += weight(i) * x * l;
            sum_l2 += weight(i) * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut best_inverse = -levels as f32 / most;
    let (sum_lx, sum_l2) = fit(best_inverse);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let inverse = -(levels as f32 + 0.1 * step as f32) / most;
        let (sum_lx, sum_l2) = fit(inverse);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            best_inverse = inverse;
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    for (l, &x) in l.iter_mut().zip(x) {
        *l = (levels + level(best_inverse, x)) as u8;
    }
    scale
}

/// The same for few levels, improved number by number, each weighted with its square.
pub(super) fn symmetric_few(levels: i32, x: &[f32], l: &mut [i8; 16]) -> f32 {
    let most = largest(x);
    if most.abs() < TINY {
        l.fill(0);
        return 0.0;
    }
    let inverse = -levels as f32 / most;
    let (mut sum_lx, mut sum_l2) = (0.0_f32, 0.0_f32);
    for (l, &x) in l.iter_mut().zip(x) {
        *l = nearest(inverse * x).clamp(-levels, levels - 1) as i8;
        let (own, w) = (f32::from(*l), x * x);
        sum_lx += w * x * own;
        sum_l2 += w * own * own;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (l, &x) in l.iter_mut().zip(x) {
            let (own, w) = (f32::from(*l), x * x);
            let mut rest_lx = sum_lx - w * x * own;
            if rest_lx <= 0.0 {
                continue;
            }
            let mut rest_l2 = sum_l2 - w * own * own;
            let new = nearest(x * rest_l2 / rest_lx).clamp(-levels, levels - 1);
            if new == i32::from(*l) {
                continue;
            }
            rest_lx += w * x * new as f32;
            rest_l2 += w * new as f32 * new as f32;
            if rest_l2 > 0.0 && rest_lx * rest_lx * sum_l2 > sum_lx * sum_lx * rest_l2 {
                (*l, sum_lx, sum_l2, changed) = (new as i8, rest_lx, rest_l2, true);
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// Which scales [`with_minimum`] tries: `levels + first + i * step` levels over the range, for i up to `steps`.
#[derive(Clone, Copy)]
pub(super) struct Trials {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) steps: usize,
    /// Whether errors count by their size rather than by their square.
    pub(super) is_linear: bool,
}

/// A scale and a minimum for `x = scale * l - minimum` with `l` in `0..=levels`, the minimum not negative; writes `l`.
pub(super) fn with_minimum(levels: i32, x: &[f32], weights: &[f32], l: &mut [u8], trials: Trials) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (0.0_f32, 0.0_f32);
    for (&x, &w) in x.iter().zip(weights) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        l.fill(0);
        return (0.0, -min);
    }
    let (low, range) = (min, max - min);
    let level = |inverse: f32, x: f32| nearest(inverse * (x - low)).clamp(0, levels);
    let error = |inverse: f32, scale: f32, min: f32| {
        let each = x.iter().zip(weights).map(|(&x, &w)| {
            let difference = scale * level(inverse, x) as f32 + min - x;
            w * if trials.is_linear { difference.abs() } else { difference * difference }
        });
        each.fold(0.0_f32, |sum, error| sum + error)
    };
    let mut best_inverse = levels as f32 / range;
    let mut scale = 1.0 / best_inverse;
    let mut best = error(best_inverse, scale, min);
    for i in 0..=trials.steps {
        let inverse = (trials.first + trials.step * i as f32 + levels as f32) / range;
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0_f32, 0.0_f32, 0.0_f32);
        for (&x, &w) in x.iter().zip(weights) {
            let l = level(inverse, x) as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                (this_min, this_scale) = (0.0, sum_xl / sum_l2);
            }
            let this = error(inverse, this_scale, this_min);
            if this < best {
                (best, best_inverse, scale, min) = (this, inverse, this_scale, this_min);
            }
        }
    }
    for (l, &x) in l.iter_mut().zip(x) {
        *l = level(best_inverse, x) as u8;
    }
    (scale, -min)
}

/// A scale for numbers that are not negative: `x = scale * l` with `l` in `0..=levels`; writes `l`.
pub(super) fn positive(levels: i32, x: &[f32], weights: &[f32], l: &mut [u8]) -> f32 {
    let max = x.iter().fold(0.0_f32, |max, &x| if x > max { x } else { max });
    if max < TINY {
        l.fill(0);
        return 0.0;
    }
    let level = |inverse: f32, x: f32| nearest(inverse * x).min(levels);
    let error = |inverse: f32| {
        let scale = 1.0 / inverse;
        x.iter().zip(weights).fold(0.0_f32, |sum, (&x, &w)| {
            let difference = x - scale * level(inverse, x) as f32;
            sum + w * difference * difference
        })
    };
    let mut inverse = levels as f32 / max;
    let mut best = error(inverse);
    for step in (-4..=4).filter(|&step| step != 0) {
        let this = (0.1 * step as f32 + levels as f32) / max;
        let this_error = error(this);
        if this_error < best {
            (best, inverse) = (this_error, this);
        }
    }
    let (mut sum_lx, mut sum_l2) = (0.0_f32, 0.0_f32);
    for ((l, &x), &w) in l.iter_mut().zip(x).zip(weights) {
        *l = level(inverse, x) as u8;
        let own = f32::from(*l);
        sum_lx += w * x * own;
        sum_l2 += w * own * own;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((l, &x), &w) in l.iter_mut().zip(x).zip(weights) {
            let own = f32::from(*l);
            let (mut rest_lx, mut rest_l2) = (sum_lx - w * x * own, sum_l2 - w * own * own);
            if rest_lx <= 0.0 || rest_l2 <= 0.0 {
                continue;
            }
            let new = nearest(x * rest_l2 / rest_lx).min(levels);
            if new == i32::from(*l) {
                continue;
            }
            rest_lx += w * x * new as f32;
            rest_l2 += w * new as f32 * new as f32;
            if rest_lx * rest_lx * sum_l2 > sum_lx * sum_lx * rest_l2 {
                (*l, sum_lx, sum_l2, changed) = (new as u8, rest_lx, rest_l2, true);
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}
