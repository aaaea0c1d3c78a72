//! The two places where weights meet data: [`Linear`] and [`Embedding`].

use loam_tensor::{Parameter, Tensor};

use crate::module::{Module, join};

/// `y = x W^T + b`. Adapters, quantised weights and FLOP counts hang here.
#[derive(Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    pub weight: Parameter,
    /// `[out_features]`.
    pub bias: Option<Parameter>,
}

impl Linear {
    /// A layer of zeros, to be initialised or loaded.
    pub fn zeros(in_features: usize, out_features: usize, has_bias: bool) -> Self {
        Self {
            weight: Parameter::zeros([out_features, in_features]),
            bias: has_bias.then(|| Parameter::zeros([out_features])),
        }
    }

    /// `[.., in_features] -> [.., out_features]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&Tensor::parameter(&self.weight), self.bias.as_ref().map(Tensor::parameter).as_ref())
    }
}

impl Module for Linear {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        visit(join(path, "weight"), &self.weight);
        if let Some(bias) = &self.bias {
            visit(join(path, "bias"), bias);
        }
    }
}

/// A table of vectors, one per token or position.
pub struct Embedding {
    /// `[num_embeddings, width]`.
    pub weight: Parameter,
}

impl Embedding {
    /// A table of zeros, to be initialised or loaded.
    pub fn zeros(num_embeddings: usize, width: usize) -> Self {
        Self { weight: Parameter::zeros([num_embeddings, width]) }
    }

    /// `ids` read as `[batch, time]` give `[batch, time, width]`.
    pub fn forward(&self, ids: &[u32], batch: usize, time: usize) -> Tensor {
        Tensor::parameter(&self.weight).embedding(ids, [batch, time])
    }
}

impl Module for Embedding {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        visit(join(path, "weight"), &self.weight);
    }
}
