//! The position-wise network of a block.

use loam_tensor::{Parameter, Tensor};

use crate::activation::Activation;
use crate::context::LayerContext;
use crate::linear::Linear;
use crate::module::{Module, join};

/// Shape of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForwardConfig {
    /// Width inside.
    pub intermediate_size: usize,
    /// Non-linearity.
    pub activation: Activation,
    /// `act(gate x) * up x` (Shazeer 2020) instead of `act(up x)`.
    pub gated: bool,
    /// Whether the projections have biases.
    pub has_bias: bool,
}

/// `down(act(up x))`, or `down(act(gate x) * up x)`.
#[derive(Clone)]
pub struct FeedForward {
    /// Present when gated.
    pub gate_proj: Option<Linear>,
    /// Into the wide space.
    pub up_proj: Linear,
    /// Back again.
    pub down_proj: Linear,
    activation: Activation,
}

impl FeedForward {
    /// Zeros, to be initialised or loaded.
    pub fn zeros(hidden_size: usize, config: &FeedForwardConfig) -> Self {
        let into = || Linear::zeros(hidden_size, config.intermediate_size, config.has_bias);
        Self {
            gate_proj: config.gated.then(into),
            up_proj: into(),
            down_proj: Linear::zeros(config.intermediate_size, hidden_size, config.has_bias),
            activation: config.activation,
        }
    }

    /// `[.., hidden] -> [.., hidden]`.
    pub fn forward(&self, x: &Tensor, context: &LayerContext) -> Tensor {
        let Some(gate_proj) = &self.gate_proj else {
            let wide = self.up_proj.forward(x, context).stored().unary(self.activation.0);
            return self.down_proj.forward(&wide, context);
        };
        let layers = [gate_proj, &self.up_proj, &self.down_proj];
        if layers.iter().all(|linear| linear.hook.of(&context.hooks).is_none()) {
            let tensors = layers.map(Linear::tensors);
            let tensors = tensors.each_ref().map(|(weight, bias)| (weight, bias.as_ref()));
            if let Some(y) = x.feed_forward(self.activation.0, tensors) {
                return y;
            }
        }
        let up = self.up_proj.forward(x, context).stored();
        let wide = gate_proj.forward(x, context).stored().gated(self.activation.0, &up);
        self.down_proj.forward(&wide, context)
    }
}

impl Module for FeedForward {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.gate_proj.visit(&join(path, "gate_proj"), visit);
        self.up_proj.visit(&join(path, "up_proj"), visit);
        self.down_proj.visit(&join(path, "down_proj"), visit);
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        self.gate_proj.visit_linears(&join(path, "gate_proj"), visit);
        self.up_proj.visit_linears(&join(path, "up_proj"), visit);
        self.down_proj.visit_linears(&join(path, "down_proj"), visit);
    }
}
