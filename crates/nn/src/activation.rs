//! Activations: their names, as `config.json` writes them, and the one with weights.

use loam_tensor::{Parameter, Tensor, Unary};

use crate::module::{Module, join};

/// A point-wise non-linearity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation(pub Unary);

/// Names found in the wild and what they mean.
const NAMES: &[(&str, Unary)] = &[
    ("gelu_new", Unary::GeluTanh),
    ("gelu_pytorch_tanh", Unary::GeluTanh),
    ("gelu_fast", Unary::GeluTanh),
    ("gelu", Unary::Gelu),
    ("quick_gelu", Unary::QuickGelu),
    ("silu", Unary::Silu),
    ("swish", Unary::Silu),
    ("relu", Unary::Relu),
    ("relu2", Unary::ReluSquared),
    // With torch's defaults, as transformers has them.
    ("leaky_relu", Unary::LeakyRelu(0.01)),
    ("elu", Unary::Elu(1.0)),
    ("softplus", Unary::Softplus),
    ("tanh", Unary::Tanh),
    ("sigmoid", Unary::Sigmoid),
];

impl Activation {
    /// The activation called `name`, if it is known.
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, op)| Self(op))
    }

    /// Every known name, for error messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|&(name, _)| name)
    }
}

/// Leaky ReLU whose slope below zero is learnt, per channel or one for all (He et al. 2015, "Delving deep into rectifiers",
/// eq. 1).
#[derive(Clone)]
pub struct PRelu {
    /// `[channels]` or `[1]`, starts at 0.25.
    pub weight: Parameter,
}

impl PRelu {
    /// Slopes for so many channels, or 1 for one that all share.
    pub fn new(channels: usize) -> Self {
        let weight = Parameter::zeros([channels]);
        weight.set(&vec![0.25; channels]);
        Self { weight }
    }

    /// `[.., channels] -> [.., channels]`: max(x, 0) + weight min(x, 0).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let above = x.unary(Unary::Relu);
        // min(x, 0), and with the slope at zero that PyTorch gives it.
        let below = x - &above;
        &above + &below.mul(&Tensor::parameter(&self.weight))
    }
}

impl Module for PRelu {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        visit(join(path, "weight"), &self.weight);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;
    use loam_tensor::Raw;
    use loam_tensor::gradcheck::gradient_error;
    use loam_testkit::{Operation, activations, assert_close_relative};

    /// Of the largest value: a few roundings of 6e-8 each.
    const TOLERANCE: f32 = 1e-6;

    fn unary(golden: &Operation) -> Unary {
        let setting = |name: &str| golden.parameters[name] as f32;
        match golden.operation.as_str() {
            "leaky_relu" => Unary::LeakyRelu(setting("slope")),
            "elu" => Unary::Elu(setting("alpha")),
            "log_sigmoid" => Unary::LogSigmoid,
            "gelu_tanh" => Unary::GeluTanh,
            name => Activation::by_name(name).unwrap().0,
        }
    }

    #[test]
    fn every_activation_and_its_gradients_equal_pytorch() {
        let goldens = activations();
        assert!(goldens.len() >= 16);
        for golden in goldens {
            let parameter = |name: &str| {
                let array = &golden.inputs[name];
                Parameter::new(Raw::from_f32(&array.values, &array.shape[..]))
            };
            let x = parameter("x");
            let mut parameters = vec![("x", x.clone())];
            let y = if golden.operation == "prelu" {
                let prelu = PRelu { weight: parameter("slope") };
                parameters.push(("slope", prelu.weight.clone()));
                prelu.forward(&Tensor::parameter(&x))
            } else {
                Tensor::parameter(&x).unary(unary(&golden))
            };
            let mut worst = compare(&golden.case, &y.to_vec(), &golden.output.values);
            y.backward_with(Raw::from_f32(&golden.weight.values, &golden.weight.shape[..]));
            for (name, parameter) in parameters {
                let found = parameter.grad().unwrap().f32().to_vec();
                let name_of = format!("{} gradient of {name}", golden.case);
                worst = worst.max(compare(&name_of, &found, &golden.gradients[name].values));
            }
            // Shown by `--nocapture`.
            eprintln!("{:24} {worst:.1e}", golden.case);
        }
    }

    /// Largest difference relative to the largest value.
    fn compare(name: &str, found: &[f32], expected: &[f32]) -> f32 {
        assert_close_relative(name, found, expected, TOLERANCE);
        let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs() / largest))
    }

    #[test]
    fn a_learnt_slope_has_the_gradient_that_finite_differences_find() {
        for channels in [1, 5] {
            let x = Parameter::new(Raw::from_f32(&[-2.0, -0.5, 0.5, 1.0, 3.0, 0.7, -1.0, -3.0, 2.0, -0.2], [2, 5]));
            let prelu = PRelu::new(channels);
            let error =
                gradient_error(&[x, prelu.weight.clone()], |x| PRelu { weight: prelu.weight.clone() }.forward(&x[0]));
            assert!(error < 2e-3, "{channels}: {error}");
        }
    }

    #[test]
    fn every_known_name_is_an_activation_and_an_unknown_one_is_none() {
        assert!(Activation::names().all(|name| Activation::by_name(name).is_some()));
        assert_eq!(Activation::by_name("gelu2"), None);
    }
}
