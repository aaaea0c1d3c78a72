//! Optimizer rules that are one plain loop over parameter, gradient and at most one state.

use crate::parallel::{CHUNK, for_chunks, for_chunks2};

/// What every rule multiplies by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay: added to the gradient, or taken from the parameter, as the rule says.
    pub weight_decay: f64,
    /// Multiplies the gradient first: clipping, accumulation.
    pub grad_scale: f64,
}

impl Scale {
    /// The gradient of the loss with an L2 penalty, as a function of (parameter, gradient of the loss).
    fn penalized(&self) -> impl Fn(f32, f32) -> f32 + Sync + use<> {
        let (scale, decay) = (self.grad_scale as f32, self.weight_decay as f32);
        move |param, grad| grad * scale + param * decay
    }
}

/// Calls `rule(parameter, gradient)` for every element.
fn each(param: &mut [f32], grad: &[f32], rule: impl Fn(&mut f32, f32) + Sync) {
    assert_eq!(param.len(), grad.len(), "optimizer step: lengths differ");
    for_chunks(param, CHUNK, |start, param| {
        param.iter_mut().zip(&grad[start..]).for_each(|(param, &grad)| rule(param, grad));
    });
}

/// Calls `rule(parameter, gradient, state)` for every element.
fn each_with(param: &mut [f32], grad: &[f32], state: &mut [f32], rule: impl Fn(&mut f32, f32, &mut f32) + Sync) {
    assert!(param.len() == grad.len() && param.len() == state.len(), "optimizer step: lengths differ");
    for_chunks2((param, CHUNK), (state, CHUNK), |i, param, state| {
        let elements = param.iter_mut().zip(&grad[i * CHUNK..]).zip(state);
        elements.for_each(|((param, &grad), state)| rule(param, grad, state));
    });
}

/// Gradient descent: `param -= lr * (grad + weight_decay * param)`.
pub fn sgd_step(param: &mut [f32], grad: &[f32], scale: &Scale) {
    let (lr, penalized) = (scale.lr as f32, scale.penalized());
    each(param, grad, |param, grad| *param -= lr * penalized(*param, grad));
}

/// Gradient descent along `buffer = momentum * buffer + grad`; with `nesterov` along `grad + momentum * buffer`.
pub fn momentum_step(
    param: &mut [f32],
    grad: &[f32],
    buffer: &mut [f32],
    (momentum, nesterov): (f64, bool),
    scale: &Scale,
) {
    let (lr, momentum, penalized) = (scale.lr as f32, momentum as f32, scale.penalized());
    each_with(param, grad, buffer, |param, grad, buffer| {
        let grad = penalized(*param, grad);
        *buffer = momentum * *buffer + grad;
        *param -= lr * if nesterov { grad + momentum * *buffer } else { *buffer };
    });
}

/// Adagrad: `sum += grad²`, `param -= lr * grad / (√sum + eps)`.
pub fn adagrad_step(param: &mut [f32], grad: &[f32], sum: &mut [f32], eps: f64, scale: &Scale) {
    let (lr, eps, penalized) = (scale.lr as f32, eps as f32, scale.penalized());
    each_with(param, grad, sum, |param, grad, sum| {
        let grad = penalized(*param, grad);
        *sum += grad * grad;
        *param -= lr * (grad / (sum.sqrt() + eps));
    });
}

/// RMSProp: `square` is the running mean of `grad²` with decay `alpha`, `param -= lr * grad / (√square + eps)`.
pub fn rmsprop_step(param: &mut [f32], grad: &[f32], square: &mut [f32], (alpha, eps): (f64, f64), scale: &Scale) {
    let (lr, alpha, rest, eps) = (scale.lr as f32, alpha as f32, (1.0 - alpha) as f32, eps as f32);
    let penalized = scale.penalized();
    each_with(param, grad, square, |param, grad, square| {
        let grad = penalized(*param, grad);
        *square = alpha * *square + rest * grad * grad;
        *param -= lr * (grad / (square.sqrt() + eps));
    });
}

/// Lion: a step of `lr` along the sign of `beta1 * m + (1 - beta1) * grad`, then `m` decays with `beta2`. Weight decay
/// does not pass through the state.
pub fn lion_step(param: &mut [f32], grad: &[f32], m: &mut [f32], (beta1, beta2): (f64, f64), scale: &Scale) {
    let (lr, grad_scale) = (scale.lr as f32, scale.grad_scale as f32);
    let keep = (1.0 - scale.lr * scale.weight_decay) as f32;
    let [(beta1, rest1), (beta2, rest2)] = [beta1, beta2].map(|beta| (beta as f32, (1.0 - beta) as f32));
    each_with(param, grad, m, |param, grad, m| {
        let grad = grad * grad_scale;
        let direction = beta1 * *m + rest1 * grad;
        // f32::signum gives zero a sign.
        let sign = f32::from(direction > 0.0) - f32::from(direction < 0.0);
        *param = *param * keep - lr * sign;
        *m = beta2 * *m + rest2 * grad;
    });
}

/// Muon's momentum: `buffer` becomes the running mean of the gradient with decay `momentum`, and `update` the gradient
/// mixed with it once more (Nesterov). `update` enters as the gradient.
pub fn muon_momentum(update: &mut [f32], buffer: &mut [f32], momentum: f64, grad_scale: f64) {
    let (momentum, rest, scale) = (momentum as f32, (1.0 - momentum) as f32, grad_scale as f32);
    assert_eq!(update.len(), buffer.len(), "muon_momentum: lengths differ");
    for_chunks2((update, CHUNK), (buffer, CHUNK), |_, update, buffer| {
        for (update, buffer) in update.iter_mut().zip(buffer) {
            let grad = *update * scale;
            *buffer += rest * (grad - *buffer);
            *update = grad + momentum * (*buffer - grad);
        }
    });
}

/// `dst = a * dst + b * x`.
pub fn scaled_sum(dst: &mut [f32], a: f64, x: &[f32], b: f64) {
    let (a, b) = (a as f32, b as f32);
    each(dst, x, |dst, x| *dst = a * *dst + b * x);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    const SCALE: Scale = Scale { lr: 0.01, weight_decay: 0.1, grad_scale: 0.5 };

    /// A rule in f32 on slices of (parameter, gradient, state), and in f64 on one (parameter, state) with its gradient.
    type Rule = (&'static str, fn(&mut [f32], &[f32], &mut [f32]), fn(&mut f64, &mut f64, f64));

    const RULES: [Rule; 6] = [
        ("sgd", |p, g, _| sgd_step(p, g, &SCALE), |p, _, g| *p -= 0.01 * (0.5 * g + 0.1 * *p)),
        (
            "momentum",
            |p, g, b| momentum_step(p, g, b, (0.9, false), &SCALE),
            |p, b, g| {
                *b = 0.9 * *b + 0.5 * g + 0.1 * *p;
                *p -= 0.01 * *b;
            },
        ),
        (
            "nesterov",
            |p, g, b| momentum_step(p, g, b, (0.9, true), &SCALE),
            |p, b, g| {
                let g = 0.5 * g + 0.1 * *p;
                *b = 0.9 * *b + g;
                *p -= 0.01 * (g + 0.9 * *b);
            },
        ),
        (
            "adagrad",
            |p, g, s| adagrad_step(p, g, s, 1e-8, &SCALE),
            |p, s, g| {
                let g = 0.5 * g + 0.1 * *p;
                *s += g * g;
                *p -= 0.01 * g / (s.sqrt() + 1e-8);
            },
        ),
        (
            "rmsprop",
            |p, g, s| rmsprop_step(p, g, s, (0.99, 1e-8), &SCALE),
            |p, s, g| {
                let g = 0.5 * g + 0.1 * *p;
                *s = 0.99 * *s + 0.01 * g * g;
                *p -= 0.01 * g / (s.sqrt() + 1e-8);
            },
        ),
        (
            "lion",
            |p, g, m| lion_step(p, g, m, (0.9, 0.99), &SCALE),
            |p, m, g| {
                let g = 0.5 * g;
                *p -= 0.01 * ((0.9 * *m + 0.1 * g).signum() + 0.1 * *p);
                *m = 0.99 * *m + 0.01 * g;
            },
        ),
    ];

    fn normal(n: usize, purpose: &str, step: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, step).fill_normal(&mut x, 0.0, 1.0);
        x
    }

    #[test]
    fn twenty_steps_of_every_rule_follow_its_equation_in_f64() {
        for (name, rule, exact) in RULES {
            for n in [1, 7, 100] {
                let (mut param, mut state) = (normal(n, "param", 0), vec![0.0; n]);
                let mut exact_state: Vec<(f64, f64)> = param.iter().map(|&p| (f64::from(p), 0.0)).collect();
                for step in 1..=20 {
                    let grad = normal(n, "grad", step);
                    rule(&mut param, &grad, &mut state);
                    exact_state.iter_mut().zip(&grad).for_each(|((p, s), &g)| exact(p, s, f64::from(g)));
                }
                for (&found, (expected, _)) in param.iter().zip(&exact_state) {
                    // Twenty steps with a few roundings each, of parameters up to 3.
                    assert!((f64::from(found) - expected).abs() < 3e-6, "{name} {n}: {found}, exactly {expected}");
                }
            }
        }
    }

    #[test]
    fn muons_momentum_is_a_mean_that_looks_ahead() {
        let mut buffer = vec![0.0];
        let (mut mean, mut update) = (0.0_f64, vec![0.0]);
        for grad in [1.0, -2.0, 3.0, 0.5] {
            update[0] = grad;
            muon_momentum(&mut update, &mut buffer, 0.95, 0.5);
            let grad = 0.5 * f64::from(grad);
            mean = 0.95 * mean + 0.05 * grad;
            assert!((f64::from(buffer[0]) - mean).abs() < 1e-6);
            assert!((f64::from(update[0]) - (0.05 * grad + 0.95 * mean)).abs() < 1e-6);
        }
    }

    #[test]
    fn a_lion_without_direction_only_decays() {
        let (mut param, mut m) = (vec![2.0], vec![0.0]);
        lion_step(&mut param, &[0.0], &mut m, (0.9, 0.99), &SCALE);
        assert_eq!((param[0], m[0]), (2.0 * 0.999, 0.0));
    }

    #[test]
    fn the_thread_count_changes_no_bit() {
        let n = 3 * CHUNK + 5;
        for (name, rule, _) in RULES {
            let run = |threads| {
                let (mut param, mut state) = (normal(n, "param", 0), vec![0.0; n]);
                with_threads(threads, || rule(&mut param, &normal(n, "grad", 1), &mut state));
                (param, state)
            };
            assert!(run(1) == run(2), "{name}");
        }
    }
}
