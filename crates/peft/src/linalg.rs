//! Singular vectors and orthonormal columns of matrices, in f64.

use loam_kernels::rng::Rng;

/// Matrices whose shorter side is at most this have all of their singular vectors computed; of larger ones the first are
/// approached by subspace iteration.
const EXACT_SIDE: usize = 384;
/// Rounds of it: the error falls with the ratio of neighbouring singular values to twice this power.
const ROUNDS: usize = 12;
/// Vectors beyond those that are wanted, which make it converge sooner.
const SPARE: usize = 16;

/// The largest singular values of a matrix, and their vectors.
pub(crate) struct Svd {
    /// `[rows, k]`, column by column.
    pub(crate) left: Vec<Vec<f64>>,
    /// Descending.
    pub(crate) values: Vec<f64>,
    /// `[k, columns]`.
    pub(crate) right: Vec<Vec<f64>>,
}

/// The `k` largest of a matrix `[rows, columns]`.
pub(crate) fn svd(matrix: &[f32], rows: usize, columns: usize, k: usize) -> Svd {
    let row = |i: usize| -> Vec<f64> { matrix[i * columns..][..columns].iter().map(|&x| f64::from(x)).collect() };
    let all: Vec<Vec<f64>> = (0..rows).map(row).collect();
    if rows.min(columns) <= EXACT_SIDE {
        // The vectors of the shorter side are rotated until they are orthogonal.
        return if columns <= rows {
            let (left, values, right) = jacobi(transposed(&all, columns), k);
            Svd { left, values, right }
        } else {
            let (right, values, left) = jacobi(all, k);
            Svd { left, values, right }
        };
    }
    let width = (k + SPARE).min(rows.min(columns));
    let rng = Rng::new(0, "subspace", 0);
    let mut basis: Vec<Vec<f64>> = (0..width)
        .map(|i| (0..columns).map(|j| f64::from(rng.normal_f32((i * columns + j) as u64))).collect())
        .collect();
    for _ in 0..ROUNDS {
        basis = orthonormal(basis.iter().map(|v| product(&all, v)).collect());
        basis = orthonormal(basis.iter().map(|v| product_transposed(&all, v, columns)).collect());
    }
    let (left, values, small) = jacobi(basis.iter().map(|v| product(&all, v)).collect(), k);
    let combine = |weights: &Vec<f64>| -> Vec<f64> {
        let mut sum = vec![0.0; columns];
        for (weight, vector) in weights.iter().zip(&basis) {
            sum.iter_mut().zip(vector).for_each(|(s, x)| *s += weight * x);
        }
        sum
    };
    Svd { left, values, right: small.iter().map(combine).collect() }
}

/// The first `k` columns of Q, and the first `k` rows of R, of a matrix `[rows, columns]` = Q R.
pub(crate) fn qr(matrix: &[f32], rows: usize, columns: usize, k: usize) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let column = |j: usize| -> Vec<f64> { (0..rows).map(|i| f64::from(matrix[i * columns + j])).collect() };
    let q = orthonormal((0..k).map(column).collect());
    let r = q
        .iter()
        .map(|v| {
            let mut sums = vec![0.0; columns];
            for (i, &x) in v.iter().enumerate() {
                sums.iter_mut().zip(&matrix[i * columns..][..columns]).for_each(|(s, &w)| *s += x * f64::from(w));
            }
            sums
        })
        .collect();
    (q, r)
}

fn transposed(rows: &[Vec<f64>], columns: usize) -> Vec<Vec<f64>> {
    (0..columns).map(|j| rows.iter().map(|row| row[j]).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn product(rows: &[Vec<f64>], v: &[f64]) -> Vec<f64> {
    rows.iter().map(|row| dot(row, v)).collect()
}

fn product_transposed(rows: &[Vec<f64>], v: &[f64], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    for (row, &weight) in rows.iter().zip(v) {
        sums.iter_mut().zip(row).for_each(|(s, x)| *s += weight * x);
    }
    sums
}

/// Gram-Schmidt, twice, so that what rounding leaves after the first pass is gone.
fn orthonormal(mut vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for i in 0..vectors.len() {
        let (before, after) = vectors.split_at_mut(i);
        let vector = &mut after[0];
        for other in before.iter().chain(before.iter()) {
            let along = dot(other, vector);
            vector.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        let norm = dot(vector, vector).sqrt();
        // A vector that the others span has no direction of its own.
        vector.iter_mut().for_each(|x| *x = if norm > 0.0 { *x / norm } else { 0.0 });
    }
    vectors
}

/// One-sided Jacobi rotations (Hestenes 1958) of `vectors` = the columns of a matrix: its left singular vectors, values, and
/// right singular vectors, the `k` largest.
fn jacobi(mut vectors: Vec<Vec<f64>>, k: usize) -> (Vec<Vec<f64>>, Vec<f64>, Vec<Vec<f64>>) {
    let n = vectors.len();
    let mut turned: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..40 {
        let mut largest = 0.0f64;
        for p in 0..n {
            for q in p + 1..n {
                let (a, b, c) =
                    (dot(&vectors[p], &vectors[p]), dot(&vectors[q], &vectors[q]), dot(&vectors[p], &vectors[q]));
                if c == 0.0 || c.abs() <= 1e-15 * (a * b).sqrt() {
                    continue;
                }
                largest = largest.max(c.abs() / (a * b).sqrt());
                let zeta = (b - a) / (2.0 * c);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cosine = 1.0 / (1.0 + t * t).sqrt();
                rotate(&mut vectors, p, q, cosine, cosine * t);
                rotate(&mut turned, p, q, cosine, cosine * t);
            }
        }
        if largest < 1e-14 {
            break;
        }
    }
    let norms: Vec<f64> = vectors.iter().map(|v| dot(v, v).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
    order.truncate(k);
    let unit = |&i: &usize| -> Vec<f64> {
        vectors[i].iter().map(|x| if norms[i] > 0.0 { x / norms[i] } else { 0.0 }).collect()
    };
    let left = order.iter().map(unit).collect();
    let right = order.iter().map(|&i| turned[i].clone()).collect();
    (left, order.iter().map(|&i| norms[i]).collect(), right)
}

fn rotate(vectors: &mut [Vec<f64>], p: usize, q: usize, cosine: f64, sine: f64) {
    let (low, high) = vectors.split_at_mut(q);
    for (x, y) in low[p].iter_mut().zip(&mut high[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Vec<f32> {
        let mut values = vec![0.0; rows * columns];
        Rng::new(3, "matrix", 0).fill_normal(&mut values, 0.0, 1.0);
        // Singular values that differ.
        values.iter_mut().enumerate().for_each(|(i, x)| *x *= 1.0 / (1.0 + (i % columns) as f32));
        values
    }

    fn rebuilt(svd: &Svd, rows: usize, columns: usize) -> Vec<f64> {
        let mut out = vec![0.0; rows * columns];
        for ((left, value), right) in svd.left.iter().zip(&svd.values).zip(&svd.right) {
            for i in 0..rows {
                for j in 0..columns {
                    out[i * columns + j] += left[i] * value * right[j];
                }
            }
        }
        out
    }

    #[test]
    fn all_singular_vectors_together_are_the_matrix() {
        for (rows, columns) in [(7, 5), (5, 7), (6, 6), (1, 4)] {
            let values = matrix(rows, columns);
            let all = svd(&values, rows, columns, rows.min(columns));
            assert!(all.values.windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", all.values);
            for (a, b) in rebuilt(&all, rows, columns).iter().zip(&values) {
                assert!((a - f64::from(*b)).abs() < 1e-6, "{rows} x {columns}: {a} {b}");
            }
        }
    }

    #[test]
    fn the_first_vectors_of_a_large_matrix_are_those_of_the_whole_decomposition() {
        let (rows, columns, k) = (400, 390, 3);
        let values = matrix(rows, columns);
        let some = svd(&values, rows, columns, k);
        let all: Vec<Vec<f64>> =
            values.chunks(columns).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
        for (i, value) in some.values.iter().enumerate() {
            // W v = s u, and u^T W = s v^T.
            let forward = product(&all, &some.right[i]);
            assert!(forward.iter().zip(&some.left[i]).all(|(a, u)| (a - value * u).abs() < 1e-6 * value));
            let back = product_transposed(&all, &some.left[i], columns);
            assert!(back.iter().zip(&some.right[i]).all(|(a, v)| (a - value * v).abs() < 1e-3 * value));
        }
    }

    #[test]
    fn columns_of_q_are_orthonormal_and_reproduce_the_first_columns() {
        let (rows, columns, k) = (6, 5, 3);
        let values = matrix(rows, columns);
        let (q, r) = qr(&values, rows, columns, k);
        for a in 0..k {
            for b in 0..k {
                assert!((dot(&q[a], &q[b]) - f64::from(u8::from(a == b))).abs() < 1e-12);
            }
        }
        for i in 0..rows {
            for j in 0..k {
                let x: f64 = (0..k).map(|a| q[a][i] * r[a][j]).sum();
                assert!((x - f64::from(values[i * columns + j])).abs() < 1e-6);
            }
        }
    }
}
