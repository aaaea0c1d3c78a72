//! Every kernel once more, as plainly as it can be written, in f64: the oracle of the tests and the definition of what
//! the fast kernels compute. Nothing here is meant to be fast.

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
pub fn gemm(m: usize, k: usize, n: usize, a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
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
