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
    /// Whether the scale is one plus the weight, so that a weight of zero is the identity (Gemma).
    pub one_plus_weight: bool,
}

impl NormConfig {
    /// RMS norm.
    pub fn rms(eps: f64) -> Self {
        Self { kind: NormKind::Rms, eps: eps as f32, has_bias: false, one_plus_weight: false }
    }

    /// Layer norm with scale and shift.
    pub fn layer(eps: f64) -> Self {
        Self { kind: NormKind::Layer, eps: eps as f32, has_bias: true, one_plus_weight: false }
    }
}

/// Layer norm or RMS norm over the last axis.
#[derive(Clone)]
pub struct Norm {
    /// `[width]`, starts at one, or at zero where one is added.
    pub weight: Parameter,
    /// `[width]`, starts at zero.
    pub bias: Option<Parameter>,
    config: NormConfig,
}

impl Norm {
    /// The identity scale and shift.
    pub fn new(width: usize, config: NormConfig) -> Self {
        let weight = Parameter::zeros([width]);
        weight.set(&vec![if config.one_plus_weight { 0.0 } else { 1.0 }; width]);
        Self { weight, bias: config.has_bias.then(|| Parameter::zeros([width])), config }
    }

    /// `[.., width] -> [.., width]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut weight = Tensor::parameter(&self.weight);
        if self.config.one_plus_weight {
            weight = weight.affine(1.0, 1.0);
        }
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
