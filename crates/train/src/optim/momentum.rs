//! Gradient descent with momentum.

use loam_kernels::optim::momentum_step;
use loam_tensor::{Dims, Raw};

use super::{Rule, State, Step, foreign_state};

/// Gradient descent with momentum (Polyak 1964), or with the look-ahead of Nesterov (1983) in the form of Sutskever et al.
/// (2013). As in `torch.optim.SGD` the gradient enters the sum in full, and weight decay is an L2 penalty.
///
/// ```text
/// g ← g + λ θ        b ← μ b + g
/// θ ← θ - lr b             (Polyak)
/// θ ← θ - lr (g + μ b)     (Nesterov)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Momentum {
    /// μ
    pub momentum: f64,
    /// Whether a step looks ahead.
    pub nesterov: bool,
    /// λ
    pub weight_decay: f64,
}

impl Rule for Momentum {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        vec![("buffer", State::zeros(shape))]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::F32(buffer)] = state else { foreign_state() };
        let (momentum, scale) = ((self.momentum, self.nesterov), step.scale(self.weight_decay));
        momentum_step(value.f32_mut(), grad.f32(), buffer.f32_mut(), momentum, &scale);
    }
}
