//! Initial values.

use loam_kernels::rng::Rng;
use loam_tensor::{Parameter, Unary};

/// How a parameter starts. Those with a fan are for weights `[out, in, ..]` of at least two axes; further axes (a
/// kernel's width) are part of both fans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Normal with mean 0, drawn again beyond two standard deviations (`torch.nn.init.trunc_normal_` with a and b there):
    /// what comes out has 0.8796 of the standard deviation.
    TruncatedNormal {
        /// Standard deviation before the cut.
        std: f32,
    },
    /// Uniform between -bound and bound.
    Uniform {
        /// Largest absolute value.
        bound: f32,
    },
    /// Normal with variance `gain² 2 / (fan_in + fan_out)` (Glorot and Bengio 2010, eq. 12).
    XavierNormal {
        /// See [`gain`].
        gain: f32,
    },
    /// Uniform with the same variance (eq. 16).
    XavierUniform {
        /// See [`gain`].
        gain: f32,
    },
    /// Normal with variance `gain² / fan` (He et al. 2015, eq. 10 and 14).
    KaimingNormal {
        /// Which fan.
        fan: Fan,
        /// See [`gain`].
        gain: f32,
    },
    /// Uniform with the same variance.
    KaimingUniform {
        /// Which fan.
        fan: Fan,
        /// See [`gain`].
        gain: f32,
    },
    /// `gain` times a matrix `[out, rest]` whose shorter side is orthonormal, uniform among all such (Saxe et al. 2014): the
    /// Q of a random normal matrix's QR decomposition with a positive diagonal. Takes out · rest · min(out, rest) steps.
    Orthogonal {
        /// See [`gain`].
        gain: f32,
    },
    /// One value everywhere.
    Constant(f32),
}

/// The side of a weight whose variance is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fan {
    /// Inputs of an output: activations keep their variance going forward.
    In,
    /// Outputs of an input: gradients keep theirs going back.
    Out,
}

/// The factor that makes up for what an activation takes away from the variance, as `torch.nn.init.calculate_gain` has it;
/// 1 for those it does not know.
pub fn gain(activation: Unary) -> f32 {
    match activation {
        Unary::Relu => std::f32::consts::SQRT_2,
        Unary::LeakyRelu(slope) => (2.0 / (1.0 + slope * slope)).sqrt(),
        Unary::Tanh => 5.0 / 3.0,
        _ => 1.0,
    }
}

impl Init {
    /// Fills `parameter`. The numbers depend on `seed`, `name` and the position in the tensor alone. Panics where a fan is
    /// asked of fewer than two axes.
    pub fn fill(self, parameter: &Parameter, seed: u64, name: &str) {
        let mut values = vec![0.0; parameter.count()];
        let mut normal = |std: f32| Rng::new(seed, name, 0).fill_normal(&mut values, 0.0, std);
        match self {
            Self::Constant(value) => values.fill(value),
            Self::Normal { std } => normal(std),
            Self::XavierNormal { gain } => normal(xavier_std(parameter, gain)),
            Self::KaimingNormal { fan, gain } => normal(kaiming_std(parameter, fan, gain)),
            Self::TruncatedNormal { std } => {
                normal(1.0);
                for (index, value) in values.iter_mut().enumerate() {
                    let mut round = 0;
                    while value.abs() > 2.0 {
                        round += 1;
                        *value = Rng::new(seed, name, round).normal_f32(index as u64);
                    }
                    *value *= std;
                }
            }
            Self::Uniform { bound } => uniform(&mut values, bound, seed, name),
            // A uniform number between -b and b has variance b² / 3.
            Self::XavierUniform { gain } => {
                uniform(&mut values, 3f32.sqrt() * xavier_std(parameter, gain), seed, name);
            }
            Self::KaimingUniform { fan, gain } => {
                uniform(&mut values, 3f32.sqrt() * kaiming_std(parameter, fan, gain), seed, name);
            }
            Self::Orthogonal { gain } => {
                normal(1.0);
                fans(parameter);
                values = orthogonal(&values, parameter.shape()[0], gain);
            }
        }
        parameter.set(&values);
    }
}

fn uniform(values: &mut [f32], bound: f32, seed: u64, name: &str) {
    Rng::new(seed, name, 0).fill_uniform(values, -bound, bound);
}

/// Inputs of an output and outputs of an input.
fn fans(parameter: &Parameter) -> (usize, usize) {
    let shape = parameter.shape();
    assert!(shape.len() >= 2, "a tensor of shape {shape:?} has no fans");
    let field: usize = shape[2..].iter().product();
    (shape[1] * field, shape[0] * field)
}

fn xavier_std(parameter: &Parameter, gain: f32) -> f32 {
    let (inputs, outputs) = fans(parameter);
    gain * (2.0 / (inputs + outputs) as f32).sqrt()
}

fn kaiming_std(parameter: &Parameter, fan: Fan, gain: f32) -> f32 {
    let (inputs, outputs) = fans(parameter);
    gain / ((if fan == Fan::In { inputs } else { outputs }) as f32).sqrt()
}

/// `gain` times what the Gram-Schmidt process makes of the vectors of the shorter side of `values` `[rows, ..]`.
fn orthogonal(values: &[f32], rows: usize, gain: f32) -> Vec<f32> {
    let columns = values.len() / rows.max(1);
    let (count, length) = (rows.min(columns), rows.max(columns));
    // Vector i of the shorter side, element by element.
    let place = |i: usize, at: usize| if rows <= columns { i * columns + at } else { at * columns + i };
    let mut vectors: Vec<Vec<f64>> =
        (0..count).map(|i| (0..length).map(|at| f64::from(values[place(i, at)])).collect()).collect();
    for i in 0..count {
        let (before, after) = vectors.split_at_mut(i);
        let vector = &mut after[0];
        // Twice: what rounding leaves of the others after the first pass is gone after the second.
        for other in before.iter().chain(before.iter()) {
            let along: f64 = other.iter().zip(vector.iter()).map(|(a, b)| a * b).sum();
            vector.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|x| *x /= norm);
    }
    let mut out = vec![0.0; values.len()];
    for (i, vector) in vectors.iter().enumerate() {
        vector.iter().enumerate().for_each(|(at, x)| out[place(i, at)] = (f64::from(gain) * x) as f32);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(init: Init, shape: &[usize], seed: u64, name: &str) -> Vec<f32> {
        let parameter = Parameter::zeros(shape);
        init.fill(&parameter, seed, name);
        parameter.to_vec()
    }

    fn mean_and_variance(values: &[f32]) -> (f64, f64) {
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
        (mean, values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / values.len() as f64)
    }

    #[test]
    fn every_distribution_has_the_variance_and_the_bound_of_its_formula() {
        // fan_in 120, fan_out 180.
        let shape = [60, 40, 3];
        let unbounded = f64::INFINITY;
        let cases = [
            (Init::Normal { std: 0.5 }, 0.25, unbounded),
            (Init::TruncatedNormal { std: 0.5 }, 0.25 * 0.879_625_7_f64.powi(2), 1.0),
            (Init::Uniform { bound: 0.3 }, 0.03, 0.3),
            (Init::XavierNormal { gain: 2.0 }, 4.0 * 2.0 / 300.0, unbounded),
            (Init::XavierUniform { gain: 2.0 }, 4.0 * 2.0 / 300.0, 2.0 * (6.0 / 300f64).sqrt()),
            (Init::KaimingNormal { fan: Fan::In, gain: gain(Unary::Relu) }, 2.0 / 120.0, unbounded),
            (Init::KaimingNormal { fan: Fan::Out, gain: 1.0 }, 1.0 / 180.0, unbounded),
            (Init::KaimingUniform { fan: Fan::In, gain: 1.0 }, 1.0 / 120.0, (3.0 / 120f64).sqrt()),
            (Init::KaimingUniform { fan: Fan::Out, gain: 1.0 }, 1.0 / 180.0, (3.0 / 180f64).sqrt()),
            (Init::Constant(0.0), 0.0, 0.0),
        ];
        for (init, expected, bound) in cases {
            let values = filled(init, &shape, 7, "w");
            let (mean, variance) = mean_and_variance(&values);
            let largest = values.iter().fold(0.0, |largest, x| f64::max(largest, f64::from(x.abs())));
            // Of 7200 numbers: five standard deviations of the mean, and of a normal variable's variance.
            assert!(mean.abs() <= 5.0 * (expected / 7200.0).sqrt(), "{init:?}: mean {mean}");
            assert!((variance - expected).abs() <= 5.0 * expected * (2.0 / 7200f64).sqrt(), "{init:?}: {variance}");
            assert!(largest <= bound * (1.0 + 1e-6), "{init:?}: {largest} beyond {bound}");
            // And it goes that far.
            assert!(bound == unbounded || largest >= 0.98 * bound, "{init:?}: only {largest} of {bound}");
        }
    }

    #[test]
    fn the_shorter_side_of_an_orthogonal_matrix_is_orthonormal_times_the_gain() {
        for (shape, rows, columns) in
            [(&[7, 20][..], 7, 20), (&[20, 7], 20, 7), (&[64, 64], 64, 64), (&[5, 2, 3], 5, 6), (&[1, 1], 1, 1)]
        {
            for gain in [1.0, 1.5] {
                let q = filled(Init::Orthogonal { gain }, shape, 3, "w");
                let at = |i: usize, k: usize| {
                    f64::from(if rows <= columns { q[i * columns + k] } else { q[k * columns + i] })
                };
                for i in 0..rows.min(columns) {
                    for j in 0..rows.min(columns) {
                        let product: f64 = (0..rows.max(columns)).map(|k| at(i, k) * at(j, k)).sum();
                        let expected = if i == j { f64::from(gain * gain) } else { 0.0 };
                        assert!(
                            (product - expected).abs() < 1e-5 * f64::from(gain * gain),
                            "{shape:?} {i} {j}: {product}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let kaiming = Init::KaimingUniform { fan: Fan::In, gain: 1.0 };
        let truncated = Init::TruncatedNormal { std: 1.0 };
        for init in [truncated, Init::XavierNormal { gain: 1.0 }, kaiming, Init::Orthogonal { gain: 1.0 }] {
            let of = |seed, name| filled(init, &[30, 20], seed, name);
            assert_eq!(of(1, "a"), of(1, "a"), "{init:?}");
            assert!(of(1, "a") != of(2, "a") && of(1, "a") != of(1, "b"), "{init:?}");
        }
        // Nor on how much else there is: a number's place decides.
        assert_eq!(filled(truncated, &[900], 1, "a")[..500], filled(truncated, &[500], 1, "a")[..]);
    }

    #[test]
    fn gains_are_those_of_pytorch() {
        let cases = [
            (Unary::Relu, 2f32.sqrt()),
            (Unary::LeakyRelu(0.2), 1.386_750_5),
            (Unary::Tanh, 1.666_666_6),
            (Unary::Sigmoid, 1.0),
        ];
        for (activation, expected) in cases {
            assert!((gain(activation) - expected).abs() < 1e-6, "{activation:?}");
        }
    }

    #[test]
    #[should_panic(expected = "a tensor of shape [4] has no fans")]
    fn a_vector_has_no_fans() {
        filled(Init::XavierNormal { gain: 1.0 }, &[4], 0, "bias");
    }
}
