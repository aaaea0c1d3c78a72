//! Muon.

use loam_kernels::optim::{muon_momentum, scaled_sum};
use loam_tensor::{DType, Device, Dims, Precision, Raw, Start};

use super::{Rule, State, Step, foreign_state};

/// Coefficients of the quintic: as steep at zero as it gets, without leaving the neighbourhood of one.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Iterations of Newton and Schulz.
const ITERATIONS: usize = 5;
/// The least norm that is divided by.
const EPS: f64 = 1e-7;
/// Root mean square of AdamW's updates, which Muon's are scaled to (Liu et al. 2025).
const ADAMW_RMS: f64 = 0.2;

/// Whether a parameter is a matrix between hidden activations. Embeddings and heads, which are outside of the blocks, are
/// not: their rows are tokens.
pub(super) fn is_hidden_matrix(name: &str, shape: Dims) -> bool {
    shape.len() == 2 && name.split('.').any(|part| part == "layers")
}

/// Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): momentum whose singular values are
/// all made about one by five Newton–Schulz iterations. As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`
/// (Liu et al. 2025, "Muon is Scalable for LLM Training", equation 4), so that learning rate and weight decay are
/// those of AdamW, which every other parameter has. The iterations run in f32, where PyTorch's run in bf16.
///
/// ```text
/// b ← μ b + (1 - μ) g        X ← (1 - μ) g + μ b, divided by its Frobenius norm
/// five times: A ← X Xᵀ, X ← 3.4445 X + (-4.7750 A + 2.0315 A²) X
/// θ ← θ - lr λ θ - 0.2 √max(rows, columns) lr X
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// μ
    pub momentum: f64,
    /// λ
    pub weight_decay: f64,
}

impl Rule for Muon {
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)> {
        vec![("momentum", State::zeros(shape))]
    }

    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step) {
        let [State::F32(buffer)] = state else { foreign_state() };
        let mut update = Device::Cpu.backend().copy(grad);
        muon_momentum(update.f32_mut(), buffer.f32_mut(), self.momentum, step.grad_scale);
        let update = orthogonalized(update);
        let longest = value.shape().iter().copied().max().unwrap_or(1);
        let lr = step.lr * ADAMW_RMS * (longest as f64).sqrt();
        scaled_sum(value.f32_mut(), 1.0 - step.lr * self.weight_decay, update.f32(), -lr);
    }
}

/// The matrix with its singular values replaced by ones, roughly: they end between 0.7 and 1.2.
fn orthogonalized(mut x: Raw) -> Raw {
    let backend = Device::Cpu.backend();
    let [a, b, c] = QUINTIC;
    let [rows, cols] = x.shape()[..] else { panic!("Muon is for matrices, not for shape {:?}", x.shape()) };
    let (is_tall, side) = (rows > cols, rows.min(cols));
    let mut next = Raw::empty(DType::F32, x.shape());
    let mut gram = Raw::empty(DType::F32, [side, side]);
    let mut polynomial = Raw::empty(DType::F32, [side, side]);
    // Every singular value is at most the Frobenius norm.
    let norm = backend.sum_of_squares(&x).sqrt().max(EPS);
    scaled_sum(next.f32_mut(), 0.0, x.f32(), 1.0 / norm);
    std::mem::swap(&mut x, &mut next);
    for _ in 0..ITERATIONS {
        // The smaller of the two products; the polynomial of a symmetric matrix is symmetric.
        let (left, right) = if is_tall { (x.transposed(0, 1), x.clone()) } else { (x.clone(), x.transposed(0, 1)) };
        backend.matmul(&mut gram, &left, &right, Start::Zero, Precision::F32);
        drop((left, right));
        backend.matmul(&mut polynomial, &gram, &gram, Start::Zero, Precision::F32);
        scaled_sum(polynomial.f32_mut(), c, gram.f32(), b);
        let (left, right) = if is_tall { (&x, &polynomial) } else { (&polynomial, &x) };
        backend.matmul(&mut next, left, right, Start::Zero, Precision::F32);
        scaled_sum(next.f32_mut(), 1.0, x.f32(), a);
        std::mem::swap(&mut x, &mut next);
    }
    x
}
