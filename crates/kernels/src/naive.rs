//! Every kernel once more, as plainly as it can be written, in f64: the oracle of the tests and the definition of what
//! the fast kernels compute. Nothing here is meant to be fast.

use crate::elementwise::Unary;

/// The error function, by its series near zero and by the continued fraction of erfc elsewhere.
pub fn erf(x: f64) -> f64 {
    let t = x.abs();
    if t < 2.5 {
        let (mut term, mut sum) = (t, t);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -t * t / n;
            sum += term / (2.0 * n + 1.0);
        }
        return (sum * std::f64::consts::FRAC_2_SQRT_PI).copysign(x);
    }
    let mut fraction = t;
    for k in (1..100).rev() {
        fraction = t + f64::from(k) / 2.0 / fraction;
    }
    let erfc = (-t * t).exp() / (fraction * std::f64::consts::PI.sqrt());
    (1.0 - erfc).copysign(x)
}

/// `c[i][j] = sum over p of a(i, p) b(p, j)`, for operands given as functions of their indices.
pub fn gemm(
    m: usize,
    k: usize,
    n: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                c[i * n + j] += a(i, p) * b(p, j);
            }
        }
    }
    c
}

/// The function that `op` names.
pub fn unary(op: Unary, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match op {
        Unary::Relu => x.max(0.0),
        Unary::LeakyRelu(slope) => {
            if x > 0.0 {
                x
            } else {
                f64::from(slope) * x
            }
        }
        Unary::ReluSquared => x.max(0.0).powi(2),
        Unary::Elu(alpha) => {
            if x > 0.0 {
                x
            } else {
                f64::from(alpha) * x.exp_m1()
            }
        }
        Unary::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Unary::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Unary::QuickGelu => x * sigmoid(1.702 * x),
        Unary::Silu => x * sigmoid(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::Tanh => x.tanh(),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Square => x * x,
        Unary::Abs => x.abs(),
        Unary::Neg => -x,
        Unary::Reciprocal => 1.0 / x,
        Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Unary::LogSigmoid => -unary(Unary::Softplus, -x),
    }
}

/// Layer normalisation of one row: to mean 0 and variance 1, then scaled and shifted per column.
pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let rstd = 1.0 / (variance + eps).sqrt();
    x.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) * rstd * w + b).collect()
}

/// RMS normalisation of one row: divided by its root mean square, then scaled per column.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let rstd = 1.0 / (mean_square + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * rstd * w).collect()
}

/// ln of the sum of e^x, for one row.
pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

/// Cross-entropy of one row: against the target's class, softened, plus the square of the log-sum-exp.
pub fn cross_entropy(x: &[f64], target: usize, terms: crate::cross_entropy::Terms) -> f64 {
    let (smoothing, z_loss) = (f64::from(terms.label_smoothing), f64::from(terms.z_loss));
    let lse = log_sum_exp(x);
    let spread = smoothing / x.len() as f64;
    let weight = |i: usize| spread + if i == target { 1.0 - smoothing } else { 0.0 };
    x.iter().enumerate().map(|(i, x)| weight(i) * (lse - x)).sum::<f64>() + z_loss * lse * lse
}

/// e^x / sum of e^x, for one row.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let lse = log_sum_exp(x);
    x.iter().map(|x| (x - lse).exp()).collect()
}

/// The derivative of `f` with respect to each input, by central differences.
///
/// In f64 with this step the error is about 1e-10 relative, far below what f32 kernels are compared with.
pub fn gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (middle, step) = (x[i], 1e-5 * x[i].abs().max(1.0));
            x[i] = middle + step;
            let above = f(&x);
            x[i] = middle - step;
            let below = f(&x);
            x[i] = middle;
            (above - below) / (2.0 * step)
        })
        .collect()
}
