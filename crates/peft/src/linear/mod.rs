//! Adapters of linear layers: the product stays factored, and the change is never a matrix of its own.

mod adalora;
mod ia3;
mod lora;
mod vera;
mod whole;

use loam_models::LinearPart;
use loam_nn::{LayerContext, Linear};
use loam_tensor::{Parameter, Tensor, no_grad};

pub(crate) use adalora::adalora;
pub(crate) use ia3::{feedforward, ia3};
pub(crate) use lora::{TAKEN_A, TAKEN_B, check_patterns, like_linear, lora, normal, rank_and_scale};
pub(crate) use vera::vera;
pub(crate) use whole::Whole;

/// What one adapter does to one layer.
pub(crate) trait LinearAdapter: Send + Sync {
    /// The layer's output with it.
    fn forward(&self, linear: &Linear, x: &Tensor, context: &LayerContext) -> Tensor;

    /// What it differentiates.
    fn parameters(&self) -> Vec<Parameter>;

    /// The weight and bias of a plain layer that gives the same.
    fn merged(&self, linear: &Linear) -> (Vec<f32>, Option<Vec<f32>>);
}

/// One layer, and what an adapter does to it.
pub(crate) struct Attached {
    /// Tells places apart: the files' layer and the part of it.
    pub(crate) key: String,
    pub(crate) linear: Linear,
    pub(crate) adapter: std::sync::Arc<dyn LinearAdapter>,
}

/// Tensors by their names in PEFT's files.
pub(crate) type Named = Vec<(String, Parameter)>;

/// A module's name in PEFT's files.
pub(crate) fn file_name(module: &str, rest: &str) -> String {
    format!("base_model.model.{module}.{rest}")
}

/// Which outputs of a layer of the files belong to one here.
#[derive(Clone)]
pub(crate) enum Rows {
    /// All.
    All,
    /// From here on, so many.
    Range(usize, usize),
    /// These.
    Picked(Vec<u32>),
}

impl Rows {
    pub(crate) fn of(part: &LinearPart, total: usize) -> Self {
        let rows = &part.rows;
        match rows.first() {
            Some(&start) if rows.iter().enumerate().all(|(at, &row)| row == start + at) => {
                if rows.len() == total {
                    Self::All
                } else {
                    Self::Range(start, rows.len())
                }
            }
            _ => Self::Picked(rows.iter().map(|&row| row as u32).collect()),
        }
    }

    /// Their rows of `matrix` `[out, width]`.
    pub(crate) fn of_matrix(&self, matrix: &Tensor) -> Tensor {
        match self {
            Self::All => matrix.clone(),
            Self::Range(start, len) => matrix.narrow(0, *start, *len),
            Self::Picked(ids) => matrix.embedding(ids, [ids.len()]),
        }
    }

    /// Their elements of a vector, whatever its shape: `[n]`.
    pub(crate) fn of_vector(&self, vector: &Tensor) -> Tensor {
        let flat = vector.reshape([vector.count(), 1]);
        let picked = self.of_matrix(&flat);
        picked.reshape([picked.size(0)])
    }
}

/// `W + delta`, both `[out, in]`.
pub(crate) fn plus(linear: &Linear, delta: &Tensor) -> (Vec<f32>, Option<Vec<f32>>) {
    let mut weight = linear.weight.to_vec();
    weight.iter_mut().zip(delta.to_vec()).for_each(|(w, d)| *w += d);
    (weight, linear.bias.as_ref().map(Parameter::to_vec))
}

/// `B A` for B `[out, r]` and A `[r, in]`.
pub(crate) fn outer(b: &Tensor, a: &Tensor) -> Tensor {
    no_grad(|| b.matmul(a))
}

/// The key of a place of dropout of its own for each of an adapter's layers, beyond those of the model.
pub(crate) fn dropout_place(index: usize) -> u64 {
    (1 << 19) + index as u64
}
