//! Gradient descent.

use loam_kernels::optim::sgd_step;
use loam_tensor::{Dims, Raw};

use super::{Rule, State, Step};

/// Stochastic gradient descent (Robbins and Monro 1951) with an L2 penalty, as `torch.optim.SGD`. It remembers nothing.
///
/// ```text
/// θ ← θ - lr (g + λ θ)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// λ
    pub weight_decay: f64,
}

impl Rule for Sgd {
    fn state(&self, _shape: Dims) -> Vec<(&'static str, State)> {
        Vec::new()
    }

    fn update(&self, value: &mut Raw, grad: &Raw, _state: &mut [State], step: &Step) {
        sgd_step(value.f32_mut(), grad.f32(), &step.scale(self.weight_decay));
    }
}
