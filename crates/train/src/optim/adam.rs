//! Adam.

use loam_kernels::optim::adam_step;
use loam_tensor::{Dims, Raw};

use super::{AdamW, Rule, State, Step, foreign_state};

/// Adam (Kingma and Ba 2015, algorithm 1): the gradient's running mean over the root of its square's. As in
/// `torch.optim.Adam`, weight decay is an L2 penalty, `g ← g + λ θ`, and goes through the moments.
///
/// ```text
/// m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
/// θ ← θ - lr m̂ / (√v̂ + ε)        with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam(
    /// The settings, which are those of [`AdamW`].
    pub AdamW,
);

impl Rule for Adam {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        self.0.state(shape)
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::F32(m), State::F32(v)] = state else { foreign_state() };
        adam_step(value.f32_mut(), grad.f32(), m.f32_mut(), v.f32_mut(), &self.0.step(step));
    }
}
