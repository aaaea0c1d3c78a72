//! Adafactor.

use loam_kernels::optim::{Variance, adafactor_step};
use loam_tensor::{Dims, Raw};

use super::{Rule, State, Step, foreign_state};

/// Adafactor (Shazeer and Stern 2018, algorithms 4 and 5): of a matrix's second moment only the means of rows and columns are
/// kept, so that the state is next to nothing. Conventions, ε₁, ε₂, d and the decay of the moment are those of
/// `torch.optim.Adafactor`: the learning rate bounds the relative step, and weight decay is decoupled.
///
/// ```text
/// β ← 1 - t^-0.8      r ← β r + (1 - β) mean of g² over the row      c ← the same over the column
/// u ← g / √(r c / mean(r))                                      (a vector keeps v ← β v + (1 - β) g² itself)
/// θ ← θ - lr λ θ - max(ε₂, RMS(θ)) min(lr, 1/√t) u / max(1, RMS(u) / d)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// λ
    pub weight_decay: f64,
}

impl Rule for Adafactor {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        let [stack @ .., rows, cols] = &shape[..] else { return vec![("variance", State::zeros(shape))] };
        let with = |last: usize| State::zeros(Dims::new(&[stack, &[last]].concat()));
        vec![("row", with(*rows)), ("col", with(*cols))]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let variance = match (state, &grad.shape()[..]) {
            ([State::F32(row), State::F32(col)], &[.., rows, cols]) => {
                Variance::Factored { row: row.f32_mut(), col: col.f32_mut(), rows, cols }
            }
            ([State::F32(v)], _) => Variance::Full(v.f32_mut()),
            _ => foreign_state(),
        };
        let (lr, grad_scale, number) = (step.lr, step.grad_scale, step.number);
        let settings = loam_kernels::optim::Adafactor { lr, weight_decay: self.weight_decay, grad_scale, step: number };
        adafactor_step(value.f32_mut(), grad.f32(), variance, &settings);
    }
}
