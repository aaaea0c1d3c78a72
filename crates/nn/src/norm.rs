//! Normalisation layers.

use loam_tensor::{NormKind, Parameter, Tensor};

use crate::module::{Module, join};

/// Which norm, and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// Layer norm or RMS norm.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Whether there is an additive bias (layer norm only).
    pub has_bias: bool,
}

/// Layer norm or RMS norm over the last axis.
#[derive(Clone)]
pub struct Norm {
    /// `[width]`, starts at one.
    pub weight: Parameter,
    /// `[width]`, starts at zero.
    pub bias: Option<Parameter>,
    config: NormConfig,
}

impl Norm {
    /// The identity scale and shift.
    pub fn new(width: usize, config: NormConfig) -> Self {
        let weight = Parameter::zeros([width]);
        weight.set(&vec![1.0; width]);
        Self { weight, bias: config.has_bias.then(|| Parameter::zeros([width])), config }
    }

    /// `[.., width] -> [.., width]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let weight = Tensor::parameter(&self.weight);
        match self.config.kind {
            NormKind::Layer => {
                x.layer_norm(&weight, self.bias.as_ref().map(Tensor::parameter).as_ref(), self.config.eps)
            }
            NormKind::Rms => x.rms_norm(&weight, self.config.eps),
        }
    }
}

impl Module for Norm {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        visit(join(path, "weight"), &self.weight);
        if let Some(bias) = &self.bias {
            visit(join(path, "bias"), bias);
        }
    }
}
