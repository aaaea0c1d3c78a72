//! The L2 norm of all gradients together, and the factor that clips it (Pascanu et al. 2013).

use loam_tensor::{Device, Parameter};

/// L2 norm of all gradients together. The sum runs in f64 in the order given, so it has one value.
pub fn global_norm(parameters: &[(String, Parameter)]) -> f64 {
    parameters.iter().map(|(_, parameter)| squared_norm(parameter)).sum::<f64>().sqrt()
}

/// Squared L2 norm of a parameter's gradient; 0 where it has none.
pub fn squared_norm(parameter: &Parameter) -> f64 {
    parameter.grad().map_or(0.0, |grad| Device::Cpu.backend().sum_of_squares(&grad))
}

/// Factor that scales gradients of this norm down to at most `limit` (0 is no limit).
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    // PyTorch adds the same constant before dividing.
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_tensor::{Raw, Tensor};

    #[test]
    fn the_norm_covers_all_parameters_and_the_factor_limits_it() {
        let named = |name: &str| (name.to_string(), Parameter::new(Raw::from_f32(&[0.0, 0.0], [1, 2])));
        let parameters = vec![named("a"), named("b"), named("without")];
        for ((_, parameter), x) in parameters.iter().zip([[3.0, 0.0], [0.0, 4.0]]) {
            Tensor::from_slice(&x, [1, 2]).linear(&Tensor::parameter(parameter), None).backward();
        }
        assert!((global_norm(&parameters) - 5.0).abs() < 1e-12);
        assert_eq!(clip_factor(5.0, 0.0), 1.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(5.0, 1.0) * 5.0 - 1.0).abs() < 1e-6);
    }
}
