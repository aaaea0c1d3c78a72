//! Lion.

use loam_kernels::optim::lion_step;
use loam_tensor::{Dims, Raw};

use super::{Rule, State, Step, foreign_state};

/// Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2): every parameter moves by the
/// learning rate, only the sign is asked. The paper wants a learning rate 3 to 10 times smaller than AdamW's, and a
/// weight decay larger by as much.
///
/// ```text
/// c ← β₁ m + (1 - β₁) g        θ ← θ - lr (sign(c) + λ θ)        m ← β₂ m + (1 - β₂) g
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// β₁
    pub beta1: f64,
    /// β₂
    pub beta2: f64,
    /// λ
    pub weight_decay: f64,
}

impl Rule for Lion {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        vec![("m", State::zeros(shape))]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::F32(m)] = state else { foreign_state() };
        let scale = step.scale(self.weight_decay);
        lion_step(value.f32_mut(), grad.f32(), m.f32_mut(), (self.beta1, self.beta2), &scale);
    }
}
