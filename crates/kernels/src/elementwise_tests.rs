//! Element-wise kernels against their f64 definitions, on every instruction set.

use crate::elementwise::*;
use crate::isa::testable;
use crate::naive;
use crate::parallel::{CHUNK, with_threads};
use crate::rng::Rng;
use half::bf16;

const SIZES: [usize; 14] = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1000, CHUNK + 9];

fn normal(n: usize, purpose: &str) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Rng::new(1, purpose, n as u64).fill_normal(&mut x, 0.0, 2.0);
    x
}

/// Inputs inside the function's domain and away from its kinks.
fn inputs(op: Unary, n: usize) -> Vec<f32> {
    let mut x = normal(n, "x");
    for x in &mut x {
        match op {
            Unary::Log | Unary::Sqrt => *x = x.abs() + 0.05,
            Unary::Relu | Unary::LeakyRelu(_) | Unary::Elu(_) | Unary::Abs | Unary::Reciprocal => {
                *x += 0.05_f32.copysign(*x)
            }
            _ => {}
        }
    }
    x
}

/// Within a few units of 2^-24 of the value, or of the numbers it is made of.
fn near(got: f32, exact: f64, scale: f64) -> bool {
    (f64::from(got) - exact).abs() <= 2e-6 * (exact.abs() + scale)
}

#[test]
fn every_activation_equals_its_definition() {
    for isa in testable() {
        for op in Unary::ALL {
            for n in SIZES {
                let x = inputs(op, n);
                let mut y = vec![f32::NAN; n];
                unary_on(isa, op, &mut y, &x);
                for (&x, &y) in x.iter().zip(&y) {
                    let exact = naive::unary(op, f64::from(x));
                    assert!(near(y, exact, 0.1), "{isa:?} {op:?}({x}) = {y}, exact {exact}");
                }
            }
        }
    }
}

#[test]
fn every_activation_gradient_equals_finite_differences() {
    for isa in testable() {
        for op in Unary::ALL {
            for n in SIZES {
                let (x, dy) = (inputs(op, n), normal(n, "dy"));
                let mut dx = vec![f32::NAN; n];
                unary_backward_on(isa, op, &mut dx, &x, &dy);
                for ((&x, &dx), &dy) in x.iter().zip(&dx).zip(&dy) {
                    let slope = naive::gradient(&[f64::from(x)], |x| naive::unary(op, x[0]))[0];
                    let exact = slope * f64::from(dy);
                    assert!(near(dx, exact, f64::from(dy.abs())), "{isa:?} {op:?}'({x}) * {dy} = {dx}, exact {exact}");
                }
            }
        }
    }
}

#[test]
fn activations_of_extreme_inputs_stay_finite_where_their_limits_are() {
    let extreme = [-1e30_f32, -100.0, -20.0, 20.0, 100.0, 1e30];
    for isa in testable() {
        for op in [Unary::Gelu, Unary::GeluTanh, Unary::QuickGelu, Unary::Silu, Unary::Softplus, Unary::Tanh] {
            let (mut y, mut dx) = ([0.0; 6], [0.0; 6]);
            unary_on(isa, op, &mut y, &extreme);
            unary_backward_on(isa, op, &mut dx, &extreme, &[1.0; 6]);
            for i in 0..6 {
                let exact = naive::unary(op, f64::from(extreme[i]));
                assert!(y[i].is_finite() && near(y[i], exact, 1.0), "{isa:?} {op:?}({}) = {}", extreme[i], y[i]);
                let slope = if extreme[i] > 0.0 && op != Unary::Tanh { 1.0 } else { 0.0 };
                assert!(near(dx[i], slope, 1.0), "{isa:?} {op:?}'({}) = {}", extreme[i], dx[i]);
            }
        }
        for op in Unary::ALL {
            let mut y = [0.0];
            unary_on(isa, op, &mut y, &[f32::NAN]);
            assert!(y[0].is_nan(), "{isa:?} {op:?} hides NaN");
        }
    }
}

#[test]
fn the_second_operand_repeats() {
    let ops = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Min, Binary::Max];
    for isa in testable() {
        for (n, period) in
            [(0, 4), (1, 1), (9, 1), (9, 9), (9, 3), (100, 20), (33, 11), (2 * CHUNK + 2, 1), (3 * CHUNK, 96)]
        {
            let (a, b) = (normal(n, "a"), normal(period, "b"));
            for op in ops {
                let mut out = vec![f32::NAN; n];
                binary_on(isa, op, &mut out, &a, &b);
                for i in 0..n {
                    let (a, b) = (a[i], b[i % period]);
                    let exact = match op {
                        Binary::Add => a + b,
                        Binary::Sub => a - b,
                        Binary::Mul => a * b,
                        Binary::Div => a / b,
                        Binary::Min => a.min(b),
                        Binary::Max => a.max(b),
                    };
                    assert_eq!(out[i], exact, "{isa:?} {op:?} {n} {period}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "binary Add: 3 does not divide 10")]
fn an_operand_that_does_not_fit_panics() {
    binary(Binary::Add, &mut [0.0; 10], &[0.0; 10], &[0.0; 3]);
}

#[test]
fn gates_and_their_gradients_equal_their_definitions() {
    for isa in testable() {
        for act in [Unary::Silu, Unary::Gelu, Unary::GeluTanh, Unary::Sigmoid] {
            for n in SIZES {
                let (gate, up, dout) = (normal(n, "gate"), normal(n, "up"), normal(n, "dout"));
                let (mut out, mut dgate, mut dup) = (vec![f32::NAN; n], vec![f32::NAN; n], vec![f32::NAN; n]);
                gated_on(isa, act, &mut out, &gate, &up);
                gated_backward_on(isa, act, [&mut dgate, &mut dup], [&gate, &up, &dout]);
                for i in 0..n {
                    let (g, u, d) = (f64::from(gate[i]), f64::from(up[i]), f64::from(dout[i]));
                    let slopes = naive::gradient(&[g, u], |x| naive::unary(act, x[0]) * x[1] * d);
                    assert!(near(out[i], naive::unary(act, g) * u, u.abs()), "{isa:?} {act:?}");
                    assert!(near(dgate[i], slopes[0], (u * d).abs()), "{isa:?} {act:?} dgate");
                    assert!(near(dup[i], slopes[1], d.abs()), "{isa:?} {act:?} dup");
                }
            }
        }
    }
}

#[test]
fn sums_into_a_slice_add_to_it() {
    for n in SIZES {
        let (x, before) = (normal(n, "x"), normal(n, "y"));
        let (mut y, mut z, mut w) = (before.clone(), before.clone(), vec![f32::NAN; n]);
        let mut mean = before.clone();
        lerp(&mut mean, 0.125, &x);
        axpy(&mut y, 0.5, &x);
        add_assign(&mut z, &x);
        affine(&mut w, &x, -2.0, 0.25);
        for i in 0..n {
            assert!(near(y[i], f64::from(before[i]) + 0.5 * f64::from(x[i]), 1.0));
            assert_eq!(z[i], before[i] + x[i]);
            assert!(near(mean[i], 0.875 * f64::from(before[i]) + 0.125 * f64::from(x[i]), 1.0));
            assert!(near(w[i], 0.25 - 2.0 * f64::from(x[i]), 1.0));
        }
    }
}

#[test]
fn dropout_keeps_the_expected_share_and_draws_the_same_mask_again() {
    for isa in testable() {
        for n in SIZES {
            let x = vec![2.0_f32; n];
            let rng = Rng::new(5, "dropout", 3);
            let run = |threads| {
                let mut out = vec![f32::NAN; n];
                with_threads(threads, || dropout_on(isa, &mut out, &x, 0.25, rng));
                out
            };
            let out = run(1);
            assert_eq!(out, run(2));
            for (i, &y) in out.iter().enumerate() {
                let kept = rng.uniform_f32(i as u64) < 0.75;
                assert_eq!(y, if kept { 2.0 * (1.0 / 0.75) } else { 0.0 }, "{isa:?} {n} [{i}]");
            }
            if n > CHUNK {
                let share = out.iter().filter(|&&y| y > 0.0).count() as f64 / n as f64;
                // Four standard deviations of a share of 16 thousand.
                assert!((share - 0.75).abs() < 0.014, "{share}");
            }
        }
    }
    let (mut all, mut other) = ([0.0; 40], [0.0; 40]);
    dropout(&mut all, &[1.0; 40], 0.0, 1, 1);
    assert_eq!(all, [1.0; 40]);
    dropout(&mut all, &[1.0; 40], 0.5, 1, 1);
    dropout(&mut other, &[1.0; 40], 0.5, 1, 2);
    assert_ne!(all, other, "another step draws another mask");
}

#[test]
fn activations_kept_in_bf16_are_those_of_the_widened_values() {
    // More than one piece, and a rest.
    let n = 2500;
    let values = |purpose: &str| {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, 0).fill_normal(&mut x, 0.0, 2.0);
        x
    };
    let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let (x, up, dy) = (narrow(&values("x")), narrow(&values("up")), values("dy"));
    let (wide_x, wide_up) = (wide(&x), wide(&up));
    for op in [Unary::GeluTanh, Unary::Silu] {
        let (mut out, mut want) = (vec![bf16::ZERO; n], vec![0.0; n]);
        unary_bf16(op, &mut out, &x);
        unary(op, &mut want, &wide_x);
        assert_eq!(out, narrow(&want), "{op:?}");
        gated_bf16(op, &mut out, &x, &up);
        gated(op, &mut want, &wide_x, &wide_up);
        assert_eq!(out, narrow(&want), "gated {op:?}");
        let (mut dx, mut dup, mut want_up) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        unary_backward_bf16(op, &mut dx, &x, &dy);
        unary_backward(op, &mut want, &wide_x, &dy);
        assert_eq!(dx, want, "{op:?}");
        gated_backward_bf16(op, &mut dx, &mut dup, &x, &up, &dy);
        gated_backward(op, &mut want, &mut want_up, &wide_x, &wide_up, &dy);
        assert_eq!((dx, dup), (want, want_up), "gated {op:?}");
    }
}
