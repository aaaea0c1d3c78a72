//! Element-wise loops: activations and their gradients, arithmetic with broadcasting, gates, dropout.
//!
//! Every function writes its whole output; those that add to it say so. Large inputs are split over the rayon pool at
//! fixed places.

use crate::activation::{Function, Visit};
use crate::convert::{bf16_to_f32, f32_to_bf16};
use crate::isa::{Isa, isa};
use crate::parallel::{CHUNK, for_chunks, for_chunks2};
use crate::rng::{Rng, philox4x32};
use crate::simd::{Kernel, Simd, dispatch_on};
use half::bf16;

pub use crate::activation::Unary;
pub use crate::reduce::{all_finite, column_sums, dot, max_abs, sum, sum_of_squares};

/// `out = op(x)`
pub fn unary(op: Unary, out: &mut [f32], x: &[f32]) {
    unary_on(isa(), op, out, x);
}

/// `dx = dy * op'(x)`
pub fn unary_backward(op: Unary, dx: &mut [f32], x: &[f32], dy: &[f32]) {
    unary_backward_on(isa(), op, dx, x, dy);
}

/// Elements that are widened at a time: they stay in the first-level cache.
const PIECE: usize = 1024;

/// `out = op(x)` for numbers kept in bf16; the arithmetic is f32.
pub fn unary_bf16(op: Unary, out: &mut [bf16], x: &[bf16]) {
    assert_eq!(out.len(), x.len(), "unary {op:?}: lengths differ");
    op.with(UnaryBf16 { isa: isa(), out, x });
}

/// `dx = dy * op'(x)` for an `x` kept in bf16.
pub fn unary_backward_bf16(op: Unary, dx: &mut [f32], x: &[bf16], dy: &[f32]) {
    assert!(dx.len() == x.len() && dy.len() == x.len(), "unary_backward {op:?}: lengths differ");
    for_chunks(dx, CHUNK, |at, dx| {
        let mut buffer = [0.0; PIECE];
        for (i, dx) in dx.chunks_mut(PIECE).enumerate() {
            let range = at + i * PIECE..at + i * PIECE + dx.len();
            unary_backward(op, dx, widened(&mut buffer, &x[range.clone()]), &dy[range]);
        }
    });
}

/// `out = act(gate) * up` for numbers kept in bf16; the arithmetic is f32.
pub fn gated_bf16(act: Unary, out: &mut [bf16], gate: &[bf16], up: &[bf16]) {
    assert!(out.len() == gate.len() && up.len() == gate.len(), "gated {act:?}: lengths differ");
    map_bf16(out, |at, wide| {
        let (mut gates, mut ups) = ([0.0; PIECE], [0.0; PIECE]);
        let range = at..at + wide.len();
        gated(act, wide, widened(&mut gates, &gate[range.clone()]), widened(&mut ups, &up[range]));
    });
}

/// Gradients of gate and up, which are kept in bf16.
pub fn gated_backward_bf16(act: Unary, dgate: &mut [f32], dup: &mut [f32], gate: &[bf16], up: &[bf16], dy: &[f32]) {
    assert!(
        dgate.len() == dup.len() && gate.len() == up.len() && dgate.len() == up.len(),
        "gated {act:?}: lengths differ"
    );
    for_chunks2((dgate, CHUNK), (dup, CHUNK), |index, dgate, dup| {
        let (mut gates, mut ups) = ([0.0; PIECE], [0.0; PIECE]);
        for (i, (dgate, dup)) in dgate.chunks_mut(PIECE).zip(dup.chunks_mut(PIECE)).enumerate() {
            let at = index * CHUNK + i * PIECE;
            let range = at..at + dgate.len();
            let (gate, up) = (widened(&mut gates, &gate[range.clone()]), widened(&mut ups, &up[range.clone()]));
            gated_backward(act, dgate, dup, gate, up, &dy[range]);
        }
    });
}

/// Fills `out` with what `work(place, piece)` computes in f32.
fn map_bf16(out: &mut [bf16], work: impl Fn(usize, &mut [f32]) + Sync) {
    for_chunks(out, CHUNK, |at, out| {
        let mut buffer = [0.0; PIECE];
        for (i, out) in out.chunks_mut(PIECE).enumerate() {
            let wide = &mut buffer[..out.len()];
            work(at + i * PIECE, wide);
            f32_to_bf16(out, wide);
        }
    });
}

fn widened<'a>(buffer: &'a mut [f32; PIECE], x: &[bf16]) -> &'a [f32] {
    let wide = &mut buffer[..x.len()];
    bf16_to_f32(wide, x);
    wide
}

pub(crate) fn unary_on(isa: Isa, op: Unary, out: &mut [f32], x: &[f32]) {
    assert_eq!(out.len(), x.len(), "unary {op:?}: lengths differ");
    op.with(UnaryForward { isa, out, x });
}

pub(crate) fn unary_backward_on(isa: Isa, op: Unary, dx: &mut [f32], x: &[f32], dy: &[f32]) {
    assert!(dx.len() == x.len() && dy.len() == x.len(), "unary_backward {op:?}: lengths differ");
    op.with(UnaryBackward { isa, dx, x, dy });
}

struct UnaryForward<'a> {
    isa: Isa,
    out: &'a mut [f32],
    x: &'a [f32],
}
impl Visit for UnaryForward<'_> {
    fn visit(self, function: impl Function) {
        for_chunks(self.out, CHUNK, |at, out| {
            dispatch_on(self.isa, Map1 { f: Value(function), x: &self.x[at..at + out.len()], out });
        });
    }
}

struct UnaryBf16<'a> {
    isa: Isa,
    out: &'a mut [bf16],
    x: &'a [bf16],
}
impl Visit for UnaryBf16<'_> {
    fn visit(self, function: impl Function) {
        for_chunks(self.out, CHUNK, |at, out| {
            dispatch_on(self.isa, MapBf16 { f: Value(function), x: &self.x[at..at + out.len()], out });
        });
    }
}

struct UnaryBackward<'a> {
    isa: Isa,
    dx: &'a mut [f32],
    x: &'a [f32],
    dy: &'a [f32],
}
impl Visit for UnaryBackward<'_> {
    fn visit(self, function: impl Function) {
        for_chunks(self.dx, CHUNK, |at, out| {
            let range = at..at + out.len();
            dispatch_on(
                self.isa,
                Map2 { f: ValueTimesSlope(function), out, a: &self.dy[range.clone()], b: &self.x[range] },
            );
        });
    }
}

/// A vector function of one input.
trait Op1: Copy {
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V;
}

/// A vector function of two inputs.
trait Op2: Copy {
    fn apply<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V;
}

#[derive(Clone, Copy)]
struct Value<F>(F);
impl<F: Function> Op1 for Value<F> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        self.0.value(s, x)
    }
}

#[derive(Clone, Copy)]
struct ValueTimesSlope<F>(F);
impl<F: Function> Op2 for ValueTimesSlope<F> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, dy: S::V, x: S::V) -> S::V {
        s.mul(dy, self.0.slope(s, x))
    }
}

#[derive(Clone, Copy)]
struct GatedValue<F>(F);
impl<F: Function> Op2 for GatedValue<F> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, gate: S::V, up: S::V) -> S::V {
        s.mul(self.0.value(s, gate), up)
    }
}

/// `scale * x + shift`
#[derive(Clone, Copy)]
struct Affine(f32, f32);
impl Op1 for Affine {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.fma(x, s.splat(self.0), s.splat(self.1))
    }
}

/// `out[i] = f(x[i])`
struct Map1<'a, F> {
    f: F,
    out: &'a mut [f32],
    x: &'a [f32],
}
impl<F: Op1> Kernel for Map1<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut out = self.out.chunks_exact_mut(S::LANES);
        let mut x = self.x.chunks_exact(S::LANES);
        for (out, x) in (&mut out).zip(&mut x) {
            s.store(out, self.f.apply(s, s.load(x)));
        }
        s.store_partial(out.into_remainder(), self.f.apply(s, s.load_partial(x.remainder())));
    }
}

/// `out[i] = f(x[i])` of bf16.
struct MapBf16<'a, F> {
    f: F,
    out: &'a mut [bf16],
    x: &'a [bf16],
}
impl<F: Op1> Kernel for MapBf16<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut out = self.out.chunks_exact_mut(S::LANES);
        let mut x = self.x.chunks_exact(S::LANES);
        for (out, x) in (&mut out).zip(&mut x) {
            s.store_bf16(out, self.f.apply(s, s.load_bf16(x)));
        }
        s.store_bf16_partial(out.into_remainder(), self.f.apply(s, s.load_bf16_partial(x.remainder())));
    }
}

/// `out[i] = f(a[i], b[i])`
struct Map2<'a, F> {
    f: F,
    out: &'a mut [f32],
    a: &'a [f32],
    b: &'a [f32],
}
impl<F: Op2> Kernel for Map2<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut out = self.out.chunks_exact_mut(S::LANES);
        let mut a = self.a.chunks_exact(S::LANES);
        let mut b = self.b.chunks_exact(S::LANES);
        for ((out, a), b) in (&mut out).zip(&mut a).zip(&mut b) {
            s.store(out, self.f.apply(s, s.load(a), s.load(b)));
        }
        let (a, b) = (s.load_partial(a.remainder()), s.load_partial(b.remainder()));
        s.store_partial(out.into_remainder(), self.f.apply(s, a, b));
    }
}

/// `out[i] = f(a[i], b)`
struct MapScalar<'a, F> {
    f: F,
    out: &'a mut [f32],
    a: &'a [f32],
    b: f32,
}
impl<F: Op2> Kernel for MapScalar<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let b = s.splat(self.b);
        for (out, a) in self.out.chunks_mut(S::LANES).zip(self.a.chunks(S::LANES)) {
            s.store_partial(out, self.f.apply(s, s.load_partial(a), b));
        }
    }
}

/// `y[i] = f(y[i], x[i])`
struct Update<'a, F> {
    f: F,
    y: &'a mut [f32],
    x: &'a [f32],
}
impl<F: Op2> Kernel for Update<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut y = self.y.chunks_exact_mut(S::LANES);
        let mut x = self.x.chunks_exact(S::LANES);
        for (y, x) in (&mut y).zip(&mut x) {
            let v = self.f.apply(s, s.load(y), s.load(x));
            s.store(y, v);
        }
        let y = y.into_remainder();
        let v = self.f.apply(s, s.load_partial(y), s.load_partial(x.remainder()));
        s.store_partial(y, v);
    }
}

/// An operation on two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b
    Div,
    /// The smaller; b where either is NaN.
    Min,
    /// The larger; b where either is NaN.
    Max,
}

impl Op2 for Binary {
    // The match is on a loop constant: the compiler moves it out of the loop.
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::V, b: S::V) -> S::V {
        match self {
            Binary::Add => s.add(a, b),
            Binary::Sub => s.sub(a, b),
            Binary::Mul => s.mul(a, b),
            Binary::Div => s.div(a, b),
            Binary::Min => s.min(a, b),
            Binary::Max => s.max(a, b),
        }
    }
}

/// `out[i] = op(a[i], b[i % b.len()])`: `b` repeats, as a bias does over rows. Its length must divide that of `a`.
pub fn binary(op: Binary, out: &mut [f32], a: &[f32], b: &[f32]) {
    binary_on(isa(), op, out, a, b);
}

pub(crate) fn binary_on(isa: Isa, op: Binary, out: &mut [f32], a: &[f32], b: &[f32]) {
    assert_eq!(out.len(), a.len(), "binary {op:?}: lengths differ");
    if a.is_empty() {
        return;
    }
    let period = b.len();
    assert!(period > 0 && a.len().is_multiple_of(period), "binary {op:?}: {period} does not divide {}", a.len());
    for_chunks(out, CHUNK, |at, out| {
        let a = &a[at..at + out.len()];
        if let [b] = *b {
            return dispatch_on(isa, MapScalar { f: op, out, a, b });
        }
        let mut done = 0;
        while done < out.len() {
            let phase = (at + done) % period;
            let run = (period - phase).min(out.len() - done);
            let out = &mut out[done..done + run];
            dispatch_on(isa, Map2 { f: op, out, a: &a[done..done + run], b: &b[phase..phase + run] });
            done += run;
        }
    });
}

/// `out = act(gate) * up`
pub fn gated(act: Unary, out: &mut [f32], gate: &[f32], up: &[f32]) {
    gated_on(isa(), act, out, gate, up);
}

/// `dgate = dout * up * act'(gate)` and `dup = dout * act(gate)`
pub fn gated_backward(act: Unary, dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dout: &[f32]) {
    gated_backward_on(isa(), act, [dgate, dup], [gate, up, dout]);
}

pub(crate) fn gated_on(isa: Isa, act: Unary, out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert!(out.len() == gate.len() && up.len() == gate.len(), "gated {act:?}: lengths differ");
    act.with(GatedForward { isa, out, gate, up });
}

pub(crate) fn gated_backward_on(isa: Isa, act: Unary, [dgate, dup]: [&mut [f32]; 2], inputs: [&[f32]; 3]) {
    assert_eq!(dgate.len(), dup.len(), "gated_backward {act:?}: lengths differ");
    assert!(inputs.iter().all(|x| x.len() == dup.len()), "gated_backward {act:?}: lengths differ");
    act.with(GatedBackward { isa, dgate, dup, inputs });
}

struct GatedForward<'a> {
    isa: Isa,
    out: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}
impl Visit for GatedForward<'_> {
    fn visit(self, function: impl Function) {
        for_chunks(self.out, CHUNK, |at, out| {
            let range = at..at + out.len();
            dispatch_on(
                self.isa,
                Map2 { f: GatedValue(function), out, a: &self.gate[range.clone()], b: &self.up[range] },
            );
        });
    }
}

/// `gate = act(gate) * up` on this thread.
pub(crate) fn gated_in_place(isa: Isa, act: Unary, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gated {act:?}: lengths differ");
    act.with(GatedInPlace { isa, gate, up });
}

struct GatedInPlace<'a> {
    isa: Isa,
    gate: &'a mut [f32],
    up: &'a [f32],
}
impl Visit for GatedInPlace<'_> {
    fn visit(self, function: impl Function) {
        dispatch_on(self.isa, Update { f: GatedValue(function), y: self.gate, x: self.up });
    }
}

struct GatedBackward<'a> {
    isa: Isa,
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
    inputs: [&'a [f32]; 3],
}
impl Visit for GatedBackward<'_> {
    fn visit(self, function: impl Function) {
        for_chunks2((self.dgate, CHUNK), (self.dup, CHUNK), |i, dgate, dup| {
            let range = i * CHUNK..i * CHUNK + dgate.len();
            let [gate, up, dout] = self.inputs.map(|x| &x[range.clone()]);
            dispatch_on(self.isa, GatedPiece { function, dgate, dup, gate, up, dout });
        });
    }
}

struct GatedPiece<'a, F> {
    function: F,
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
    dout: &'a [f32],
}
impl<F: Function> Kernel for GatedPiece<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.gate.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            let (gate, up, dout) = (s.load(&self.gate[i..]), s.load(&self.up[i..]), s.load(&self.dout[i..]));
            s.store(&mut self.dgate[i..], s.mul(s.mul(dout, up), self.function.slope(s, gate)));
            s.store(&mut self.dup[i..], s.mul(dout, self.function.value(s, gate)));
        }
        let gate = s.load_partial(&self.gate[whole..]);
        let (up, dout) = (s.load_partial(&self.up[whole..]), s.load_partial(&self.dout[whole..]));
        s.store_partial(&mut self.dgate[whole..], s.mul(s.mul(dout, up), self.function.slope(s, gate)));
        s.store_partial(&mut self.dup[whole..], s.mul(dout, self.function.value(s, gate)));
    }
}

/// `out = scale * x + shift`
pub fn affine(out: &mut [f32], x: &[f32], scale: f32, shift: f32) {
    assert_eq!(out.len(), x.len(), "affine: lengths differ");
    for_chunks(out, CHUNK, |at, out| {
        dispatch_on(isa(), Map1 { f: Affine(scale, shift), x: &x[at..at + out.len()], out });
    });
}

/// `y + a x`
#[derive(Clone, Copy)]
struct Axpy(f32);
impl Op2 for Axpy {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, y: S::V, x: S::V) -> S::V {
        s.fma(x, s.splat(self.0), y)
    }
}

/// `y += a * x`
pub fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    assert_eq!(y.len(), x.len(), "axpy: lengths differ");
    for_chunks(y, CHUNK, |at, y| dispatch_on(isa(), Update { f: Axpy(a), x: &x[at..at + y.len()], y }));
}

/// `y + a (x - y)`
#[derive(Clone, Copy)]
struct Lerp(f32);
impl Op2 for Lerp {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, y: S::V, x: S::V) -> S::V {
        s.fma(s.sub(x, y), s.splat(self.0), y)
    }
}

/// `y += a * (x - y)`: a step of the way to `x`, as a running mean makes it.
pub fn lerp(y: &mut [f32], a: f32, x: &[f32]) {
    assert_eq!(y.len(), x.len(), "lerp: lengths differ");
    for_chunks(y, CHUNK, |at, y| dispatch_on(isa(), Update { f: Lerp(a), x: &x[at..at + y.len()], y }));
}

/// `y += x`
pub fn add_assign(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "add_assign: lengths differ");
    for_chunks(y, CHUNK, |at, y| dispatch_on(isa(), Update { f: Binary::Add, x: &x[at..at + y.len()], y }));
}

/// `out = x / (1 - p)` with probability `1 - p`, else 0 (inverted dropout).
///
/// The mask is a function of (seed, step, index): the backward pass is this function on the gradient, and no mask is
/// stored. Element i is kept where `Rng::new(seed, "dropout", step).uniform_f32(i) < 1 - p`.
pub fn dropout(out: &mut [f32], x: &[f32], p: f32, seed: u64, step: u64) {
    dropout_on(isa(), out, x, p, Rng::new(seed, "dropout", step));
}

pub(crate) fn dropout_on(isa: Isa, out: &mut [f32], x: &[f32], p: f32, rng: Rng) {
    assert_eq!(out.len(), x.len(), "dropout: lengths differ");
    assert!((0.0..1.0).contains(&p), "dropout: probability {p}");
    for_chunks(out, CHUNK, |at, out| {
        dispatch_on(isa, Dropout { x: &x[at..at + out.len()], out, keep: 1.0 - p, rng, first_block: (at / 4) as u64 });
    });
}

struct Dropout<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    keep: f32,
    rng: Rng,
    first_block: u64,
}
impl Kernel for Dropout<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        /// Counter blocks drawn together, so that the compiler makes them vectors.
        const TOGETHER: usize = 8;
        let threshold = (f64::from(self.keep) * f64::from(1 << 24)).ceil() as u32;
        let scale = 1.0 / self.keep;
        let pieces = self.out.chunks_mut(4 * TOGETHER).zip(self.x.chunks(4 * TOGETHER));
        for (i, (out, x)) in pieces.enumerate() {
            let mut words = [[0_u32; 4]; TOGETHER];
            for (j, words) in words.iter_mut().enumerate() {
                let (counter, key) = self.rng.address(self.first_block + (i * TOGETHER + j) as u64);
                *words = philox4x32(counter, key);
            }
            for ((out, x), bits) in out.iter_mut().zip(x).zip(words.as_flattened()) {
                *out = if bits >> 8 < threshold { x * scale } else { 0.0 };
            }
        }
    }
}
