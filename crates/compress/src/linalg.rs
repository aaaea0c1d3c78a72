//! Cholesky factors in f64, for layers of any width.

use rayon::prelude::*;

/// Rows below which a column is not worth sharing among threads.
const ALONE: usize = 64;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums: the processor adds them at once.
    let mut sums = [0.0; 4];
    let (mut left, mut right) = (a.chunks_exact(4), b.chunks_exact(4));
    for (a, b) in left.by_ref().zip(right.by_ref()) {
        for i in 0..4 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// The lower triangular `l` with `l l^T = a`, in place of `a` `[n, n]`; `None` where `a` is not positive definite.
pub(crate) fn cholesky(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for j in 0..n {
        let (above, below) = a.split_at_mut((j + 1) * n);
        let row = &mut above[j * n..];
        let square = row[j] - dot(&row[..j], &row[..j]);
        if !(square > 0.0 && square.is_finite()) {
            return None;
        }
        let pivot = square.sqrt();
        row[j] = pivot;
        row[j + 1..].fill(0.0);
        let row = &row[..j];
        let update = |other: &mut [f64]| other[j] = (other[j] - dot(&other[..j], row)) / pivot;
        if n - j <= ALONE {
            below.chunks_exact_mut(n).for_each(update);
        } else {
            below.par_chunks_exact_mut(n).with_min_len(16).for_each(update);
        }
    }
    Some(a)
}

/// The inverse of a lower triangular matrix `[n, n]`, transposed: row j is column j of the inverse.
fn inverse_of_lower_transposed(l: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    out.par_chunks_exact_mut(n).enumerate().for_each(|(j, column)| {
        column[j] = 1.0 / l[j * n + j];
        for i in j + 1..n {
            column[i] = -dot(&l[i * n + j..i * n + i], &column[j..i]) / l[i * n + i];
        }
    });
    out
}

/// The upper triangular `u` `[n, n]` with `u^T u = h^-1`, by the Cholesky factor of `h` with its order turned around:
/// `h = p l l^T p` gives `u = p l^-1 p`. `None` where `h` is not positive definite.
pub(crate) fn upper_of_inverse(h: &[f64], n: usize) -> Option<Vec<f64>> {
    let mut turned = vec![0.0; n * n];
    turned.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
        let from = &h[(n - 1 - i) * n..][..n];
        row.iter_mut().zip(from.iter().rev()).for_each(|(to, x)| *to = *x);
    });
    let columns = inverse_of_lower_transposed(&cholesky(turned, n)?, n);
    // u[i][j] = inverse[n-1-i][n-1-j], and row r of `columns` is column r of the inverse.
    let mut u = vec![0.0; n * n];
    u.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
        for (j, to) in row.iter_mut().enumerate().skip(i) {
            *to = columns[(n - 1 - j) * n + n - 1 - i];
        }
    });
    Some(u)
}

/// Solves `x a = b` for every row of `b` `[rows, n]`, `a` `[n, n]` symmetric and positive definite.
pub(crate) fn solve_rows(a: Vec<f64>, n: usize, b: &mut [f64]) -> bool {
    let Some(l) = cholesky(a, n) else { return false };
    b.par_chunks_exact_mut(n).for_each(|row| {
        for i in 0..n {
            row[i] = (row[i] - dot(&l[i * n..i * n + i], &row[..i])) / l[i * n + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| l[k * n + i] * row[k]).sum();
            row[i] = (row[i] - sum) / l[i * n + i];
        }
    });
    true
}

/// `h` with a share of its mean diagonal added to the diagonal; what never occurs gets one.
pub(crate) fn damped(h: &[f64], n: usize, share: f64) -> Vec<f64> {
    let mut damped = h.to_vec();
    for i in 0..n {
        if damped[i * n + i] == 0.0 {
            damped[i * n + i] = 1.0;
        }
    }
    let mean = (0..n).map(|i| damped[i * n + i]).sum::<f64>() / n.max(1) as f64;
    (0..n).for_each(|i| damped[i * n + i] += share * mean);
    damped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positive(n: usize) -> Vec<f64> {
        let a = |i: usize, j: usize| ((i * 7 + j * 3) % 11) as f64 / 11.0 - 0.4;
        let mut h = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] = (0..n).map(|k| a(k, i) * a(k, j)).sum::<f64>() + if i == j { 0.5 } else { 0.0 };
            }
        }
        h
    }

    #[test]
    fn the_factor_of_the_inverse_is_upper_and_gives_the_inverse() {
        let n = 9;
        let h = positive(n);
        let u = upper_of_inverse(&h, n).expect("positive definite");
        for i in 0..n {
            assert!((0..i).all(|j| u[i * n + j] == 0.0));
            for j in 0..n {
                let inverse = |r: usize, c: usize| (0..n).map(|k| u[k * n + r] * u[k * n + c]).sum::<f64>();
                let one: f64 = (0..n).map(|k| inverse(i, k) * h[k * n + j]).sum();
                assert!((one - f64::from(u8::from(i == j))).abs() < 1e-9, "({i}, {j}): {one}");
            }
        }
    }

    #[test]
    fn rows_are_solved_and_what_is_not_positive_is_refused() {
        let n = 5;
        let a = positive(n);
        let x: Vec<f64> = (0..2 * n).map(|i| i as f64 - 3.5).collect();
        let mut b: Vec<f64> =
            (0..2 * n).map(|at| (0..n).map(|k| x[at / n * n + k] * a[k * n + at % n]).sum()).collect();
        assert!(solve_rows(a, n, &mut b));
        b.iter().zip(&x).for_each(|(b, x)| assert!((b - x).abs() < 1e-9));
        assert_eq!(cholesky(vec![1.0, 2.0, 2.0, 1.0], 2), None);
    }
}
