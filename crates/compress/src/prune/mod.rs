//! Pruning: weights become zeros, where the outputs miss them least.

pub(crate) mod structure;

use loam_kernels::gemm::{Mat, MatMut, Start, gemm_f32};
use loam_models::LanguageModel;
use rayon::prelude::*;

use crate::calibration::{Block, Calibration};
use crate::linalg::{damped, upper_of_inverse};
use crate::quantise::to_f32;
use crate::statistics::Statistics;
use crate::{Error, Result, Watch};

/// What decides which weights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pruning {
    /// Their size, across a whole matrix.
    Magnitude,
    /// Their size times the root mean square of their input, across each output's row.
    Wanda,
    /// The error that the best change of all later weights leaves, which these get.
    SparseGpt,
}

/// How many weights go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparsity {
    /// This share, anywhere.
    Share(f64),
    /// `zeros` of every `of` neighbours in a row.
    Pattern {
        /// Weights that go.
        zeros: usize,
        /// Neighbours.
        of: usize,
    },
}

impl std::str::FromStr for Sparsity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::setting(
                format!("`{text}` is no sparsity"),
                "give a share such as 0.5, or a pattern such as 2:4: two of every four neighbours become zeros",
            )
        };
        if let Some((zeros, of)) = text.split_once(':') {
            let (zeros, of): (usize, usize) = (zeros.parse().map_err(|_| bad())?, of.parse().map_err(|_| bad())?);
            let is_pattern = zeros > 0 && zeros < of && of <= 64;
            return is_pattern.then_some(Self::Pattern { zeros, of }).ok_or_else(bad);
        }
        let share: f64 = text.parse().map_err(|_| bad())?;
        (share > 0.0 && share < 1.0).then_some(Self::Share(share)).ok_or_else(bad)
    }
}

impl std::fmt::Display for Sparsity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{share}"),
            Self::Pattern { zeros, of } => write!(f, "{zeros}:{of}"),
        }
    }
}

/// Makes weights of the blocks' linear layers zero; tables and head stay. Magnitude needs no calibration.
pub fn prune(
    model: &LanguageModel,
    method: Pruning,
    sparsity: Sparsity,
    calibration: Option<&Calibration>,
    watch: Watch<'_>,
) -> Result<()> {
    to_f32(model);
    if method == Pruning::Magnitude {
        for (name, linear) in model.linears() {
            if is_router(&name) {
                continue;
            }
            let mut w = linear.weight.to_vec();
            forget(&mut w, &magnitude_mask(&linear.weight.to_vec(), linear.weight.shape()[1], sparsity)?);
            linear.weight.set(&w);
        }
        return Ok(());
    }
    let calibration = calibration.ok_or_else(|| {
        Error::setting("this method looks at the inputs of every layer", "give a text with --calibrate FILE")
    })?;
    calibration
        .through_blocks(model, method == Pruning::SparseGpt, watch, |block| one_block(block, method, sparsity))?;
    Ok(())
}

/// Routers decide which expert computes: they are small, and stay.
fn is_router(name: &str) -> bool {
    name.ends_with("feed_forward.gate")
}

fn one_block(block: &Block, method: Pruning, sparsity: Sparsity) -> Result<()> {
    for (name, linear) in block.linears.iter().filter(|(name, _)| !is_router(name)) {
        let mut w = linear.weight.to_vec();
        let width = linear.weight.shape()[1];
        match (block.inputs(name), method) {
            (Some(inputs), Pruning::SparseGpt) => {
                if !sparsegpt(&mut w, inputs, sparsity, 0.01)? {
                    let mask = wanda_mask(&w, &inputs.importance(), sparsity)?;
                    forget(&mut w, &mask);
                }
            }
            (Some(inputs), _) => {
                let mask = wanda_mask(&w, &inputs.importance(), sparsity)?;
                forget(&mut w, &mask);
            }
            // No text reached it.
            (None, _) => {
                let mask = magnitude_mask(&w, width, sparsity)?;
                forget(&mut w, &mask);
            }
        }
        linear.weight.set(&w);
    }
    Ok(())
}

fn forget(w: &mut [f32], mask: &[bool]) {
    w.iter_mut().zip(mask).filter(|(_, gone)| **gone).for_each(|(w, _)| *w = 0.0);
}

/// Share of zeros in the weights of the blocks' linear layers.
pub fn sparsity_of(model: &LanguageModel) -> f64 {
    let (mut zeros, mut all) = (0, 0);
    for (_, linear) in model.linears() {
        let w = linear.weight.to_vec();
        zeros += w.iter().filter(|&&x| x == 0.0).count();
        all += w.len();
    }
    zeros as f64 / all.max(1) as f64
}

/// Marks the `count` smallest scores; of equal ones the first.
fn smallest(scores: &[f32], count: usize) -> Vec<bool> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    let mut mask = vec![false; scores.len()];
    if count == 0 {
        return mask;
    }
    let by_score = |a: &u32, b: &u32| scores[*a as usize].total_cmp(&scores[*b as usize]).then(a.cmp(b));
    order.select_nth_unstable_by(count - 1, by_score);
    order[..count].iter().for_each(|&i| mask[i as usize] = true);
    mask
}

fn check_pattern(width: usize, of: usize) -> Result<()> {
    if width.is_multiple_of(of) {
        return Ok(());
    }
    Err(Error::setting(format!("rows of {width} weights are no whole groups of {of}"), "give a share such as 0.5"))
}

/// Marks the smallest of every group of `of` neighbours.
fn pattern_mask(scores: &[f32], zeros: usize, of: usize) -> Vec<bool> {
    scores.par_chunks(of).flat_map_iter(|group| smallest(group, zeros)).collect()
}

/// Which weights of a matrix go by their size alone: `true` is gone. A share is taken of the whole matrix.
pub fn magnitude_mask(w: &[f32], width: usize, sparsity: Sparsity) -> Result<Vec<bool>> {
    let sizes: Vec<f32> = w.iter().map(|x| x.abs()).collect();
    match sparsity {
        Sparsity::Share(share) => Ok(smallest(&sizes, (sizes.len() as f64 * share) as usize)),
        Sparsity::Pattern { zeros, of } => {
            check_pattern(width, of)?;
            Ok(pattern_mask(&sizes, zeros, of))
        }
    }
}

/// Which weights of a matrix `[rows, width]` go by `|w_ij| * ||x_j||` (Sun et al. 2023, "A simple and effective pruning
/// approach", equation 1), compared within a row. `importance` is the mean square of every input.
pub fn wanda_mask(w: &[f32], importance: &[f32], sparsity: Sparsity) -> Result<Vec<bool>> {
    let width = importance.len();
    let roots: Vec<f32> = importance.iter().map(|x| x.sqrt()).collect();
    let scores: Vec<f32> =
        w.chunks_exact(width).flat_map(|row| row.iter().zip(&roots).map(|(w, x)| w.abs() * x)).collect();
    match sparsity {
        Sparsity::Share(share) => {
            let count = (width as f64 * share) as usize;
            Ok(scores.par_chunks(width).flat_map_iter(|row| smallest(row, count)).collect())
        }
        Sparsity::Pattern { zeros, of } => {
            check_pattern(width, of)?;
            Ok(pattern_mask(&scores, zeros, of))
        }
    }
}

/// Columns whose zeros are chosen together.
const TOGETHER: usize = 128;

/// Prunes a matrix `[rows, width]` in place and lets the weights that stay make up for those that go. `false`, and nothing
/// is changed, where the Hessian is singular in spite of its damping.
///
/// Frantar and Alistarh 2023, "SparseGPT", algorithm 1: with `u` the upper Cholesky factor of the inverse Hessian, in each
/// block of 128 columns those with the smallest `w^2 / u_ii^2` go, and what they were is carried over to later columns.
pub fn sparsegpt(w: &mut [f32], inputs: &Statistics, sparsity: Sparsity, damping: f64) -> Result<bool> {
    let width = inputs.width;
    if let Sparsity::Pattern { of, .. } = sparsity {
        check_pattern(width, of)?;
    }
    let Some(u) = upper_of_inverse(&damped(&inputs.gram, width, damping), width) else { return Ok(false) };
    let u: Vec<f32> = u.iter().map(|&x| x as f32).collect();
    let rows = w.len() / width;
    let step = match sparsity {
        Sparsity::Share(_) => TOGETHER,
        Sparsity::Pattern { of, .. } => TOGETHER.next_multiple_of(of),
    };
    for (j, _) in inputs.squares.iter().enumerate().filter(|(_, square)| **square == 0.0) {
        w.iter_mut().skip(j).step_by(width).for_each(|x| *x = 0.0);
    }
    let mut errors = vec![0.0_f32; rows * step];
    for start in (0..width).step_by(step) {
        let end = (start + step).min(width);
        let part = end - start;
        let chosen = match sparsity {
            Sparsity::Share(share) => {
                let score = |at: usize| {
                    let i = start + at % part;
                    (w[at / part * width + i] / u[i * width + i]).powi(2)
                };
                let scores: Vec<f32> = (0..rows * part).into_par_iter().map(score).collect();
                Some(smallest(&scores, (scores.len() as f64 * share) as usize))
            }
            Sparsity::Pattern { .. } => None,
        };
        let rows_of = w.par_chunks_exact_mut(width).zip(errors.par_chunks_exact_mut(step)).enumerate();
        rows_of.for_each(|(row, (w, errors))| {
            let mut group: Vec<bool> = Vec::new();
            for i in start..end {
                let gone = match (&chosen, sparsity) {
                    (Some(mask), _) => mask[row * part + i - start],
                    (None, Sparsity::Pattern { zeros, of }) => {
                        if i % of == 0 {
                            let scores: Vec<f32> = (i..i + of).map(|j| (w[j] / u[j * width + j]).powi(2)).collect();
                            group = smallest(&scores, zeros);
                        }
                        group[i % of]
                    }
                    (None, Sparsity::Share(_)) => false,
                };
                let error = if gone { w[i] / u[i * width + i] } else { 0.0 };
                errors[i - start] = -error;
                if gone {
                    w[i] = 0.0;
                    let later = w[i + 1..end].iter_mut().zip(&u[i * width + i + 1..i * width + end]);
                    later.for_each(|(w, u)| *w -= error * u);
                }
            }
        });
        if end < width {
            let own = Mat::strided(&errors, rows, part, step, 1);
            let later = Mat::strided(&u[start * width + end..], part, width - end, width, 1);
            gemm_f32(MatMut::strided(&mut w[end..], rows, width - end, width, 1), own, later, Start::Sum);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsities_are_shares_or_patterns() {
        assert_eq!("0.5".parse::<Sparsity>().ok(), Some(Sparsity::Share(0.5)));
        assert_eq!("2:4".parse::<Sparsity>().ok(), Some(Sparsity::Pattern { zeros: 2, of: 4 }));
        for wrong in ["", "1", "0", "-0.5", "nan", "4:4", "0:4", "2:", "a:b", "2:400"] {
            assert!(wrong.parse::<Sparsity>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_smallest_go_and_of_equal_ones_the_first() {
        assert_eq!(smallest(&[3.0, 1.0, 2.0, 1.0], 1), [false, true, false, false]);
        assert_eq!(smallest(&[3.0, 1.0, 2.0, 1.0], 3), [false, true, true, true]);
        let w = [1.0, -4.0, 3.0, 2.0, 0.5, 0.1, -0.2, 0.3];
        let mask = magnitude_mask(&w, 4, Sparsity::Pattern { zeros: 2, of: 4 }).expect("whole groups");
        assert_eq!(mask, [true, false, false, true, false, true, true, false]);
        let whole = magnitude_mask(&w, 4, Sparsity::Share(0.5)).expect("a share");
        assert_eq!(whole, [false, false, false, false, true, true, true, true]);
        assert!(magnitude_mask(&w, 4, Sparsity::Pattern { zeros: 1, of: 3 }).is_err());
    }
}
