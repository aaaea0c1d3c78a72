//! Adafactor (Shazeer and Stern 2018) with PyTorch's conventions: one row and one column of second moments per matrix.

use crate::parallel::{CHUNK, for_chunks, reduce};

/// Exponent of the second moment's decay: `beta2 = 1 - step^DECAY` (section 7.2 of the paper).
const DECAY: f64 = -0.8;
/// ε₁: nothing below it is divided by.
const EPS1: f64 = f32::EPSILON as f64;
/// ε₂: the smallest scale of a parameter.
const EPS2: f64 = 1e-3;
/// d: updates with a larger root mean square are scaled down to it.
const CLIP: f64 = 1.0;
/// Columns whose sums one piece of work keeps.
const COLUMNS: usize = 64;

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Highest relative step: the step is `min(lr, 1/√step)` times the parameter's root mean square.
    pub lr: f64,
    /// Share of the parameter taken away per step, times `lr`.
    pub weight_decay: f64,
    /// Multiplies the gradient first: clipping, accumulation.
    pub grad_scale: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

/// The second moment.
pub enum Variance<'a> {
    /// Of every element.
    Full(&'a mut [f32]),
    /// Of the rows and of the columns of matrices `[.., rows, cols]`: `[.., rows]` and `[.., cols]`.
    Factored {
        /// Means of the rows.
        row: &'a mut [f32],
        /// Means of the columns.
        col: &'a mut [f32],
        /// Rows of a matrix.
        rows: usize,
        /// Columns of a matrix.
        cols: usize,
    },
}

/// Updates `param` and its second moment.
pub fn adafactor_step(param: &mut [f32], grad: &[f32], variance: Variance<'_>, settings: &Adafactor) {
    assert_eq!(param.len(), grad.len(), "adafactor_step: lengths differ");
    if param.is_empty() {
        return;
    }
    let fresh = (settings.step as f64).powf(DECAY);
    let relative = settings.lr.min(1.0 / (settings.step as f64).sqrt());
    let alpha = root_mean_square(param.len(), |i| f64::from(param[i])).max(EPS2) * relative;
    // For an element in row i and column j of its matrix the second moment is row[i] * col[j].
    let scales;
    let (row, col, rows) = match variance {
        Variance::Full(v) => {
            let square = (settings.grad_scale * settings.grad_scale) as f32;
            for_chunks(v, CHUNK, |start, v| {
                let lerp = |(v, &g): (&mut f32, &f32)| *v += fresh as f32 * (g * g * square - *v);
                v.iter_mut().zip(&grad[start..]).for_each(lerp);
            });
            (&[1.0_f32][..], &*v, 1)
        }
        Variance::Factored { row, col, rows, cols } => {
            row_means(row, grad, cols, fresh, settings.grad_scale);
            column_means(col, grad, (rows, cols), fresh, settings.grad_scale);
            scales = divided_by_mean(row, rows);
            (&scales[..], &*col, rows)
        }
    };
    let cols = param.len() / row.len();
    let update = |i: usize, j: usize| {
        let variance = f64::from(row[i]) * f64::from(col[i / rows * cols + j]);
        f64::from(grad[i * cols + j]) * settings.grad_scale / variance.max(EPS1 * EPS1).sqrt()
    };
    let size = root_mean_square(param.len(), |k| update(k / cols, k % cols));
    let (step, keep) = (alpha / (size / CLIP).max(1.0), 1.0 - settings.lr * settings.weight_decay);
    for_chunks(param, CHUNK, |start, piece| {
        for (k, param) in (start..).zip(piece) {
            *param = (f64::from(*param) * keep - step * update(k / cols, k % cols)) as f32;
        }
    });
}

fn root_mean_square(len: usize, value: impl Fn(usize) -> f64 + Sync) -> f64 {
    let sum = reduce(len, CHUNK, |range| range.map(|i| value(i) * value(i)).sum(), |a, b| a + b);
    (sum.unwrap_or(0.0) / len as f64).sqrt()
}

/// Moves each row's running mean towards the mean of its squared gradients.
fn row_means(row: &mut [f32], grad: &[f32], cols: usize, fresh: f64, grad_scale: f64) {
    for_chunks(row, (CHUNK / cols).max(1), |start, row| {
        for (mean, grad) in row.iter_mut().zip(grad[start * cols..].chunks_exact(cols)) {
            let squares: f64 = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            lerp(mean, squares / cols as f64, fresh, grad_scale);
        }
    });
}

/// The same for columns; a piece of work reads its columns row by row.
fn column_means(col: &mut [f32], grad: &[f32], (rows, cols): (usize, usize), fresh: f64, grad_scale: f64) {
    for (col, grad) in col.chunks_exact_mut(cols).zip(grad.chunks_exact(rows * cols)) {
        for_chunks(col, COLUMNS, |start, col| {
            let mut squares = [0.0_f64; COLUMNS];
            for grad in grad.chunks_exact(cols) {
                squares
                    .iter_mut()
                    .zip(&grad[start..][..col.len()])
                    .for_each(|(s, &g)| *s += f64::from(g) * f64::from(g));
            }
            col.iter_mut().zip(squares).for_each(|(mean, sum)| lerp(mean, sum / rows as f64, fresh, grad_scale));
        });
    }
}

fn lerp(mean: &mut f32, square: f64, fresh: f64, grad_scale: f64) {
    *mean = (f64::from(*mean) + fresh * (square * grad_scale * grad_scale - f64::from(*mean))) as f32;
}

/// The rows' means, each divided by the mean of its matrix.
fn divided_by_mean(row: &[f32], rows: usize) -> Vec<f32> {
    let divided = |row: &[f32]| {
        let mean = row.iter().map(|&r| f64::from(r)).sum::<f64>() / rows as f64;
        row.iter().map(move |&r| (f64::from(r) / mean.max(EPS1)) as f32).collect::<Vec<_>>()
    };
    row.chunks_exact(rows).flat_map(divided).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    fn normal(n: usize, purpose: &str, step: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, step).fill_normal(&mut x, 0.0, 1.0);
        x
    }

    fn settings(step: u64) -> Adafactor {
        Adafactor { lr: 0.01, weight_decay: 0.1, grad_scale: 0.5, step }
    }

    /// The published algorithm on one matrix, in f64 and without any cleverness. A vector is not factored.
    struct Exact {
        shape: (usize, usize),
        param: Vec<f64>,
        row: Vec<f64>,
        col: Vec<f64>,
        full: Vec<f64>,
    }

    impl Exact {
        fn step(&mut self, grad: &[f32], t: f64) {
            let (rows, cols) = self.shape;
            let g: Vec<f64> = grad.iter().map(|&g| 0.5 * f64::from(g)).collect();
            let n = g.len() as f64;
            let fresh = t.powf(-0.8);
            let alpha =
                (self.param.iter().map(|p| p * p).sum::<f64>() / n).sqrt().max(1e-3) * (0.01_f64).min(1.0 / t.sqrt());
            let square = |i: usize, j: usize| g[i * cols + j].powi(2);
            for i in 0..rows {
                let mean = (0..cols).map(|j| square(i, j)).sum::<f64>() / cols as f64;
                self.row[i] += fresh * (mean - self.row[i]);
            }
            for j in 0..cols {
                let mean = (0..rows).map(|i| square(i, j)).sum::<f64>() / rows as f64;
                self.col[j] += fresh * (mean - self.col[j]);
            }
            self.full.iter_mut().zip(&g).for_each(|(v, g)| *v += fresh * (g * g - *v));
            let mean = self.row.iter().sum::<f64>() / rows as f64;
            let variance =
                |k: usize| if rows == 1 { self.full[k] } else { self.row[k / cols] * self.col[k % cols] / mean };
            let update: Vec<f64> = (0..g.len()).map(|k| g[k] / variance(k).sqrt()).collect();
            let size = (update.iter().map(|u| u * u).sum::<f64>() / n).sqrt().max(1.0);
            self.param.iter_mut().zip(update).for_each(|(p, u)| *p = *p * 0.999 - alpha * u / size);
        }
    }

    #[test]
    fn twenty_steps_follow_the_published_algorithm_on_matrices_and_vectors() {
        for (rows, cols) in [(6, 5), (130, 70), (1, 33)] {
            let n = rows * cols;
            let mut param = normal(n, "param", 0);
            let mut exact = Exact {
                shape: (rows, cols),
                param: param.iter().map(|&p| f64::from(p)).collect(),
                row: vec![0.0; rows],
                col: vec![0.0; cols],
                full: vec![0.0; n],
            };
            let (mut row, mut col, mut full) = (vec![0.0; rows], vec![0.0; cols], vec![0.0; n]);
            for step in 1..=20 {
                let grad = normal(n, "grad", step);
                let variance = match rows {
                    1 => Variance::Full(&mut full),
                    _ => Variance::Factored { row: &mut row, col: &mut col, rows, cols },
                };
                adafactor_step(&mut param, &grad, variance, &settings(step));
                exact.step(&grad, step as f64);
            }
            for (&found, expected) in param.iter().zip(&exact.param) {
                assert!((f64::from(found) - expected).abs() < 3e-6, "{rows}x{cols}: {found}, exactly {expected}");
            }
        }
    }

    #[test]
    fn every_matrix_of_a_stack_has_its_own_factors() {
        let (rows, cols) = (4, 3);
        let (mut stack, grad) = (normal(24, "param", 0), normal(24, "grad", 1));
        let (mut row, mut col) = (vec![0.0; 8], vec![0.0; 6]);
        let variance = Variance::Factored { row: &mut row, col: &mut col, rows, cols };
        adafactor_step(&mut stack, &grad, variance, &settings(1));
        let (mut row2, mut col2, mut second) = (vec![0.0; 4], vec![0.0; 3], normal(24, "param", 0)[12..].to_vec());
        let variance = Variance::Factored { row: &mut row2, col: &mut col2, rows, cols };
        adafactor_step(&mut second, &grad[12..], variance, &settings(1));
        assert_eq!((&row[4..], &col[3..]), (&row2[..], &col2[..]));
    }

    #[test]
    fn the_thread_count_changes_no_bit() {
        let (rows, cols) = (300, 200);
        let run = |threads| {
            let (mut param, grad) = (normal(rows * cols, "param", 0), normal(rows * cols, "grad", 1));
            let (mut row, mut col) = (vec![0.0; rows], vec![0.0; cols]);
            let variance = Variance::Factored { row: &mut row, col: &mut col, rows, cols };
            with_threads(threads, || adafactor_step(&mut param, &grad, variance, &settings(1)));
            (param, row, col)
        };
        assert!(run(1) == run(2));
    }
}
