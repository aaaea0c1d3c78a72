//! Where the value function of PPO starts.

use loam_data::preference::{AnswerBatch, Whole};
use loam_tensor::{no_grad, with_precision};

use super::Rollouts;
use super::phase::Item;
use crate::error::Result;
use crate::objective::{Pass, states};

/// Most positions that it is fitted to.
const POSITIONS: usize = 4096;
/// Steps of the solver: fewer than there are features keep out what the positions say too little about.
const STEPS: usize = 64;
/// Added to the squares' mean on the diagonal, as a share of it.
const RIDGE: f64 = 1e-2;

impl Rollouts<'_> {
    /// Sets the value head to the least squares fit of what the answers' tokens came to, on the hidden states before them
    /// (the linear baseline of Duan et al. 2016, section 4). Nothing is expected of a head of zeros, and gradients take
    /// hundreds of steps to teach it the mean alone; meanwhile every prompt's difficulty passes for an advantage, and the
    /// value loss bends the policy. Returns whether there is a head.
    pub(super) fn begin_values(&self, items: &[Item], rewards: &[f64]) -> Result<bool> {
        let Some(head) = &self.value_head else { return Ok(false) };
        let (settings, width) = (&self.settings, head.count());
        let all: usize = items.iter().map(|item| item.tokens.len()).sum();
        let every = all.div_ceil(POSITIONS).max(1);
        let (mut rows, mut targets, mut seen) = (Vec::new(), Vec::new(), 0_usize);
        let size = settings.micro_batch.max(1);
        for (items, rewards) in items.chunks(size).zip(rewards.chunks(size)) {
            let examples = self.examples(items, &self.prompts);
            let batch = AnswerBatch::pack(examples.iter(), Whole::default());
            let run = || no_grad(|| states(self.policy, &batch, &Pass::measuring()));
            let states = with_precision(settings.precision, run)?.to_vec();
            let mut states = states.chunks_exact(width);
            for (item, reward) in items.iter().zip(rewards) {
                for (left, state) in (0..item.tokens.len()).rev().zip(&mut states) {
                    if seen.is_multiple_of(every) {
                        rows.extend_from_slice(state);
                        targets.push(reward * settings.gamma.powi(left as i32));
                    }
                    seen += 1;
                }
            }
        }
        head.set(&least_squares(&rows, &targets, width));
        Ok(true)
    }
}

/// The weights that explain `targets` best as sums over the features of `rows`, by conjugate gradients on the normal
/// equations.
fn least_squares(rows: &[f32], targets: &[f64], width: usize) -> Vec<f32> {
    let transposed = |errors: &[f64]| {
        let mut sums = vec![0.0; width];
        for (row, error) in rows.chunks_exact(width).zip(errors) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += error * f64::from(x));
        }
        sums
    };
    let product = |weights: &[f64]| -> Vec<f64> {
        rows.chunks_exact(width).map(|row| row.iter().zip(weights).map(|(&x, w)| f64::from(x) * w).sum()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let ridge = RIDGE * rows.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width.max(1) as f64;
    let mut weights = vec![0.0; width];
    let mut residual = transposed(targets);
    let mut direction = residual.clone();
    let (mut size, first) = (dot(&residual, &residual), dot(&residual, &residual));
    for _ in 0..STEPS.min(width) {
        if size <= 1e-20 * first || size == 0.0 {
            break;
        }
        let mut image = transposed(&product(&direction));
        image.iter_mut().zip(&direction).for_each(|(image, d)| *image += ridge * d);
        let step = size / dot(&direction, &image);
        weights.iter_mut().zip(&direction).for_each(|(w, d)| *w += step * d);
        residual.iter_mut().zip(&image).for_each(|(r, image)| *r -= step * image);
        let next = dot(&residual, &residual);
        direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + next / size * *d);
        size = next;
    }
    weights.into_iter().map(|w| w as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_kernels::rng::Rng;

    #[test]
    fn least_squares_finds_the_weights_that_made_the_targets() {
        let (count, width) = (300, 12_usize);
        let rng = Rng::new(1, "least squares", 0);
        let rows: Vec<f32> = (0..count * width)
            .map(|i| rng.normal_f32(i as u64) + if i.is_multiple_of(width) { 2.0 } else { 0.0 })
            .collect();
        let made: Vec<f64> = (0..width).map(|i| i as f64 / 4.0 - 1.0).collect();
        let targets: Vec<f64> =
            rows.chunks_exact(width).map(|row| row.iter().zip(&made).map(|(&x, w)| f64::from(x) * w).sum()).collect();
        let found = least_squares(&rows, &targets, width);
        // The ridge pulls towards zero by about its share.
        for (found, made) in found.iter().zip(&made) {
            assert!((f64::from(*found) - made).abs() < 0.05, "{found} for {made}");
        }
        assert_eq!(least_squares(&[0.0; 24], &[1.0, 2.0], 12), [0.0; 12]);
        assert_eq!(least_squares(&[], &[], 3), [0.0; 3]);
    }
}
