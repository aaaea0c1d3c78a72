//! Finite differences: the outside check of every operation's gradient.
//!
//! Operations compute in f32, so the difference quotient is taken in f64 over a central step large enough to rise
//! above rounding: the scalar that is differentiated is itself summed in f64. Kernels are checked against f64 twins in
//! their own crate; this one checks the wiring from operation to gradient slot.

use crate::autograd::no_grad;
use crate::parameter::Parameter;
use crate::raw::Raw;
use crate::tensor::Tensor;

/// Step of the central difference: about the cube root of f32's relative precision, which balances truncation
/// (step squared) against rounding (precision over step).
const STEP: f32 = 4e-3;

/// Largest difference between analytic and numeric gradients of `sum(weights * f(inputs))`, relative to the largest
/// gradient of that input, over all inputs. `f` must depend only on its arguments.
pub fn gradient_error(inputs: &[Parameter], f: impl Fn(&[Tensor]) -> Tensor) -> f64 {
    let tensors = || inputs.iter().map(Tensor::parameter).collect::<Vec<_>>();
    let shape = no_grad(|| f(&tensors()).shape());
    // Fixed, uneven weights make every output matter differently.
    let weights: Vec<f32> = (0..shape.count()).map(|i| 0.3 + ((i * 7 + 3) % 11) as f32 / 11.0).collect();
    inputs.iter().for_each(Parameter::clear_grad);
    let output = f(&tensors());
    output.backward_with(Raw::from_f32(&weights, shape));

    let objective = || {
        let values = no_grad(|| f(&tensors()).to_vec());
        values.iter().zip(&weights).map(|(&value, &weight)| f64::from(value) * f64::from(weight)).sum::<f64>()
    };
    let mut worst = 0.0f64;
    for input in inputs.iter().filter(|input| input.is_trainable()) {
        let analytic = input.grad().map_or_else(|| vec![0.0; input.count()], |grad| grad.f32().to_vec());
        let numeric: Vec<f64> = (0..input.count()).map(|index| central_difference(input, index, &objective)).collect();
        let largest = numeric.iter().fold(1e-3f64, |most, value| most.max(value.abs()));
        for (a, n) in analytic.iter().zip(&numeric) {
            worst = worst.max((f64::from(*a) - n).abs() / largest);
        }
    }
    worst
}

fn central_difference(input: &Parameter, index: usize, objective: &impl Fn() -> f64) -> f64 {
    let original = input.to_vec();
    let at = |delta: f32| {
        let mut moved = original.clone();
        moved[index] += delta;
        input.set(&moved);
        (objective(), f64::from(moved[index]))
    };
    let ((high, x1), (low, x0)) = (at(STEP), at(-STEP));
    input.set(&original);
    (high - low) / (x1 - x0)
}
