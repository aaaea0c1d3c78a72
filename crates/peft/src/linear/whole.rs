//! A linear layer with weights of its own, in place of the model's.

use loam_nn::{LayerContext, Linear};
use loam_tensor::{Parameter, Tensor};

use super::{LinearAdapter, Rows};

/// One layer's part of a layer of the files that is trained as a whole.
pub(crate) struct Whole {
    /// `[out, in]`, in the files' order of outputs.
    pub(crate) weight: Parameter,
    pub(crate) bias: Option<Parameter>,
    pub(crate) rows: Rows,
}

impl LinearAdapter for Whole {
    fn forward(&self, _linear: &Linear, x: &Tensor, _context: &LayerContext) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| self.rows.of_vector(&Tensor::parameter(bias)));
        x.linear(&self.rows.of_matrix(&Tensor::parameter(&self.weight)), bias.as_ref())
    }

    fn parameters(&self) -> Vec<Parameter> {
        [&self.weight].into_iter().chain(&self.bias).cloned().collect()
    }

    fn merged(&self, _linear: &Linear) -> (Vec<f32>, Option<Vec<f32>>) {
        loam_tensor::no_grad(|| {
            let weight = self.rows.of_matrix(&Tensor::parameter(&self.weight)).to_vec();
            (weight, self.bias.as_ref().map(|bias| self.rows.of_vector(&Tensor::parameter(bias)).to_vec()))
        })
    }
}
