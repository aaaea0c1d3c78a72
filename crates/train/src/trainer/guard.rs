//! The check that every trainable tensor takes part: frameworks have trained for months with gradients that stopped
//! silently while the loss still fell.

use loam_tensor::{Device, Parameter};

use crate::error::{Error, Result};

/// Fails on the first trainable tensor whose gradient is missing, not finite, or zero everywhere; `step` is the first step's
/// 1 or, where tensors start at zero and let nothing through, that of the first step after something has moved.
pub fn check_gradients(parameters: &[(String, Parameter)], step: u64) -> Result<()> {
    let backend = Device::Cpu.backend();
    for (name, parameter) in parameters.iter().filter(|(_, parameter)| parameter.is_trainable()) {
        let problem = match parameter.grad() {
            None => Some("is missing"),
            Some(grad) if !backend.all_finite(&grad) => Some("is not finite"),
            Some(grad) if backend.sum_of_squares(&grad) == 0.0 && grad.f32().iter().all(|&x| x == 0.0) => {
                Some("is zero everywhere")
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            return Err(Error::Gradient { step, name: name.clone(), problem });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_tensor::{Raw, Tensor};

    #[test]
    fn a_tensor_without_a_gradient_is_named_and_a_frozen_one_is_not() {
        let named = |name: &str| (name.to_string(), Parameter::new(Raw::from_f32(&[1.0, 2.0], [1, 2])));
        let parameters = vec![named("used"), named("left_out")];
        Tensor::from_slice(&[1.0, 1.0], [1, 2]).linear(&Tensor::parameter(&parameters[0].1), None).backward();
        let error = check_gradients(&parameters, 1).unwrap_err();
        assert_eq!(error.to_string(), "step 1: the gradient of `left_out` is missing");
        parameters[1].1.set_trainable(false);
        check_gradients(&parameters, 1).unwrap();
    }

    #[test]
    fn a_zero_and_an_infinite_gradient_are_named() {
        for (x, problem) in [(0.0, "is zero everywhere"), (f32::INFINITY, "is not finite")] {
            let parameters = vec![("w".to_string(), Parameter::new(Raw::from_f32(&[1.0, 2.0], [1, 2])))];
            Tensor::from_slice(&[x, x], [1, 2]).linear(&Tensor::parameter(&parameters[0].1), None).backward();
            let error = check_gradients(&parameters, 1).unwrap_err();
            assert!(error.to_string().ends_with(problem), "{error}");
        }
    }
}
