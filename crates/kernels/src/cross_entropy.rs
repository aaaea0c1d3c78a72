//! Cross-entropy of rows of logits against one target class each.
//!
//! The caller hands in as many rows as it likes to have logits of at a time. The backward pass turns the logits into
//! their own gradient, so that a second buffer of that size never exists.

use crate::isa::{Isa, isa};
use crate::parallel::for_chunks2;
use crate::simd::{Kernel, Simd, dispatch_on};
use crate::softmax::{row_exp_in_place, row_exp_sum, row_max, scale_row};

/// The target of a row that does not count: its loss and its gradient are zero.
pub const IGNORED: i32 = -100;

/// `losses[row] = -ln softmax(logits)[target]`, 0 for rows whose target is [`IGNORED`].
///
/// Panics where another target is outside the vocabulary.
pub fn cross_entropy(losses: &mut [f32], logits: &[f32], targets: &[i32], vocab: usize) {
    forward(isa(), losses, logits, targets, vocab);
}

/// [`cross_entropy`] whose logits become their gradient: `(softmax - one_hot(target)) * scale`, 0 for ignored rows.
pub fn cross_entropy_backward_in_place(
    losses: &mut [f32],
    logits: &mut [f32],
    targets: &[i32],
    vocab: usize,
    scale: f32,
) {
    backward(isa(), losses, logits, targets, vocab, scale);
}

fn forward(isa: Isa, losses: &mut [f32], logits: &[f32], targets: &[i32], vocab: usize) {
    check(losses.len(), logits.len(), targets, vocab);
    let rows = rows_per_piece(vocab);
    crate::parallel::for_chunks(losses, rows, |first, losses| {
        let logits = &logits[first * vocab..][..losses.len() * vocab];
        dispatch_on(isa, Forward { losses, logits, targets: &targets[first..], vocab });
    });
}

fn backward(isa: Isa, losses: &mut [f32], logits: &mut [f32], targets: &[i32], vocab: usize, scale: f32) {
    check(losses.len(), logits.len(), targets, vocab);
    let rows = rows_per_piece(vocab);
    for_chunks2((losses, rows), (logits, rows * vocab), |i, losses, logits| {
        dispatch_on(isa, Backward { losses, logits, targets: &targets[i * rows..], vocab, scale });
    });
}

fn rows_per_piece(vocab: usize) -> usize {
    crate::softmax::rows_per_piece(vocab)
}

fn check(losses: usize, logits: usize, targets: &[i32], vocab: usize) {
    let rows = targets.len();
    assert!(losses == rows && vocab > 0 && logits == rows * vocab, "cross_entropy: {logits} logits, {rows} x {vocab}");
    for &t in targets {
        assert!(t == IGNORED || usize::try_from(t).is_ok_and(|t| t < vocab), "cross_entropy: target {t} of {vocab}");
    }
}

struct Forward<'a> {
    losses: &'a mut [f32],
    logits: &'a [f32],
    targets: &'a [i32],
    vocab: usize,
}
impl Kernel for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.losses.iter_mut().zip(self.logits.chunks_exact(self.vocab));
        for ((loss, row), &target) in rows.zip(self.targets) {
            *loss = 0.0;
            if target != IGNORED {
                let max = row_max(s, row);
                *loss = row_exp_sum(s, row, max).ln() + (max - row[target as usize]);
            }
        }
    }
}

struct Backward<'a> {
    losses: &'a mut [f32],
    logits: &'a mut [f32],
    targets: &'a [i32],
    vocab: usize,
    scale: f32,
}
impl Kernel for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.losses.iter_mut().zip(self.logits.chunks_exact_mut(self.vocab));
        for ((loss, row), &target) in rows.zip(self.targets) {
            if target == IGNORED {
                *loss = 0.0;
                row.fill(0.0);
                continue;
            }
            let (max, target) = (row_max(s, row), target as usize);
            let below = max - row[target];
            let sum = row_exp_in_place(s, row, max);
            *loss = sum.ln() + below;
            let p = row[target] / sum;
            scale_row(s, row, self.scale / sum);
            row[target] = (p - 1.0) * self.scale;
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

    fn case(rows: usize, vocab: usize) -> (Vec<f32>, Vec<i32>) {
        let mut logits = vec![0.0; rows * vocab];
        Rng::new(1, "logits", 0).fill_normal(&mut logits, 1.0, 3.0);
        let targets = Rng::new(1, "targets", 0);
        let pick = |i: u64| if i % 5 == 3 { IGNORED } else { targets.below(i, vocab as u64) as i32 };
        (logits, (0..rows as u64).map(pick).collect())
    }

    #[test]
    fn losses_and_gradients_equal_f64_on_odd_vocabularies() {
        for isa in testable() {
            for (rows, vocab) in
                [(0, 5), (1, 1), (4, 3), (5, 7), (9, 8), (6, 9), (5, 17), (7, 33), (3, 100), (1200, 31)]
            {
                let (logits, targets) = case(rows, vocab);
                let (mut losses, mut losses_again) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                let mut grad = logits.clone();
                forward(isa, &mut losses, &logits, &targets, vocab);
                backward(isa, &mut losses_again, &mut grad, &targets, vocab, 0.5);
                assert_eq!(losses, losses_again);
                for r in 0..rows {
                    let row: Vec<f64> = logits[r * vocab..][..vocab].iter().map(|&x| f64::from(x)).collect();
                    let grad = &grad[r * vocab..][..vocab];
                    if targets[r] == IGNORED {
                        assert!(losses[r] == 0.0 && grad.iter().all(|&g| g == 0.0));
                        continue;
                    }
                    let target = targets[r] as usize;
                    let exact = naive::log_sum_exp(&row) - row[target];
                    assert!((f64::from(losses[r]) - exact).abs() <= 3e-6 * (1.0 + exact), "{isa:?} {rows}x{vocab}");
                    let slopes = naive::gradient(&row, |row| 0.5 * (naive::log_sum_exp(row) - row[target]));
                    for (g, e) in grad.iter().zip(slopes) {
                        // Probabilities are within a few units of 2^-24 relative to 1.
                        assert!((f64::from(*g) - e).abs() <= 1e-6, "{isa:?} {rows}x{vocab}: {g} != {e}");
                    }
                }
            }
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let (mut losses, mut logits) = ([0.0; 2], [3e38, -3e38, 0.0, 1e4, 0.0, 0.0]);
        cross_entropy_backward_in_place(&mut losses, &mut logits, &[0, 1], 3, 1.0);
        assert_eq!(losses, [0.0, 1e4]);
        assert_eq!(logits, [0.0, 0.0, 0.0, 1.0, -1.0, 0.0]);
    }

    #[test]
    fn the_thread_count_changes_no_bit() {
        let (logits, targets) = case(900, 50);
        let run = |threads| {
            let (mut losses, mut logits) = (vec![0.0; 900], logits.clone());
            with_threads(threads, || cross_entropy_backward_in_place(&mut losses, &mut logits, &targets, 50, 1.0));
            (losses, logits)
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    #[should_panic(expected = "target 3 of 3")]
    fn a_target_outside_the_vocabulary_panics() {
        cross_entropy(&mut [0.0], &[0.0; 3], &[3], 3);
    }
}
