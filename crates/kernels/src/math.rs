//! Exponential, logarithm and their relatives on vectors, generic over the instruction set.
//!
//! Each reduces its argument to a short interval and evaluates a polynomial there (coefficients are minimax fits made
//! for this crate). Errors measured over the whole range are stated per function and held by tests.

use crate::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has so few bits that its product with an exponent is exact even without fma.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Horner's scheme; coefficients from the highest power down.
#[inline(always)]
pub fn polynomial<S: Simd>(s: S, x: S::V, coefficients: &[f32]) -> S::V {
    let mut acc = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        acc = s.fma(acc, x, s.splat(c));
    }
    acc
}

/// `x = n ln 2 + r` with |r| <= ln(2) / 2: returns (n, r).
#[inline(always)]
fn reduce_by_ln2<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.neg_fma(n, s.splat(LN2_HIGH), x);
    (n, s.neg_fma(n, s.splat(LN2_LOW), r))
}

/// `e^x` within 2 ulp; 0 below -104, infinity above 88.73, denormal results included, NaN stays NaN.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // The operand order keeps NaN: `max` and `min` return the second where either is NaN.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let (n, r) = reduce_by_ln2(s, x);
    let p = polynomial(s, r, &[1.381_446_7e-3, 8.368_781e-3, 4.166_839_4e-2, 0.166_665_2, 0.499_999_93]);
    let p = s.fma(s.mul(r, r), p, s.add(r, s.splat(1.0)));
    s.scale_pow2(p, n)
}

/// `e^x - 1` for |x| <= 40 without cancellation near zero.
#[inline(always)]
fn exp_minus_one<S: Simd>(s: S, x: S::V) -> S::V {
    let (n, r) = reduce_by_ln2(s, x);
    let p = polynomial(s, r, &[1.388_251e-3, 8.366_58e-3, 4.166_72e-2, 0.166_665_43, 0.499_999_98]);
    let q = s.fma(s.mul(r, r), p, r);
    let scale = s.scale_pow2(s.splat(1.0), n);
    s.fma(q, scale, s.sub(scale, s.splat(1.0)))
}

/// `tanh x` within 4 ulp.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // tanh is 1 in f32 from 9.02 on.
    let x = s.max(s.splat(-10.0), s.min(s.splat(10.0), x));
    let e = exp_minus_one(s, s.add(x, x));
    s.div(e, s.add(e, s.splat(2.0)))
}

/// `1 / (1 + e^-x)` within 4 ulp (zero below -88.7, where the exact value is denormal).
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.neg(x))))
}

/// Natural logarithm within 2 ulp: -infinity at 0, NaN below, infinity at infinity; denormals are read as such.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::V) -> S::V {
    let tiny = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let normal = s.select(tiny, s.mul(x, s.splat(8_388_608.0)), x);
    let (m, e) = s.split_pow2(normal);
    let e = s.sub(e, s.select(tiny, s.splat(23.0), s.zero()));
    let one = s.splat(1.0);
    // ln m = 2 artanh((m - 1) / (m + 1)) by its series; |t| <= 0.2.
    let t = s.div(s.sub(m, one), s.add(m, one));
    let t2 = s.mul(t, t);
    let p = polynomial(s, t2, &[2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0]);
    let ln_m = s.fma(s.mul(t, t2), p, s.add(t, t));
    let y = s.fma(e, s.splat(LN2_HIGH), s.fma(e, s.splat(LN2_LOW), ln_m));
    let y = s.select(s.eq(x, s.zero()), s.splat(f32::NEG_INFINITY), y);
    let y = s.select(s.eq(x, s.splat(f32::INFINITY)), x, y);
    s.select(s.ge(x, s.zero()), y, s.splat(f32::NAN))
}

/// `ln(1 + x)` for x >= 0, accurate for small x.
#[inline(always)]
pub fn log1p<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let w = s.add(one, x);
    // What rounding 1 + x lost, put back to first order.
    let lost = s.sub(x, s.sub(w, one));
    s.add(log(s, w), s.div(lost, w))
}

/// `(erfc(t), e^(-t^2))` for t >= 0, the first within 1e-6 relative for t <= 3.
///
/// erfc(t) = e^(-t^2) q(u) with u = 1 / (1 + 0.4 t) and q a polynomial: one exponential gives the normal distribution
/// and its density, which is what GELU and its derivative need, and the tail keeps its relative accuracy.
#[inline(always)]
pub fn erfc_and_gauss<S: Simd>(s: S, t: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let gauss = exp(s, s.neg(s.mul(t, t)));
    let u = s.div(one, s.fma(t, s.splat(0.4), one));
    let q = polynomial(
        s,
        u,
        &[
            4.421_698e-2,
            -0.154_680_98,
            0.113_533_265,
            5.435_495e-2,
            0.102_805_93,
            0.183_665_75,
            0.204_346_84,
            0.226_103_56,
            0.225_653_8,
        ],
    );
    (s.mul(s.mul(gauss, u), q), gauss)
}

/// `erf x` within 5e-7 absolute.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let (erfc, _) = erfc_and_gauss(s, s.abs(x));
    s.with_sign(s.max(s.zero(), s.sub(s.splat(1.0), erfc)), x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::testable;
    use crate::naive;
    use crate::simd::{Kernel, dispatch_on};

    /// Applies a vector function, named by its place in the table below, to a slice.
    struct Map<'a> {
        function: Function,
        data: &'a mut [f32],
    }
    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        Tanh,
        Sigmoid,
        Log,
        Log1p,
        Erf,
    }
    impl Kernel for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for piece in self.data.chunks_mut(S::LANES) {
                let x = s.load_partial(piece);
                let y = match self.function {
                    Function::Exp => exp(s, x),
                    Function::Tanh => tanh(s, x),
                    Function::Sigmoid => sigmoid(s, x),
                    Function::Log => log(s, x),
                    Function::Log1p => log1p(s, x),
                    Function::Erf => erf(s, x),
                };
                s.store_partial(piece, y);
            }
        }
    }

    fn at(isa: crate::Isa, function: Function, x: &[f32]) -> Vec<f32> {
        let mut data = x.to_vec();
        dispatch_on(isa, Map { function, data: &mut data });
        data
    }

    /// Distance in units of the last place of the exact value (of the smallest normal below it).
    fn ulps(got: f32, exact: f64) -> f64 {
        let unit = (exact.abs() as f32).max(f32::MIN_POSITIVE);
        let unit = f64::from(f32::from_bits(unit.to_bits() + 1)) - f64::from(unit);
        (f64::from(got) - exact).abs() / unit
    }

    fn grid(low: f32, high: f32) -> Vec<f32> {
        (0..=200_000).map(|i| low + (high - low) * (i as f32 / 200_000.0)).collect()
    }

    fn worst(isa: crate::Isa, function: Function, x: &[f32], exact: impl Fn(f64) -> f64) -> f64 {
        let got = at(isa, function, x);
        let (mut worst, mut place) = (0.0, 0.0);
        for (&x, &y) in x.iter().zip(&got) {
            let e = ulps(y, exact(f64::from(x)));
            if e.is_nan() || e > worst {
                (worst, place) = (e, x);
            }
        }
        println!("{isa:?} {function:?}: {worst:.2} ulp at {place}");
        worst
    }

    #[test]
    fn every_function_stays_within_its_stated_error() {
        for isa in testable() {
            assert!(worst(isa, Function::Exp, &grid(-87.3, 88.7), f64::exp) <= 2.0);
            assert!(worst(isa, Function::Exp, &grid(-1.0, 1.0), f64::exp) <= 2.0);
            assert!(worst(isa, Function::Tanh, &grid(-12.0, 12.0), f64::tanh) <= 4.0);
            assert!(worst(isa, Function::Tanh, &grid(-1e-3, 1e-3), f64::tanh) <= 4.0);
            assert!(worst(isa, Function::Sigmoid, &grid(-80.0, 80.0), |x| 1.0 / (1.0 + (-x).exp())) <= 4.0);
            assert!(worst(isa, Function::Log, &grid(1e-6, 4.0), f64::ln) <= 2.0);
            assert!(worst(isa, Function::Log, &grid(1.0, 1e30), f64::ln) <= 2.0);
            assert!(worst(isa, Function::Log1p, &grid(0.0, 2.0), f64::ln_1p) <= 4.0);
        }
    }

    #[test]
    fn erf_stays_within_its_stated_error() {
        let x = grid(-6.0, 6.0);
        for isa in testable() {
            for (&x, y) in x.iter().zip(at(isa, Function::Erf, &x)) {
                let exact = naive::erf(f64::from(x));
                assert!((f64::from(y) - exact).abs() < 5e-7, "{isa:?} erf({x}) = {y}, exact {exact}");
            }
        }
    }

    #[test]
    fn limits_are_exact_and_nan_stays_nan() {
        let inf = f32::INFINITY;
        for isa in testable() {
            let y = at(isa, Function::Exp, &[-inf, -1000.0, -110.0, 0.0, 89.0, 1000.0, inf, f32::NAN]);
            assert_eq!(&y[..7], &[0.0, 0.0, 0.0, 1.0, inf, inf, inf], "{isa:?}");
            assert!(y[7].is_nan());
            let denormal = at(isa, Function::Exp, &[-100.0])[0];
            assert!((f64::from(denormal) / (-100.0_f64).exp() - 1.0).abs() < 0.03, "{isa:?} {denormal}");
            let y = at(isa, Function::Log, &[0.0, 1.0, inf, -1.0, f32::NAN, 1e-40]);
            assert_eq!(&y[..3], &[-inf, 0.0, inf], "{isa:?}");
            assert!(y[3].is_nan() && y[4].is_nan());
            assert!((y[5] - -92.103_4).abs() < 1e-3, "{isa:?} {}", y[5]);
            assert_eq!(at(isa, Function::Tanh, &[-inf, -0.0, 0.0, inf]), [-1.0, 0.0, 0.0, 1.0]);
            assert_eq!(at(isa, Function::Sigmoid, &[-inf, 0.0, inf]), [0.0, 0.5, 1.0]);
            assert_eq!(at(isa, Function::Erf, &[-inf, inf]), [-1.0, 1.0]);
            for f in [Function::Tanh, Function::Sigmoid, Function::Erf] {
                assert!(at(isa, f, &[f32::NAN])[0].is_nan(), "{isa:?} {f:?}");
            }
        }
    }
}
