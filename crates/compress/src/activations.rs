//! SmoothQuant, and activations rounded to eight bits, token by token.

use std::sync::Arc;

use loam_models::LanguageModel;
use loam_nn::{LayerContext, Linear, LinearHook};
use loam_tensor::{GgmlType, Parameter, Tensor};

use crate::Result;
use crate::calibration::Block;
use crate::fold::groups;

/// Largest integer of a rounded number.
const MOST: f32 = 127.0;

/// Rounds what a layer reads: each row to `round(127 x / max|x|)`.
struct Rounded;

impl LinearHook for Rounded {
    fn forward(&self, linear: &Linear, x: &Tensor, _: &LayerContext) -> Tensor {
        let mut values = x.to_vec();
        for row in values.chunks_exact_mut(x.shape().width()) {
            let most = row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            if most > 0.0 {
                row.iter_mut().for_each(|x| *x = (*x * (MOST / most)).round() * (most / MOST));
            }
        }
        linear.apply(&Tensor::from_slice(&values, x.shape()))
    }

    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }
}

/// From now on every linear layer in a block reads its inputs with eight bits per token, as an integer product would; or
/// no longer does.
pub fn round_activations(model: &LanguageModel, is_on: bool) {
    for (_, linear) in model.linears() {
        linear.hook.set(is_on.then(|| Arc::new(Rounded) as Arc<dyn LinearHook>));
    }
}

/// Moves the range of inputs into the weights: `s_j = max|x_j|^a / max|w_j|^(1 - a)` is divided out of the norm before
/// (Xiao et al. 2022, "SmoothQuant", equation 4). Groups behind norms, as there.
pub(crate) fn smooth_block(model: &LanguageModel, block: &Block, strength: f64) -> Result<()> {
    for group in groups(model, block, false) {
        let Some(inputs) = group.names.first().and_then(|name| block.inputs(name)) else { continue };
        let mut largest = vec![0.0_f32; inputs.width];
        for linear in &group.linears {
            for row in linear.weight.to_vec().chunks_exact(inputs.width) {
                largest.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
            }
        }
        let factor = |(x, w): (&f32, &f32)| {
            // What is always zero has no range to move.
            if *x <= 0.0 || *w <= 0.0 {
                return 1.0;
            }
            let s = f64::from(*x).powf(strength) / f64::from(w.max(1e-5)).powf(1.0 - strength);
            s.max(1e-5) as f32
        };
        // Multiplied into the weight, s makes up for what the norm loses.
        let factors: Vec<f32> = inputs.largest.iter().zip(&largest).map(factor).collect();
        group.apply(&factors);
    }
    Ok(())
}

/// A weight `[rows, width]` as Q8_0 blocks whose scale is that of the whole row: eight bits per output channel, in a type
/// that GGUF files have.
pub(crate) fn rows_of_int8(w: &[f32], width: usize) -> Vec<u8> {
    let (len, bytes) = (GgmlType::Q8_0.block_len(), GgmlType::Q8_0.block_bytes());
    let mut out = Vec::with_capacity(w.len() / len * bytes);
    for row in w.chunks_exact(width) {
        let most = row.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        // Rounded up, so that the largest number still fits.
        let mut scale = half::f16::from_f32(most / MOST);
        while scale.to_f32() * MOST < most {
            scale = half::f16::from_bits(scale.to_bits() + 1);
        }
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        for block in row.chunks_exact(len) {
            out.extend(scale.to_le_bytes());
            out.extend(block.iter().map(|w| (w * inverse).round().clamp(-MOST, MOST) as i8 as u8));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_kernels::quant::dequantise;

    #[test]
    fn a_row_has_one_scale_and_an_error_of_half_a_step_at_most() {
        let w: Vec<f32> = (0..128).map(|i| (i as f32 - 40.0) * if i < 64 { 0.01 } else { 1.0 }).collect();
        let bytes = rows_of_int8(&w, 64);
        let scales: Vec<&[u8]> = bytes.chunks_exact(34).map(|block| &block[..2]).collect();
        assert!(scales[0] == scales[1] && scales[2] == scales[3] && scales[0] != scales[2]);
        let mut read = vec![0.0; 128];
        dequantise(GgmlType::Q8_0, &bytes, &mut read);
        for (row, read) in w.chunks_exact(64).zip(read.chunks_exact(64)) {
            let most = row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            row.iter().zip(read).for_each(|(x, y)| assert!((x - y).abs() <= 0.51 * most / MOST, "{x} {y}"));
        }
    }
}
