//! AWQ: columns whose inputs are large are made larger before rounding, so that rounding them costs less.

use loam_kernels::gemm::{Mat, MatMut, Start, gemm_f32};
use loam_kernels::quant::{dequantise_rows, quantise_rows};
use loam_models::LanguageModel;
use loam_tensor::GgmlType;

use crate::Result;
use crate::calibration::Block;
use crate::fold::{groups, scaled_columns};
use crate::statistics::Statistics;

/// Powers of the inputs' mean sizes that are tried: 0, 1/20, .., 19/20.
const POWERS: usize = 20;

/// Rounds `w * factors` to `ty` and divides by the factors again: what the layer then computes with. `importance` is that
/// of the inputs without factors.
fn rounded(w: &[f32], factors: &[f32], ty: GgmlType, importance: &[f32]) -> Vec<f32> {
    let width = factors.len();
    let mut values = scaled_columns(w, factors);
    let mut bytes = vec![0; ty.bytes(values.len()).unwrap_or(0)];
    let importance = scaled_importance(importance, factors);
    quantise_rows(ty, &values, width, Some(&importance), &mut bytes);
    dequantise_rows(ty, &bytes, &mut values);
    for row in values.chunks_exact_mut(width) {
        row.iter_mut().zip(factors).for_each(|(x, s)| *x /= s);
    }
    values
}

/// The mean squares of inputs that were divided by factors.
pub(crate) fn scaled_importance(importance: &[f32], factors: &[f32]) -> Vec<f32> {
    importance.iter().zip(factors).map(|(x, s)| x / (s * s)).collect()
}

/// `sum over rows of d H d^T` with `H = X^T X`: the square of what an error `d` `[rows, width]` of the weight changes.
pub(crate) fn output_error(d: &[f32], gram: &[f32], width: usize) -> f64 {
    let rows = d.len() / width;
    let mut product = vec![0.0; d.len()];
    gemm_f32(
        MatMut::rows(&mut product, rows, width),
        Mat::rows(d, rows, width),
        Mat::rows(gram, width, width),
        Start::Zero,
    );
    d.iter().zip(&product).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Inputs' mean sizes to a power, so that the largest and the smallest are as far from one.
fn factors_of(sizes: &[f64], power: f64) -> Vec<f32> {
    let raw: Vec<f64> = sizes.iter().map(|size| size.powf(power).max(1e-4)).collect();
    let (low, high) = raw.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), &x| (low.min(x), high.max(x)));
    let root = (low * high).sqrt();
    raw.iter().map(|x| (x / root) as f32).collect()
}

/// Searches the factors of every group of a block and applies them; returns each changed layer's factors by its name.
///
/// Lin et al. 2023, "AWQ", section 3.2: `s = mean|x|^a`, with the `a` of a grid for which `Q(W diag(s)) diag(s)^-1 X` is
/// nearest to `W X`. Here nearness is measured at the layers' own outputs.
pub(crate) fn scale_block(
    model: &LanguageModel,
    block: &Block,
    type_of: impl Fn(&str) -> Option<GgmlType>,
) -> Result<Vec<(String, Vec<f32>)>> {
    let mut applied = Vec::new();
    for group in groups(model, block, true) {
        let Some(inputs) = group.names.first().and_then(|name| block.inputs(name)) else { continue };
        let importance = inputs.importance();
        let gram: Vec<f32> = inputs.gram.iter().map(|&x| (x / inputs.rows as f64) as f32).collect();
        let layers: Vec<(Vec<f32>, GgmlType)> = group
            .names
            .iter()
            .zip(&group.linears)
            .filter_map(|(name, linear)| Some((linear.weight.to_vec(), type_of(name)?)))
            .collect();
        let cost = |factors: &[f32]| -> f64 {
            let one = |(w, ty): &(Vec<f32>, GgmlType)| {
                let mut d = rounded(w, factors, *ty, &importance);
                d.iter_mut().zip(w).for_each(|(d, w)| *d -= w);
                output_error(&d, &gram, inputs.width)
            };
            layers.iter().map(one).sum()
        };
        let best = best_factors(inputs, cost);
        group.apply(&best);
        applied.extend(group.names.iter().map(|name| (name.clone(), best.clone())));
    }
    Ok(applied)
}

fn best_factors(inputs: &Statistics, cost: impl Fn(&[f32]) -> f64) -> Vec<f32> {
    let sizes = inputs.mean_sizes();
    let mut best = (f64::INFINITY, vec![1.0; inputs.width]);
    for step in 0..POWERS {
        let factors = factors_of(&sizes, step as f64 / POWERS as f64);
        let cost = cost(&factors);
        if cost < best.0 {
            best = (cost, factors);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_powers_of_sizes_around_one() {
        assert_eq!(factors_of(&[4.0, 1.0, 0.25], 0.5), [2.0, 1.0, 0.5]);
        assert_eq!(factors_of(&[4.0, 1.0], 0.0), [1.0, 1.0]);
    }

    #[test]
    fn an_error_counts_as_the_outputs_that_it_changes() {
        // Inputs (1, 2) and (0, 1): an error (1, -1) changes the outputs by -1 and -1.
        let gram = [1.0, 2.0, 2.0, 5.0];
        assert_eq!(output_error(&[1.0, -1.0], &gram, 2), 2.0);
    }
}
