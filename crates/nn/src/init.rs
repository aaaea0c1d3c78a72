//! Initial values.

use loam_kernels::rng::Rng;
use loam_tensor::Parameter;

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// One value everywhere.
    Constant(f32),
}

impl Init {
    /// Fills `parameter`. The numbers depend on `seed`, `name` and the position in the tensor alone.
    pub fn fill(self, parameter: &Parameter, seed: u64, name: &str) {
        let mut values = vec![0.0; parameter.count()];
        match self {
            Self::Constant(value) => values.fill(value),
            Self::Normal { std } => Rng::new(seed, name, 0).fill_normal(&mut values, 0.0, std),
        }
        parameter.set(&values);
    }
}
