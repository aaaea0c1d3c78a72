//! The two places where weights meet data: [`Linear`] and [`Embedding`].

use loam_tensor::{Parameter, Tensor};

use crate::context::LayerContext;
use crate::hook::{Hooks, LinearHook, Slot, TableHook};
use crate::module::{Module, join};

/// `y = x W^T + b`. Quantised weights and FLOP counts hang here, and what stands in the seam.
#[derive(Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    pub weight: Parameter,
    /// `[out_features]`.
    pub bias: Option<Parameter>,
    /// What the layer goes through instead, where something does.
    pub hook: Slot<dyn LinearHook>,
}

impl Linear {
    /// A layer of zeros, to be initialised or loaded.
    pub fn zeros(in_features: usize, out_features: usize, has_bias: bool) -> Self {
        Self {
            weight: Parameter::zeros([out_features, in_features]),
            bias: has_bias.then(|| Parameter::zeros([out_features])),
            hook: Slot::default(),
        }
    }

    /// `[.., in_features] -> [.., out_features]`, through the hook.
    pub fn forward(&self, x: &Tensor, context: &LayerContext) -> Tensor {
        match self.hook.of(&context.hooks) {
            Some(hook) => hook.forward(self, x, context),
            None => self.apply(x),
        }
    }

    /// The same without what stands in the seam.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = self.tensors();
        x.linear(&weight, bias.as_ref())
    }

    /// Weight and bias, for an operation that is more than this layer.
    pub(crate) fn tensors(&self) -> (Tensor, Option<Tensor>) {
        (Tensor::parameter(&self.weight), self.bias.as_ref().map(Tensor::parameter))
    }
}

impl Module for Linear {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        visit(join(path, "weight"), &self.weight);
        if let Some(bias) = &self.bias {
            visit(join(path, "bias"), bias);
        }
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        visit(path.to_owned(), self);
    }
}

/// A table of vectors, one per token or position.
pub struct Embedding {
    /// `[num_embeddings, width]`.
    pub weight: Parameter,
    /// What is looked up instead, where something is.
    pub hook: Slot<dyn TableHook>,
}

impl Embedding {
    /// A table of zeros, to be initialised or loaded.
    pub fn zeros(num_embeddings: usize, width: usize) -> Self {
        Self { weight: Parameter::zeros([num_embeddings, width]), hook: Slot::default() }
    }

    /// `ids` read as `[batch, time]` give `[batch, time, width]`.
    pub fn forward(&self, ids: &[u32], batch: usize, time: usize) -> Tensor {
        Tensor::parameter(&self.weight).embedding(ids, [batch, time])
    }

    /// The same through the hook.
    pub fn hooked(&self, ids: &[u32], batch: usize, time: usize, hooks: &Hooks) -> Tensor {
        match self.hook.of(hooks) {
            Some(hook) => hook.rows(&self.weight, ids, [batch, time]),
            None => self.forward(ids, batch, time),
        }
    }
}

impl Module for Embedding {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        visit(join(path, "weight"), &self.weight);
    }
}
