//! AdamW in a quarter of the memory.

use loam_kernels::optim::{BLOCK, Blockwise, adamw8bit_step};
use loam_tensor::{Dims, Raw};

use super::{AdamW, Rule, State, Step, foreign_state};

/// Fewer values keep their moments in f32: nothing is won there, and norms and biases are the most sensitive. The
/// border is that of bitsandbytes.
const FEWEST: usize = 4096;

/// Whether 8 bits save something worth saving.
pub(super) fn is_worth_it(shape: Dims) -> bool {
    shape.count() >= FEWEST
}

/// AdamW with moments of 8 bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"): each block of 256
/// values has a scale, its largest one, and each value the nearest code of dynamic tree quantization. A step decodes
/// the moments, does what [`AdamW`] does in f32, and encodes them again:
///
/// ```text
/// m ← β₁ D(m) + (1 - β₁) g       v ← β₂ D(v) + (1 - β₂) g²       θ ← as AdamW       store E(m), E(v)
/// ```
///
/// One difference to the paper: E never rounds a positive v to zero, since a parameter whose gradient vanishes beside
/// larger ones, such as the embedding of a rare token, would be divided by ε alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW8bit(
    /// The settings, which are those of [`AdamW`].
    pub AdamW,
);

impl Rule for AdamW8bit {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        let count = shape.count();
        let codes = || State::U8(vec![0; count]);
        let scales = || State::zeros([count.div_ceil(BLOCK)]);
        vec![("m", codes()), ("m_scale", scales()), ("v", codes()), ("v_scale", scales())]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::U8(m), State::F32(m_scale), State::U8(v), State::F32(v_scale)] = state else { foreign_state() };
        let m = Blockwise { codes: m, scales: m_scale.f32_mut() };
        let v = Blockwise { codes: v, scales: v_scale.f32_mut() };
        adamw8bit_step(value.f32_mut(), grad.f32(), m, v, &self.0.step(step));
    }
}
