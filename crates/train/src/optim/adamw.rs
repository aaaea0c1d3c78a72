//! AdamW.

use loam_tensor::{Device, Dims, Raw};

use super::{Rule, State, Step, foreign_state};

/// AdamW (Loshchilov and Hutter 2019, algorithm 2): Adam with weight decay that does not go through the moments.
///
/// ```text
/// m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
/// θ ← θ - lr λ θ - lr m̂ / (√v̂ + ε)      with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// β₁
    pub beta1: f64,
    /// β₂
    pub beta2: f64,
    /// ε
    pub eps: f64,
    /// λ
    pub weight_decay: f64,
}

impl AdamW {
    pub(super) fn step(&self, step: &Step) -> loam_tensor::AdamW {
        loam_tensor::AdamW {
            lr: step.lr as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            grad_scale: step.grad_scale as f32,
            step: step.number,
        }
    }
}

impl Rule for AdamW {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        vec![("m", State::zeros(shape)), ("v", State::zeros(shape))]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::F32(m), State::F32(v)] = state else { foreign_state() };
        Device::Cpu.backend().adamw(value, grad, m, v, &self.step(step));
    }
}
