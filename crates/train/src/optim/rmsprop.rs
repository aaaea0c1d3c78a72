//! RMSProp.

use loam_kernels::optim::rmsprop_step;
use loam_tensor::{Dims, Raw};

use super::{Rule, State, Step, foreign_state};

/// RMSProp (Tieleman and Hinton 2012, lecture 6.5): the gradient over the root of its square's running mean. Weight decay is
/// an L2 penalty, as in `torch.optim.RMSprop`; α is the recipe's `beta2`.
///
/// ```text
/// g ← g + λ θ        v ← α v + (1 - α) g²        θ ← θ - lr g / (√v + ε)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// α
    pub alpha: f64,
    /// ε
    pub eps: f64,
    /// λ
    pub weight_decay: f64,
}

impl Rule for RmsProp {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        vec![("square", State::zeros(shape))]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::F32(square)] = state else { foreign_state() };
        let scale = step.scale(self.weight_decay);
        rmsprop_step(value.f32_mut(), grad.f32(), square.f32_mut(), (self.alpha, self.eps), &scale);
    }
}
