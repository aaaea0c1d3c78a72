//! Optimizer steps, fused: one pass over parameter, gradient and state.
//!
//! AdamW and Adam, where training spends its time, are written for every instruction set; the other rules are plain
//! loops that memory bounds.

mod adafactor;
mod blockwise;
mod rules;

pub use adafactor::{Adafactor, Variance, adafactor_step};
pub use blockwise::{BLOCK, Blockwise, adamw8bit_step};
pub use rules::{Scale, adagrad_step, lion_step, momentum_step, muon_momentum, rmsprop_step, scaled_sum, sgd_step};

use crate::isa::{Isa, isa};
use crate::parallel::{CHUNK, for_chunks3};
use crate::simd::{Kernel, Simd, dispatch_on};

/// One step of AdamW (Loshchilov and Hutter 2017), with PyTorch's order of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the running mean of gradients.
    pub beta1: f32,
    /// Decay of the running mean of squared gradients.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Share of the parameter taken away per step, times `lr`; does not pass through the state.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u64,
    /// Multiplies the gradient first: clipping, accumulation.
    pub grad_scale: f32,
}

/// Updates `param` and its state `m`, `v`.
pub fn adamw_step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: &AdamW) {
    step_on::<true>(isa(), param, grad, m, v, settings);
}

/// The same for Adam (Kingma and Ba 2015), where weight decay is a part of the gradient: an L2 penalty.
pub fn adam_step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: &AdamW) {
    step_on::<false>(isa(), param, grad, m, v, settings);
}

fn step_on<const DECOUPLED: bool>(
    isa: Isa,
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    settings: &AdamW,
) {
    let n = param.len();
    assert!(grad.len() == n && m.len() == n && v.len() == n, "adam_step: lengths differ");
    assert!(settings.step > 0, "adam_step: steps count from 1");
    let factors = Factors::new(settings);
    for_chunks3((param, CHUNK), (m, CHUNK), (v, CHUNK), |i, param, m, v| {
        let grad = &grad[i * CHUNK..][..param.len()];
        dispatch_on(isa, Step::<DECOUPLED> { param, grad, m, v, factors });
    });
}

/// What the settings come to for one step, computed in f64 and rounded once.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: f32,
    /// 1 - lr * weight_decay
    keep: f32,
    weight_decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// 1 / √(1 - beta2^step)
    denominator_scale: f32,
    eps: f32,
    /// lr / (1 - beta1^step)
    step_size: f32,
}

impl Factors {
    fn new(s: &AdamW) -> Self {
        let (lr, beta1, beta2) = (exact(s.lr), exact(s.beta1), exact(s.beta2));
        let correction = |beta: f64| 1.0 - beta.powf(s.step as f64);
        Self {
            grad_scale: s.grad_scale,
            keep: (1.0 - lr * exact(s.weight_decay)) as f32,
            weight_decay: s.weight_decay,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: s.beta2,
            one_minus_beta2: (1.0 - beta2) as f32,
            denominator_scale: (1.0 / correction(beta2).sqrt()) as f32,
            eps: s.eps,
            step_size: (lr / correction(beta1)) as f32,
        }
    }
}

/// The decimal that was meant: 0.999 as f32 is 0.99900001287, and 1 - beta2 would carry that as an error of 1e-5.
fn exact(x: f32) -> f64 {
    x.to_string().parse().expect("a number prints as a number")
}

struct Step<'a, const DECOUPLED: bool> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    factors: Factors,
}
impl<const DECOUPLED: bool> Kernel for Step<'_, DECOUPLED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let state = self.m.chunks_mut(S::LANES).zip(self.v.chunks_mut(S::LANES));
        let values = self.param.chunks_mut(S::LANES).zip(self.grad.chunks(S::LANES));
        for ((param, grad), (m, v)) in values.zip(state) {
            let old = [s.load_partial(param), s.load_partial(grad), s.load_partial(m), s.load_partial(v)];
            let new = update::<S, DECOUPLED>(s, &self.factors, old);
            s.store_partial(param, new[0]);
            s.store_partial(m, new[1]);
            s.store_partial(v, new[2]);
        }
    }
}

/// New (param, m, v) from (param, grad, m, v).
#[inline(always)]
fn update<S: Simd, const DECOUPLED: bool>(s: S, f: &Factors, [param, grad, m, v]: [S::V; 4]) -> [S::V; 3] {
    let grad = s.mul(grad, s.splat(f.grad_scale));
    let (param, grad) = if DECOUPLED {
        (s.mul(param, s.splat(f.keep)), grad)
    } else {
        (param, s.fma(param, s.splat(f.weight_decay), grad))
    };
    let m = s.fma(s.sub(grad, m), s.splat(f.one_minus_beta1), m);
    let v = s.fma(s.mul(grad, grad), s.splat(f.one_minus_beta2), s.mul(v, s.splat(f.beta2)));
    let denominator = s.fma(s.sqrt(v), s.splat(f.denominator_scale), s.splat(f.eps));
    [s.neg_fma(s.div(m, denominator), s.splat(f.step_size), param), m, v]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::testable;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    const SETTINGS: AdamW =
        AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

    fn normal(n: usize, purpose: &str, step: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, step).fill_normal(&mut x, 0.0, 1.0);
        x
    }

    /// The published update, in f64.
    fn exact_step(decoupled: bool, state: &mut [f64; 3], grad: f64, step: i32) {
        let [param, m, v] = state;
        let mut grad = grad * 0.5;
        if decoupled {
            *param -= 0.01 * 0.1 * *param;
        } else {
            grad += 0.1 * *param;
        }
        *m = 0.9 * *m + 0.1 * grad;
        *v = 0.999 * *v + 0.001 * grad * grad;
        let (m_hat, v_hat) = (*m / (1.0 - 0.9_f64.powi(step)), *v / (1.0 - 0.999_f64.powi(step)));
        *param -= 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
    }

    #[test]
    fn twenty_steps_follow_the_published_update_on_every_size() {
        follows_the_published_update::<true>();
        follows_the_published_update::<false>();
    }

    fn follows_the_published_update<const DECOUPLED: bool>() {
        for isa in testable() {
            for n in [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100] {
                let mut param = normal(n, "param", 0);
                let mut exact: Vec<[f64; 3]> = param.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
                let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
                for step in 1..=20 {
                    let grad = normal(n, "grad", step);
                    step_on::<DECOUPLED>(isa, &mut param, &grad, &mut m, &mut v, &AdamW { step, ..SETTINGS });
                    for (state, &g) in exact.iter_mut().zip(&grad) {
                        exact_step(DECOUPLED, state, f64::from(g), step as i32);
                    }
                }
                for i in 0..n {
                    // Twenty steps, each with a few roundings relative to the parameter and to lr.
                    assert!((f64::from(param[i]) - exact[i][0]).abs() < 3e-6, "{isa:?} {n}");
                    assert!((f64::from(m[i]) - exact[i][1]).abs() < 1e-6);
                    assert!((f64::from(v[i]) - exact[i][2]).abs() < 1e-6 * exact[i][2]);
                }
            }
        }
    }

    #[test]
    fn the_thread_count_changes_no_bit() {
        let n = 3 * CHUNK + 5;
        let run = |threads| {
            let (mut param, mut m, mut v) = (normal(n, "param", 0), vec![0.0; n], vec![0.0; n]);
            let grad = normal(n, "grad", 1);
            with_threads(threads, || adamw_step(&mut param, &grad, &mut m, &mut v, &SETTINGS));
            (param, m, v)
        };
        assert_eq!(run(1), run(2));
    }
}
