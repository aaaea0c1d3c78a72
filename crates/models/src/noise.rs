//! Noise on the vectors of the tokens, for fine-tuning (NEFTune).

use loam_kernels::rng::Rng;
use loam_tensor::Tensor;

use crate::stack::Input;

/// Uniform noise on the token vectors of a training pass (Jain et al. 2023, "NEFTune: noisy embeddings improve instruction
/// finetuning", algorithm 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingNoise {
    /// α: a text of L tokens of width d gets noise in ±α / sqrt(L d).
    pub alpha: f32,
    /// Run seed.
    pub seed: u64,
    /// Optimizer step and micro-batch, as one number.
    pub step: u64,
}

impl EmbeddingNoise {
    /// The noise of an input's vectors of `width`: `[batch, time, width]`. L is the length of each text, also where several
    /// texts share a row.
    pub fn of(&self, input: &Input<'_>, width: usize) -> Tensor {
        let mut noise = vec![0.0f32; input.batch * input.time * width];
        Rng::new(self.seed, "neftune", self.step).fill_uniform(&mut noise, -1.0, 1.0);
        for (row, values) in noise.chunks_exact_mut(input.time * width).enumerate() {
            let lengths = text_lengths(input, row);
            for (token, length) in values.chunks_exact_mut(width).zip(lengths) {
                let size = self.alpha / (length as f32 * width as f32).sqrt();
                token.iter_mut().for_each(|x| *x *= size);
            }
        }
        Tensor::from_slice(&noise, [input.batch, input.time, width])
    }
}

/// For every position of a row the length of the text that it belongs to.
fn text_lengths(input: &Input<'_>, row: usize) -> Vec<usize> {
    let Some(segments) = &input.segments else { return vec![input.time; input.time] };
    let segments = &segments[row * input.time..(row + 1) * input.time];
    segments.chunk_by(|a, b| a == b).flat_map(|text| vec![text.len(); text.len()]).collect()
}
