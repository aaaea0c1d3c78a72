//! NF4 with double quantisation (Dettmers et al. 2023, "QLoRA", section 3): the numbers, the rounding and the order of
//! the bits of bitsandbytes.
//!
//! Four bits say which of sixteen quantiles of the normal distribution a number is, times the largest size of its block
//! of 64. Double quantisation keeps those sizes, less their mean, in codes of eight bits whose scale 256 of them share:
//! 4.127 bits per number instead of 4.5. Blocks run on over the ends of rows.
//!
//! Decoding gives what bitsandbytes decodes to f32. A checkpoint says that it was made of bf16 or f16, to which
//! bitsandbytes then rounds; here numbers are rounded to bf16 where products of bf16 are asked for, and nowhere else.

use super::backward::gradients;
use super::widened::Packed;
use crate::gemm::{Mat, Operand, Start, gemm_bf16, gemm_f32};
use crate::isa::isa;
use crate::parallel::{CHUNK, for_chunks};
use crate::simd::{Kernel, Simd, dispatch_on};
use half::bf16;
use std::sync::LazyLock;

/// Numbers that share a size.
pub const NF4_BLOCK: usize = 64;
/// Sizes that share a scale where they are in eight bits.
pub const NF4_NESTED_BLOCK: usize = 256;
/// The numbers of the sixteen codes.
pub const NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The sizes of the blocks: the largest absolute value of each.
#[derive(Clone, Debug, PartialEq)]
pub enum Nf4Scales {
    /// As they are.
    Plain(Vec<f32>),
    /// In eight bits: `values[code] * absmax[block / 256] + offset`.
    Nested {
        /// One code per block.
        codes: Vec<u8>,
        /// The numbers of the codes, in ascending order.
        values: Box<[f32; 256]>,
        /// The largest size of each 256 blocks, less the offset.
        absmax: Vec<f32>,
        /// Mean of all sizes.
        offset: f32,
    },
}

/// Numbers in NF4.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4 {
    codes: Vec<u8>,
    scales: Nf4Scales,
    count: usize,
}

impl Nf4 {
    /// `count` numbers: two in a byte, the first in its upper half. `None` where there are not as many codes and scales as
    /// they need.
    pub fn new(count: usize, codes: Vec<u8>, scales: Nf4Scales) -> Option<Self> {
        let blocks = count.div_ceil(NF4_BLOCK);
        let fits = match &scales {
            Nf4Scales::Plain(sizes) => sizes.len() == blocks,
            Nf4Scales::Nested { codes, absmax, .. } => {
                codes.len() == blocks && absmax.len() == blocks.div_ceil(NF4_NESTED_BLOCK)
            }
        };
        (fits && codes.len() == count.div_ceil(2)).then_some(Self { codes, scales, count })
    }

    /// Rounds `x`, as bitsandbytes does on a CPU. The offset of nested sizes is their mean, which it adds up in f32 in an
    /// order that depends on the machine: where that sum is rounded, the last bit of the offset may be another one.
    pub fn encode(x: &[f32], is_nested: bool) -> Self {
        let middles: [f32; 15] = std::array::from_fn(|i| (NF4_VALUES[i] + NF4_VALUES[i + 1]) / 2.0);
        let mut sizes = vec![0.0; x.len().div_ceil(NF4_BLOCK)];
        let mut codes = vec![0; x.len().div_ceil(2)];
        for ((x, size), codes) in x.chunks(NF4_BLOCK).zip(&mut sizes).zip(codes.chunks_mut(NF4_BLOCK / 2)) {
            let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let floor = most.max(1e-38);
            // A whole block is multiplied by the inverse, what is left at the end is divided.
            let is_whole = x.len() == NF4_BLOCK;
            let (inverse, divisor) = if is_whole { (1.0 / floor, 1.0) } else { (1.0, floor) };
            *size = if is_whole { most } else { floor };
            let code = |x: f32| {
                let scaled = (x * inverse / divisor).clamp(-1.0, 1.0);
                middles.partition_point(|&middle| middle < scaled) as u8
            };
            for (out, pair) in codes.iter_mut().zip(x.chunks(2)) {
                *out = code(pair[0]) << 4 | code(pair.get(1).copied().unwrap_or(0.0));
            }
        }
        let scales = if is_nested { nested(&sizes) } else { Nf4Scales::Plain(sizes) };
        Self { codes, scales, count: x.len() }
    }

    /// Numbers.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Two numbers in each byte.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The sizes of the blocks.
    pub fn scales(&self) -> &Nf4Scales {
        &self.scales
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Nf4Scales::Plain(sizes) => 4 * sizes.len(),
            Nf4Scales::Nested { codes, values, absmax, .. } => codes.len() + 4 * (values.len() + absmax.len() + 1),
        };
        self.codes.len() + scales
    }

    /// As a matrix of so many columns, which is decoded some rows at a time.
    fn rows_of<T: Decoded>(&self, cols: usize) -> Packed<impl Fn(usize, &mut [T]) + Sync + '_> {
        Packed { rows: self.count / cols, cols, decode: move |row, out: &mut [T]| self.decode_as(row * cols, out) }
    }

    /// How many rows of inputs there are. Panics where sizes do not agree.
    fn check(&self, op: &str, out: &[f32], inputs: usize, cols: usize) -> usize {
        let (rows, m) = (self.count.checked_div(cols).unwrap_or(0), inputs.checked_div(cols).unwrap_or(0));
        assert!(
            rows * cols == self.count && m * cols == inputs && m * rows == out.len(),
            "{op}: {} weights, {inputs} inputs, {} outputs, {cols} columns",
            self.count,
            out.len()
        );
        if rows == 0 { 0 } else { m }
    }

    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Nf4Scales::Plain(sizes) => sizes[block],
            Nf4Scales::Nested { codes, values, absmax, offset } => {
                values[usize::from(codes[block])] * absmax[block / NF4_NESTED_BLOCK] + offset
            }
        }
    }

    /// The numbers from `start` on, on the caller's thread.
    pub fn decode(&self, start: usize, out: &mut [f32]) {
        self.decode_as(start, out);
    }

    fn decode_as<T: Decoded>(&self, start: usize, out: &mut [T]) {
        assert!(start + out.len() <= self.count, "nf4: {} numbers from {start} of {}", out.len(), self.count);
        dispatch_on(isa(), Decode { w: self, start, out });
    }

    /// All numbers, on all threads.
    pub fn decode_all(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.count, "nf4: all numbers");
        for_chunks(out, CHUNK, |at, out| self.decode(at, out));
    }
}

/// Sizes in eight bits.
fn nested(sizes: &[f32]) -> Nf4Scales {
    let sum: f64 = sizes.iter().map(|&size| f64::from(size)).sum();
    let offset = if sizes.is_empty() { 0.0 } else { sum as f32 / sizes.len() as f32 };
    let mut absmax = Vec::with_capacity(sizes.len().div_ceil(NF4_NESTED_BLOCK));
    let mut codes = Vec::with_capacity(sizes.len());
    for sizes in sizes.chunks(NF4_NESTED_BLOCK) {
        let most = sizes.iter().fold(0.0_f32, |most, size| most.max((size - offset).abs()));
        absmax.push(most);
        let inverse = 1.0 / most;
        codes.extend(sizes.iter().map(|size| if most > 0.0 { dynamic_code((size - offset) * inverse) } else { 0 }));
    }
    Nf4Scales::Nested { codes, values: Box::new(*DYNAMIC), absmax, offset }
}

/// The numbers of dynamic tree quantisation (Dettmers 2016), as bitsandbytes rounds them: the middles of the 1, 2, .. 64
/// even parts of [0.1, 1] times 1e-6, 1e-5, .. 1, of either sign, zero and one.
static DYNAMIC: LazyLock<[f32; 256]> = LazyLock::new(|| {
    const DECADES: u32 = 7;
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let (parts, power) = (1 << decade, 10_f64.powi(decade as i32 + 1 - DECADES as i32) as f32);
        let step = (1.0 - 0.1_f32) / parts as f32;
        // From the nearer end, as `torch.linspace` counts.
        let border = |i: i32| match i < (parts + 1) / 2 {
            true => step.mul_add(i as f32, 0.1),
            false => (-step).mul_add((parts - i) as f32, 1.0),
        };
        for part in 0..parts {
            let value = power * ((border(part) + border(part + 1)) / 2.0);
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| values[i])
});

/// The code of dynamic tree quantisation, looked up as bitsandbytes does: that of the nearest of 65536 even steps.
fn dynamic_code(x: f32) -> u8 {
    const STEPS: f32 = 65535.0;
    let step = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5).floor();
    let x = 2.0 * step / STEPS - 1.0;
    let above = DYNAMIC.partition_point(|&value| value < x).clamp(1, 255);
    let (below, over) = (x - DYNAMIC[above - 1], DYNAMIC[above] - x);
    (if over < below { above } else { above - 1 }) as u8
}

/// `out[i][j] = sum over p of x[i][p] w[j][p] + bias[j]`: `x` is `[m, cols]`, `out` is `[m, rows]`, `w` holds
/// `[rows, cols]`. Weights are decoded some rows at a time, and multiplied in f32.
pub fn matmul_nf4(out: &mut [f32], x: &[f32], w: &Nf4, cols: usize, bias: Option<&[f32]>) {
    let m = w.check("matmul_nf4", out, x.len(), cols);
    if m > 0 {
        let x = Mat::rows(x, m, cols);
        w.rows_of(cols).forward(out, m, bias, |c, wide: Mat<'_, f32>, start| gemm_f32(c, x, wide, start));
    }
}

/// The same with weights rounded to bf16 as they are decoded: [`gemm_bf16`].
pub fn matmul_nf4_bf16(out: &mut [f32], x: &[bf16], w: &Nf4, cols: usize, bias: Option<&[f32]>) {
    let m = w.check("matmul_nf4_bf16", out, x.len(), cols);
    if m > 0 {
        let x = Operand::Bf16(Mat::rows(x, m, cols));
        w.rows_of(cols).forward(out, m, bias, |c, wide: Mat<'_, bf16>, start| {
            gemm_bf16(c, x, Operand::Bf16(wide), start);
        });
    }
}

/// The gradient of the inputs from that of the outputs: `out[i][j] = start + sum over o of dy[i][o] w[o][j]`. `dy` is
/// `[m, rows]`, `out` is `[m, cols]`. Products are those of f32, or with `in_bf16` of operands rounded to bf16.
pub fn matmul_nf4_backward(out: &mut [f32], dy: &[f32], w: &Nf4, cols: usize, start: Start<'_>, in_bf16: bool) {
    let rows = w.count.checked_div(cols).unwrap_or(0);
    assert_eq!(rows * cols, w.count, "matmul_nf4_backward: {} weights, {cols} columns", w.count);
    let dy = gradients("matmul_nf4_backward", out, dy, [rows, cols]);
    if in_bf16 {
        w.rows_of(cols).backward(out, dy, start, |c, dy, wide: Mat<'_, bf16>, start| {
            gemm_bf16(c, Operand::F32(dy), Operand::Bf16(wide), start);
        });
    } else {
        w.rows_of(cols).backward(out, dy, start, |c, dy, wide: Mat<'_, f32>, start| gemm_f32(c, dy, wide, start));
    }
}

/// What numbers are decoded to.
pub(super) trait Decoded: Copy + Send {
    /// The nearest one.
    fn of(x: f32) -> Self;
    /// Writes as many as there are lanes.
    fn store<S: Simd>(s: S, out: &mut [Self], v: S::V);
}

impl Decoded for f32 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, out: &mut [Self], v: S::V) {
        s.store(out, v);
    }
}

impl Decoded for bf16 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, out: &mut [Self], v: S::V) {
        s.store_bf16(out, v);
    }
}

/// Decodes the numbers from one on.
struct Decode<'a, T> {
    w: &'a Nf4,
    start: usize,
    out: &'a mut [T],
}

impl<T: Decoded> Kernel for Decode<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut at, mut rest) = (self.start, self.out);
        while !rest.is_empty() {
            let block = at / NF4_BLOCK;
            let (now, later) = rest.split_at_mut(rest.len().min((block + 1) * NF4_BLOCK - at));
            let (scale, len) = (self.w.scale(block), now.len());
            // Two numbers share a byte: vectors begin with the first of them.
            let whole = if at.is_multiple_of(2) { len / S::LANES * S::LANES } else { 0 };
            let (vectors, numbers) = now.split_at_mut(whole);
            let codes = &self.w.codes[at / 2..];
            for (out, codes) in vectors.chunks_exact_mut(S::LANES).zip(codes.chunks_exact(S::LANES / 2)) {
                T::store(s, out, s.mul(s.look_up(&NF4_VALUES, codes), s.splat(scale)));
            }
            for (at, out) in (at + whole..).zip(numbers) {
                let codes = self.w.codes[at / 2];
                let code = if at.is_multiple_of(2) { codes >> 4 } else { codes & 15 };
                *out = T::of(NF4_VALUES[usize::from(code)] * scale);
            }
            (at, rest) = (at + len, later);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    /// `scripts/goldens_quant.py` says how it is laid out.
    const GOLDENS: &[u8] = include_bytes!("../../tests/data/nf4.bin");

    fn normal(count: usize) -> Vec<f32> {
        let mut x = vec![0.0; count];
        Rng::new(3, "nf4", count as u64).fill_normal(&mut x, 0.0, 1.0);
        x
    }

    /// As the script makes them.
    fn numbers(count: usize) -> Vec<f32> {
        let number = |i: usize| {
            let (block, high) = (i / NF4_BLOCK, (i * 2_654_435_761 % (1 << 32)) >> 24);
            let size = if block == 1 { 0 } else { 16 + block * 37 % 101 };
            (high as f32 - 128.0) * size as f32 / 1024.0
        };
        (0..count).map(number).collect()
    }

    /// Reads little-endian numbers off the front.
    fn take<T>(from: &mut &[u8], count: usize, of: impl Fn([u8; 4]) -> T) -> Vec<T> {
        let (now, rest) = from.split_at(4 * count);
        *from = rest;
        now.chunks_exact(4).map(|b| of([b[0], b[1], b[2], b[3]])).collect()
    }

    fn bytes(from: &mut &[u8], count: usize) -> Vec<u8> {
        let (now, rest) = from.split_at(count);
        *from = rest;
        now.to_vec()
    }

    #[test]
    fn numbers_are_rounded_and_decoded_as_bitsandbytes_does_to_the_bit() {
        let mut rest = GOLDENS;
        let (mut cases, mut sizes_differ) = (0, false);
        while !rest.is_empty() {
            let head = take(&mut rest, 2, u32::from_le_bytes);
            let (count, is_nested) = (head[0] as usize, head[1] == 1);
            let blocks = count.div_ceil(NF4_BLOCK);
            let codes = bytes(&mut rest, count.div_ceil(2));
            let scales = if is_nested {
                let codes = bytes(&mut rest, blocks);
                sizes_differ |= codes.iter().any(|&code| code != codes[0]);
                let absmax = take(&mut rest, blocks.div_ceil(NF4_NESTED_BLOCK), f32::from_le_bytes);
                let offset = take(&mut rest, 1, f32::from_le_bytes)[0];
                let values = take(&mut rest, 256, f32::from_le_bytes);
                let values = Box::new(<[f32; 256]>::try_from(values).unwrap());
                Nf4Scales::Nested { codes, values, absmax, offset }
            } else {
                Nf4Scales::Plain(take(&mut rest, blocks, f32::from_le_bytes))
            };
            let theirs = Nf4::new(count, codes, scales).unwrap();
            let decoded = take(&mut rest, count.div_ceil(17), u32::from_le_bytes);
            let own = Nf4::encode(&numbers(count), is_nested);
            assert!(own == theirs, "{count} numbers, nested {is_nested}, are rounded otherwise");
            let mut own = vec![0.0; count];
            theirs.decode_all(&mut own);
            let own: Vec<u32> = own.iter().step_by(17).map(|x| x.to_bits()).collect();
            assert!(own == decoded, "{count} numbers, nested {is_nested}, are decoded otherwise");
            cases += 1;
        }
        assert!(cases >= 4 && sizes_differ);
    }

    #[test]
    fn any_part_is_decoded_as_in_the_whole() {
        let (x, mut all) = (normal(1001), vec![0.0; 1001]);
        let w = Nf4::encode(&x, true);
        w.decode_all(&mut all);
        for (start, len) in [(0, 1), (1, 1), (63, 2), (64, 64), (77, 300), (999, 2), (1000, 1), (5, 0)] {
            let mut part = vec![f32::NAN; len];
            w.decode(start, &mut part);
            assert_eq!(part, all[start..start + len], "{len} from {start}");
        }
        let error: f64 = x.iter().zip(&all).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        assert!((error / 1001.0).sqrt() < 0.11, "{}", (error / 1001.0).sqrt());
        assert!(Nf4::new(1001, w.codes()[1..].to_vec(), w.scales().clone()).is_none());
    }

    #[test]
    fn products_are_those_of_the_decoded_weights() {
        let (n, k, m) = (45, 100, 7);
        let (w, x, bias) = (Nf4::encode(&normal(n * k), true), normal(m * k), normal(n));
        let mut wide = vec![0.0; n * k];
        w.decode_all(&mut wide);
        let run = |threads, rows: usize| {
            let mut out = vec![f32::NAN; rows * n];
            with_threads(threads, || matmul_nf4(&mut out, &x[..rows * k], &w, k, Some(&bias)));
            out
        };
        let all = run(1, m);
        for (i, y) in all.iter().enumerate() {
            let (x, w) = (&x[i / n * k..][..k], &wide[i % n * k..][..k]);
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*y) - exact - f64::from(bias[i % n])).abs() < 1e-4);
        }
        assert!(run(2, m) == all && run(2, 3) == all[..3 * n] && run(1, 1) == all[..n]);
        matmul_nf4(&mut [], &[], &w, k, None);
    }

    #[test]
    fn zeros_stay_zeros_and_nesting_saves_bytes() {
        let zeros = Nf4::encode(&[0.0; 300], true);
        let mut back = [1.0; 300];
        zeros.decode_all(&mut back);
        assert!(back.iter().all(|&x| x == 0.0));
        let x = normal(1 << 16);
        let bits = |is_nested| Nf4::encode(&x, is_nested).bytes() as f64 * 8.0 / x.len() as f64;
        assert!((bits(false) - 4.5).abs() < 1e-9 && bits(true) < 4.26, "{} {}", bits(false), bits(true));
    }
}
