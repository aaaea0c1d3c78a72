//! The check that every trainable tensor takes part: frameworks have trained for months with gradients that stopped
//! silently while the loss still fell.

use loam_tensor::{Device, Parameter};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How far the check of a run's gradients has come. It is part of a checkpoint, so that a resumed run checks what an
/// uninterrupted one would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Nothing has moved yet: a batch may have taught nothing, as one whose answers all got the same reward, and a warmup
    /// starts with a learning rate of zero.
    #[default]
    Waiting,
    /// Something has moved: the next batch that teaches anything is looked at.
    Moved,
    /// The gradients were looked at.
    Done,
}

impl Guard {
    /// Whether a step's gradients are to be looked at. A whole model is by the first batch that teaches; most adapters start
    /// with a zero that keeps other gradients at zero, until something has moved.
    pub fn checks(self, teaches: bool, is_adapter: bool) -> bool {
        teaches && (self == Self::Moved || (self == Self::Waiting && !is_adapter))
    }

    /// How far the check is after a step that `checked`, or `moved` something.
    pub fn after(self, checked: bool, moved: bool) -> Self {
        match self {
            _ if checked => Self::Done,
            Self::Waiting if moved => Self::Moved,
            other => other,
        }
    }
}

/// Fails on the first trainable tensor whose gradient is missing, not finite, or zero everywhere.
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
    fn an_adapter_is_checked_by_the_first_batch_that_teaches_after_something_has_moved_and_only_once() {
        // What each step's batch teaches and whether the step moves anything; whether it is checked.
        let steps = [
            ((false, false), false),
            ((true, false), false),
            ((true, true), false),
            ((false, false), false),
            ((true, true), true),
            ((true, true), false),
        ];
        let mut guard = Guard::default();
        for ((teaches, moved), expected) in steps {
            let checked = guard.checks(teaches, true);
            assert_eq!(checked, expected, "{guard:?}");
            guard = guard.after(checked, moved);
        }
        assert_eq!(guard, Guard::Done);
        assert!(!Guard::Waiting.checks(false, false) && Guard::Waiting.checks(true, false), "a whole model at once");
    }

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
