//! Adagrad.

use loam_kernels::optim::adagrad_step;
use loam_tensor::{Dims, Raw};

use super::{Rule, State, Step, foreign_state};

/// Adagrad (Duchi et al. 2011, figure 1 with diagonal matrices): each parameter's rate falls with the gradients it has seen.
/// Weight decay is an L2 penalty, as in `torch.optim.Adagrad`.
///
/// ```text
/// g ← g + λ θ        s ← s + g²        θ ← θ - lr g / (√s + ε)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adagrad {
    /// ε
    pub eps: f64,
    /// λ
    pub weight_decay: f64,
}

impl Rule for Adagrad {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        vec![("sum", State::zeros(shape))]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::F32(sum)] = state else { foreign_state() };
        adagrad_step(value.f32_mut(), grad.f32(), sum.f32_mut(), self.eps, &step.scale(self.weight_decay));
    }
}
