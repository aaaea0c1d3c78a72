//! Names of activations, as `config.json` writes them.

use loam_tensor::Unary;

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
