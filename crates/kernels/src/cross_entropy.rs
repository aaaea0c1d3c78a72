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

/// What a row's loss has besides the negative log-likelihood of its target. All zero: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Share of the target's weight that is spread over all classes alike (Szegedy et al. 2016, section 7).
    pub label_smoothing: f32,
    /// Factor of (ln of the sum of e^logit)², which keeps logits from drifting (Chowdhery et al. 2022, section 5).
    pub z_loss: f32,
}

impl Terms {
    fn is_none(self) -> bool {
        self == Self::default()
    }

    /// A row's loss from distances: ln of the sum of `e^(x - max)`, those of the target and of the mean below `max`.
    #[inline(always)]
    fn loss(self, max: f32, log_sum: f32, target_below: f32, mean_below: f32) -> f32 {
        let below = target_below + self.label_smoothing * (mean_below - target_below);
        let lse = max + log_sum;
        log_sum + below + self.z_loss * lse * lse
    }
}

/// `losses[row] = -ln softmax(logits)[target]` and its [`Terms`], 0 for rows whose target is [`IGNORED`]:
/// with e = `label_smoothing`, `lse - (1 - e) logits[target] - e mean(logits) + z_loss lse²`.
///
/// Panics where another target is outside the vocabulary.
pub fn cross_entropy(losses: &mut [f32], logits: &[f32], targets: &[i32], vocab: usize, terms: Terms) {
    forward(isa(), losses, logits, targets, vocab, terms);
}

/// [`cross_entropy`] whose logits become their gradient, 0 for ignored rows: `(softmax - one_hot(target)) * scale`, or
/// with terms `(softmax (1 + 2 z_loss lse) - (1 - e) one_hot(target) - e / vocab) * scale`.
pub fn cross_entropy_backward_in_place(
    losses: &mut [f32],
    logits: &mut [f32],
    targets: &[i32],
    vocab: usize,
    scale: f32,
    terms: Terms,
) {
    backward(isa(), losses, logits, targets, vocab, scale, terms);
}

fn forward(isa: Isa, losses: &mut [f32], logits: &[f32], targets: &[i32], vocab: usize, terms: Terms) {
    check(losses.len(), logits.len(), targets, vocab);
    let rows = rows_per_piece(vocab);
    crate::parallel::for_chunks(losses, rows, |first, losses| {
        let logits = &logits[first * vocab..][..losses.len() * vocab];
        let targets = &targets[first..];
        if terms.is_none() {
            dispatch_on(isa, Forward::<true> { losses, logits, targets, vocab, terms });
        } else {
            dispatch_on(isa, Forward::<false> { losses, logits, targets, vocab, terms });
        }
    });
}

fn backward(isa: Isa, losses: &mut [f32], logits: &mut [f32], targets: &[i32], vocab: usize, scale: f32, terms: Terms) {
    check(losses.len(), logits.len(), targets, vocab);
    let rows = rows_per_piece(vocab);
    for_chunks2((losses, rows), (logits, rows * vocab), |i, losses, logits| {
        let targets = &targets[i * rows..];
        if terms.is_none() {
            dispatch_on(isa, Backward { losses, logits, targets, vocab, scale });
        } else {
            dispatch_on(isa, BackwardWithTerms { losses, logits, targets, vocab, scale, terms });
        }
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

/// The sum over a row of how far each element is below `max`.
#[inline(always)]
fn row_below<S: Simd>(s: S, row: &[f32], max: f32) -> f32 {
    let max = s.splat(max);
    let mut sum = [s.zero(); 4];
    let mut blocks = row.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, sum) in sum.iter_mut().enumerate() {
            *sum = s.add(*sum, s.sub(max, s.load(&block[i * S::LANES..])));
        }
    }
    for x in blocks.remainder().chunks(S::LANES) {
        let below = s.sub(max, s.load_partial(x));
        sum[0] = s.add(sum[0], s.select(s.first(x.len()), below, s.zero()));
    }
    s.reduce_sum(s.add(s.add(sum[0], sum[1]), s.add(sum[2], sum[3])))
}

/// The mean of [`row_below`], or `otherwise` without smoothing, where an infinitely small logit would make 0 times it NaN.
#[inline(always)]
fn mean_below<S: Simd>(s: S, row: &[f32], max: f32, terms: Terms, otherwise: f32) -> f32 {
    if terms.label_smoothing == 0.0 { otherwise } else { row_below(s, row, max) / row.len() as f32 }
}

struct Forward<'a, const PLAIN: bool> {
    losses: &'a mut [f32],
    logits: &'a [f32],
    targets: &'a [i32],
    vocab: usize,
    terms: Terms,
}
impl<const PLAIN: bool> Kernel for Forward<'_, PLAIN> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.losses.iter_mut().zip(self.logits.chunks_exact(self.vocab));
        for ((loss, row), &target) in rows.zip(self.targets) {
            *loss = 0.0;
            if target != IGNORED {
                let max = row_max(s, row);
                let (log_sum, below) = (row_exp_sum(s, row, max).ln(), max - row[target as usize]);
                *loss = if PLAIN {
                    log_sum + below
                } else {
                    self.terms.loss(max, log_sum, below, mean_below(s, row, max, self.terms, below))
                };
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

struct BackwardWithTerms<'a> {
    losses: &'a mut [f32],
    logits: &'a mut [f32],
    targets: &'a [i32],
    vocab: usize,
    scale: f32,
    terms: Terms,
}
impl Kernel for BackwardWithTerms<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Terms { label_smoothing, z_loss } = self.terms;
        let spread = label_smoothing / self.vocab as f32;
        let rows = self.losses.iter_mut().zip(self.logits.chunks_exact_mut(self.vocab));
        for ((loss, row), &target) in rows.zip(self.targets) {
            if target == IGNORED {
                *loss = 0.0;
                row.fill(0.0);
                continue;
            }
            let (max, target) = (row_max(s, row), target as usize);
            let below = max - row[target];
            let mean_below = mean_below(s, row, max, self.terms, below);
            let sum = row_exp_in_place(s, row, max);
            let log_sum = sum.ln();
            *loss = self.terms.loss(max, log_sum, below, mean_below);
            // Of the log-sum-exp.
            let slope = 1.0 + 2.0 * z_loss * (max + log_sum);
            let p = row[target] / sum;
            let (factor, shift) = (s.splat(self.scale * slope / sum), s.splat(-self.scale * spread));
            for x in row.chunks_mut(S::LANES) {
                let y = s.fma(s.load_partial(x), factor, shift);
                s.store_partial(x, y);
            }
            row[target] = (p * slope - (1.0 - label_smoothing) - spread) * self.scale;
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

    const TERMS: [Terms; 4] = [
        Terms { label_smoothing: 0.0, z_loss: 0.0 },
        Terms { label_smoothing: 0.1, z_loss: 0.0 },
        Terms { label_smoothing: 0.0, z_loss: 1e-2 },
        Terms { label_smoothing: 0.3, z_loss: 1e-3 },
    ];

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
                for terms in TERMS {
                    let (logits, targets) = case(rows, vocab);
                    let (mut losses, mut losses_again) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                    let mut grad = logits.clone();
                    forward(isa, &mut losses, &logits, &targets, vocab, terms);
                    backward(isa, &mut losses_again, &mut grad, &targets, vocab, 0.5, terms);
                    assert_eq!(losses, losses_again);
                    for r in 0..rows {
                        let row: Vec<f64> = logits[r * vocab..][..vocab].iter().map(|&x| f64::from(x)).collect();
                        let grad = &grad[r * vocab..][..vocab];
                        if targets[r] == IGNORED {
                            assert!(losses[r] == 0.0 && grad.iter().all(|&g| g == 0.0));
                            continue;
                        }
                        let target = targets[r] as usize;
                        let loss = |row: &[f64]| naive::cross_entropy(row, target, terms);
                        let exact = loss(&row);
                        assert!((f64::from(losses[r]) - exact).abs() <= 3e-6 * (1.0 + exact), "{isa:?} {rows}x{vocab}");
                        let slopes = naive::gradient(&row, |row| 0.5 * loss(row));
                        for (g, e) in grad.iter().zip(slopes) {
                            // Probabilities are within a few units of 2^-24 relative to 1.
                            assert!((f64::from(*g) - e).abs() <= 1e-6, "{isa:?} {rows}x{vocab}: {g} != {e}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let (mut losses, mut logits) = ([0.0; 2], [3e38, -3e38, 0.0, 1e4, 0.0, 0.0]);
        cross_entropy_backward_in_place(&mut losses, &mut logits, &[0, 1], 3, 1.0, Terms::default());
        assert_eq!(losses, [0.0, 1e4]);
        assert_eq!(logits, [0.0, 0.0, 0.0, 1.0, -1.0, 0.0]);
    }

    #[test]
    fn the_thread_count_changes_no_bit() {
        let (logits, targets) = case(900, 50);
        let run = |threads| {
            let (mut losses, mut logits) = (vec![0.0; 900], logits.clone());
            with_threads(threads, || {
                cross_entropy_backward_in_place(&mut losses, &mut logits, &targets, 50, 1.0, TERMS[3])
            });
            (losses, logits)
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    #[should_panic(expected = "target 3 of 3")]
    fn a_target_outside_the_vocabulary_panics() {
        cross_entropy(&mut [0.0], &[0.0; 3], &[3], 3, Terms::default());
    }
}
