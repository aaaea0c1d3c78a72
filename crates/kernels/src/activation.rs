//! Functions of one variable, with their derivatives, on vectors.
//!
//! A [`Unary`] names one at run time; inside the loops it is a type that implements [`Function`], so that each loop is
//! compiled for one function.

use crate::math::{erfc_and_gauss, exp, log, log1p, sigmoid, tanh};
use crate::simd::Simd;

/// A function of one variable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// max(x, 0); derivative 0 at 0.
    Relu,
    /// x for x > 0, else the given slope times x.
    LeakyRelu(f32),
    /// max(x, 0)² (So et al. 2021, "Primer").
    ReluSquared,
    /// x for x > 0, else the given α times (e^x - 1) (Clevert et al. 2016, eq. 15).
    Elu(f32),
    /// x Φ(x) with the normal distribution Φ (by erf, not approximated).
    Gelu,
    /// GELU's tanh approximation: x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
    /// x σ(1.702 x).
    QuickGelu,
    /// x σ(x), also called swish.
    Silu,
    /// σ(x) = 1 / (1 + e^-x).
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// e^x.
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// x².
    Square,
    /// |x|; derivative 0 at 0.
    Abs,
    /// -x.
    Neg,
    /// 1 / x.
    Reciprocal,
    /// ln(1 + e^x).
    Softplus,
    /// ln σ(x).
    LogSigmoid,
}

/// A function known when a loop is compiled.
pub(crate) trait Function: Copy + Send + Sync {
    /// f(x)
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V;
    /// f'(x)
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V;
}

/// Something that can be done with any [`Function`].
pub(crate) trait Visit {
    fn visit(self, function: impl Function);
}

impl Unary {
    /// Every function, for tests and benchmarks.
    pub const ALL: [Unary; 19] = [
        Unary::Relu,
        Unary::LeakyRelu(0.01),
        Unary::ReluSquared,
        Unary::Elu(1.5),
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::QuickGelu,
        Unary::Silu,
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Exp,
        Unary::Log,
        Unary::Sqrt,
        Unary::Square,
        Unary::Abs,
        Unary::Neg,
        Unary::Reciprocal,
        Unary::Softplus,
        Unary::LogSigmoid,
    ];

    /// Calls `visitor` with the function as a type.
    pub(crate) fn with(self, visitor: impl Visit) {
        match self {
            Unary::Relu => visitor.visit(LeakyRelu(0.0)),
            Unary::LeakyRelu(slope) => visitor.visit(LeakyRelu(slope)),
            Unary::ReluSquared => visitor.visit(ReluSquared),
            Unary::Elu(alpha) => visitor.visit(Elu(alpha)),
            Unary::Gelu => visitor.visit(Gelu),
            Unary::GeluTanh => visitor.visit(GeluTanh),
            Unary::QuickGelu => visitor.visit(Swish(1.702)),
            Unary::Silu => visitor.visit(Swish(1.0)),
            Unary::Sigmoid => visitor.visit(Sigmoid),
            Unary::Tanh => visitor.visit(Tanh),
            Unary::Exp => visitor.visit(Exp),
            Unary::Log => visitor.visit(Log),
            Unary::Sqrt => visitor.visit(Sqrt),
            Unary::Square => visitor.visit(Square),
            Unary::Abs => visitor.visit(Abs),
            Unary::Neg => visitor.visit(Neg),
            Unary::Reciprocal => visitor.visit(Reciprocal),
            Unary::Softplus => visitor.visit(Softplus),
            Unary::LogSigmoid => visitor.visit(LogSigmoid),
        }
    }
}

#[derive(Clone, Copy)]
struct LeakyRelu(f32);
impl Function for LeakyRelu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        let below = s.mul(x, s.splat(self.0));
        // NaN is not <= 0 and so passes through.
        s.select(s.le(x, s.zero()), below, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.select(s.gt(x, s.zero()), s.splat(1.0), s.splat(self.0))
    }
}

#[derive(Clone, Copy)]
struct ReluSquared;
impl Function for ReluSquared {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        // The order of operands keeps NaN.
        let x = s.max(s.zero(), x);
        s.mul(x, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        let x = s.max(s.zero(), x);
        s.add(x, x)
    }
}

#[derive(Clone, Copy)]
struct Elu(f32);
impl Function for Elu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        // e^x - 1 = 2t / (1 - t) with t = tanh(x / 2) does not cancel near zero, and 1 - t is at least 1 where x <= 0.
        let t = tanh(s, s.mul(x, s.splat(0.5)));
        let below = s.div(s.mul(t, s.splat(2.0 * self.0)), s.sub(s.splat(1.0), t));
        s.select(s.gt(x, s.zero()), x, below)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.select(s.gt(x, s.zero()), s.splat(1.0), s.mul(exp(s, x), s.splat(self.0)))
    }
}

#[derive(Clone, Copy)]
struct Gelu;
impl Gelu {
    /// (t, erfc(t), e^(-t²)) with t = |x| / √2, bounded so that no infinity meets a zero.
    #[inline(always)]
    fn parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V, S::V) {
        let t = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = s.min(s.splat(30.0), t);
        let (erfc, gauss) = erfc_and_gauss(s, t);
        (t, erfc, gauss)
    }
}
impl Function for Gelu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        let (t, erfc, _) = Self::parts(s, x);
        // |x| erfc(|x| / √2) / 2: what the tail takes away from x, or all there is for negative x.
        let tail = s.mul(s.mul(t, erfc), s.splat(std::f32::consts::FRAC_1_SQRT_2));
        s.select(s.lt(x, s.zero()), s.neg(tail), s.sub(x, tail))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        const INV_SQRT_TAU: f32 = 0.398_942_3;
        let (t, erfc, gauss) = Self::parts(s, x);
        let half = s.mul(erfc, s.splat(0.5));
        let distribution = s.select(s.lt(x, s.zero()), half, s.sub(s.splat(1.0), half));
        // x bounded like t: the density is zero by then.
        let x = s.with_sign(s.mul(t, s.splat(std::f32::consts::SQRT_2)), x);
        s.fma(x, s.mul(gauss, s.splat(INV_SQRT_TAU)), distribution)
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;
const GELU_CUBIC: f32 = 0.044_715;
/// 2 √(2/π): (1 + tanh u) / 2 is σ(2u), so the function is x σ(TWICE (x + CUBIC x³)).
const GELU_TWICE: f32 = 1.595_769;
impl Function for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        let inner = s.mul(x, s.fma(s.mul(x, x), s.splat(GELU_TWICE * GELU_CUBIC), s.splat(GELU_TWICE)));
        s.mul(x, sigmoid(s, inner))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        // From 12 on the slope is 0 or 1 in f32, and the square of x stays in range.
        let x = s.max(s.splat(-12.0), s.min(s.splat(12.0), x));
        let x2 = s.mul(x, x);
        let inner = s.mul(x, s.fma(x2, s.splat(GELU_TWICE * GELU_CUBIC), s.splat(GELU_TWICE)));
        let y = sigmoid(s, inner);
        let inner_slope = s.fma(x2, s.splat(3.0 * GELU_TWICE * GELU_CUBIC), s.splat(GELU_TWICE));
        s.fma(s.mul(s.mul(x, inner_slope), y), s.sub(s.splat(1.0), y), y)
    }
}

/// x σ(βx)
#[derive(Clone, Copy)]
struct Swish(f32);
impl Function for Swish {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.mul(x, sigmoid(s, s.mul(x, s.splat(self.0))))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        let bx = s.mul(x, s.splat(self.0));
        let y = sigmoid(s, bx);
        s.mul(y, s.fma(bx, s.sub(s.splat(1.0), y), s.splat(1.0)))
    }
}

#[derive(Clone, Copy)]
struct Sigmoid;
impl Function for Sigmoid {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        sigmoid(s, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        // σ(x) σ(-x) keeps its precision for large x, where 1 - σ(x) cancels.
        s.mul(sigmoid(s, x), sigmoid(s, s.neg(x)))
    }
}

#[derive(Clone, Copy)]
struct Tanh;
impl Function for Tanh {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        tanh(s, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        let y = tanh(s, x);
        s.mul(s.sub(s.splat(1.0), y), s.add(s.splat(1.0), y))
    }
}

#[derive(Clone, Copy)]
struct Exp;
impl Function for Exp {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        exp(s, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        exp(s, x)
    }
}

#[derive(Clone, Copy)]
struct Log;
impl Function for Log {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        log(s, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.div(s.splat(1.0), x)
    }
}

#[derive(Clone, Copy)]
struct Sqrt;
impl Function for Sqrt {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.sqrt(x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.div(s.splat(0.5), s.sqrt(x))
    }
}

#[derive(Clone, Copy)]
struct Square;
impl Function for Square {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.mul(x, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.add(x, x)
    }
}

#[derive(Clone, Copy)]
struct Abs;
impl Function for Abs {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.abs(x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.select(s.eq(x, s.zero()), s.zero(), s.with_sign(s.splat(1.0), x))
    }
}

#[derive(Clone, Copy)]
struct Neg;
impl Function for Neg {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.neg(x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, _x: S::V) -> S::V {
        s.splat(-1.0)
    }
}

#[derive(Clone, Copy)]
struct Reciprocal;
impl Function for Reciprocal {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.div(s.splat(1.0), x)
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        let y = s.div(s.splat(1.0), x);
        s.neg(s.mul(y, y))
    }
}

#[derive(Clone, Copy)]
struct Softplus;
impl Function for Softplus {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        // max(x, 0) + ln(1 + e^-|x|) neither overflows nor cancels; the order of operands keeps NaN.
        s.add(s.max(s.zero(), x), log1p(s, exp(s, s.neg(s.abs(x)))))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        sigmoid(s, x)
    }
}

#[derive(Clone, Copy)]
struct LogSigmoid;
impl Function for LogSigmoid {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.neg(Softplus.value(s, s.neg(x)))
    }
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        sigmoid(s, s.neg(x))
    }
}
