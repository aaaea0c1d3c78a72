//! Rotary position embedding (Su et al. 2021): pairs of a head's features are turned by an angle that grows with the
//! position.

use crate::isa::{Isa, isa};
use crate::parallel::for_chunks;
use crate::simd::{Kernel, Simd, dispatch_on};

/// Elements that one piece of work turns.
const PIECE: usize = 8 * 1024;

/// Which features make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Feature i with feature i + rotary_dim / 2: checkpoints in the Hugging Face layout.
    Half,
    /// Feature 2i with feature 2i + 1: the original layout.
    Interleaved,
}

/// Shape of the input, and how to turn it.
#[derive(Clone, Copy, Debug)]
pub struct RopeDims {
    /// Sequences.
    pub batch: usize,
    /// Positions per sequence.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// How many of them, from the first, are turned; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Which features make a pair.
    pub style: RopeStyle,
    /// Turn back: the gradient of a rotation is its inverse.
    pub inverse: bool,
}

/// Turns `x`, `[batch, time, heads, head_dim]` without gaps, in place.
///
/// `cos` and `sin` hold `rotary_dim / 2` values per position: `time` rows that serve every sequence, or
/// `batch * time` rows where each sequence has its own positions.
pub fn rope_in_place(x: &mut [f32], cos: &[f32], sin: &[f32], dims: &RopeDims) {
    rope_on(isa(), x, cos, sin, dims);
}

fn rope_on(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32], dims: &RopeDims) {
    let RopeDims { batch, time, heads, head_dim, rotary_dim, .. } = *dims;
    let half = rotary_dim / 2;
    assert!(rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim, "rope: {rotary_dim} of {head_dim} features");
    assert_eq!(x.len(), batch * time * heads * head_dim, "rope: length of x for {dims:?}");
    assert!(
        cos.len() == sin.len() && (cos.len() == time * half || cos.len() == batch * time * half),
        "rope: tables of {} and {} for {dims:?}",
        cos.len(),
        sin.len()
    );
    let width = heads * head_dim;
    if x.is_empty() || half == 0 {
        return;
    }
    let table_rows = cos.len() / half;
    let rows = (PIECE / width).max(1);
    for_chunks(x, rows * width, |at, x| {
        for (i, x) in x.chunks_exact_mut(width).enumerate() {
            let row = (at / width + i) % table_rows * half;
            dispatch_on(isa, Turn { x, cos: &cos[row..row + half], sin: &sin[row..row + half], dims });
        }
    });
}

/// All heads of one position.
struct Turn<'a> {
    x: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    dims: &'a RopeDims,
}
impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sign = if self.dims.inverse { -1.0 } else { 1.0 };
        for head in self.x.chunks_exact_mut(self.dims.head_dim) {
            match self.dims.style {
                RopeStyle::Half => turn_half(s, head, self.cos, self.sin, sign),
                RopeStyle::Interleaved => {
                    let pairs = head.chunks_exact_mut(2).zip(self.cos.iter().zip(self.sin));
                    for (pair, (&cos, &sin)) in pairs {
                        let (a, b, sin) = (pair[0], pair[1], sign * sin);
                        pair[0] = a * cos - b * sin;
                        pair[1] = b * cos + a * sin;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turn_half<S: Simd>(s: S, head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    let sign = s.splat(sign);
    let features = first.chunks_mut(S::LANES).zip(second[..cos.len()].chunks_mut(S::LANES));
    for ((first, second), (cos, sin)) in features.zip(cos.chunks(S::LANES).zip(sin.chunks(S::LANES))) {
        let (a, b) = (s.load_partial(first), s.load_partial(second));
        let (cos, sin) = (s.load_partial(cos), s.mul(s.load_partial(sin), sign));
        s.store_partial(first, s.neg_fma(b, sin, s.mul(a, cos)));
        s.store_partial(second, s.fma(a, sin, s.mul(b, cos)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::testable;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    fn normal(n: usize, purpose: &str) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, n as u64).fill_normal(&mut x, 0.0, 1.0);
        x
    }

    fn tables(rows: usize, half: usize) -> (Vec<f32>, Vec<f32>) {
        let angle = |i: usize| (i / half) as f32 * 0.7_f32.powi((i % half) as i32);
        (0..rows * half).map(|i| (angle(i).cos(), angle(i).sin())).unzip()
    }

    /// Each pair as a complex number, multiplied by the table's.
    fn exact(x: &[f32], cos: &[f32], sin: &[f32], d: &RopeDims) -> Vec<f64> {
        let half = d.rotary_dim / 2;
        let mut y: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (i, head) in y.chunks_mut(d.head_dim).enumerate() {
            let row = (i / d.heads) % (cos.len() / half);
            for j in 0..half {
                let (a, b) = if d.style == RopeStyle::Half { (j, j + half) } else { (2 * j, 2 * j + 1) };
                let (c, s) = (f64::from(cos[row * half + j]), f64::from(sin[row * half + j]));
                let s = if d.inverse { -s } else { s };
                (head[a], head[b]) = (head[a] * c - head[b] * s, head[b] * c + head[a] * s);
            }
        }
        y
    }

    #[test]
    fn pairs_are_turned_and_turned_back_on_odd_sizes() {
        for isa in testable() {
            for (batch, time, heads, head_dim, rotary_dim) in [
                (1, 1, 1, 2, 2),
                (2, 3, 1, 6, 6),
                (1, 5, 2, 14, 14),
                (2, 7, 3, 16, 8),
                (3, 4, 2, 34, 32),
                (2, 90, 3, 64, 64),
            ] {
                for style in [RopeStyle::Half, RopeStyle::Interleaved] {
                    for rows in [time, batch * time] {
                        let mut dims = RopeDims { batch, time, heads, head_dim, rotary_dim, style, inverse: false };
                        let (cos, sin) = tables(rows, rotary_dim / 2);
                        let x = normal(batch * time * heads * head_dim, "x");
                        let mut y = x.clone();
                        with_threads(2, || rope_on(isa, &mut y, &cos, &sin, &dims));
                        for (y, e) in y.iter().zip(exact(&x, &cos, &sin, &dims)) {
                            assert!((f64::from(*y) - e).abs() <= 1e-6 * (1.0 + e.abs()), "{isa:?} {dims:?}");
                        }
                        dims.inverse = true;
                        rope_on(isa, &mut y, &cos, &sin, &dims);
                        assert!(y.iter().zip(&x).all(|(y, x)| (y - x).abs() < 1e-5), "turned back: {isa:?} {dims:?}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rope: tables of 3 and 3")]
    fn tables_of_another_size_panic() {
        let style = RopeStyle::Half;
        let dims = RopeDims { batch: 1, time: 2, heads: 1, head_dim: 4, rotary_dim: 4, style, inverse: false };
        rope_in_place(&mut [0.0; 8], &[0.0; 3], &[0.0; 3], &dims);
    }
}
