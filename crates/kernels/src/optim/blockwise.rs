//! AdamW whose moments are kept in 8 bits (Dettmers et al. 2022): blocks of [`BLOCK`] values with a scale each, and codes
//! that stand for the values of dynamic tree quantization.
//!
//! A code's value is `10^-e` times a fraction in [0.1, 1): the larger the value, the more codes divide its decade. The
//! moments of a step are computed in f32 from the decoded ones, used, and only then rounded to codes.

use std::sync::LazyLock;

use super::{AdamW, Factors, Step};
use crate::isa::isa;
use crate::parallel::{CHUNK, for_chunks};
use crate::simd::dispatch_on;

/// Values that share a scale.
pub const BLOCK: usize = 256;

/// Decades that the codes span.
const DECADES: usize = 7;

/// The values of the 256 codes in ascending order, and the middles between neighbours.
struct Codes {
    values: [f32; 256],
    middles: [f32; 255],
}

/// Codes of numbers in [-1, 1], for the mean of gradients.
static SIGNED: LazyLock<Codes> = LazyLock::new(|| Codes::new(true));
/// Codes of numbers in [0, 1], for the mean of squared gradients: no sign, twice the steps.
static UNSIGNED: LazyLock<Codes> = LazyLock::new(|| Codes::new(false));

impl Codes {
    fn new(signed: bool) -> Self {
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let steps = if signed { 1 << decade } else { 2 << decade };
            let power = 10f64.powi(decade as i32 - (DECADES as i32 - 1));
            for step in 0..steps {
                // The middle of each of the equal parts of [0.1, 1].
                let value = power * (0.1 + 0.9 * (step as f64 + 0.5) / steps as f64);
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f64::total_cmp);
        Self {
            values: std::array::from_fn(|i| values[i] as f32),
            middles: std::array::from_fn(|i| (0.5 * (values[i] + values[i + 1])) as f32),
        }
    }

    /// Code of the nearest value.
    fn nearest(&self, x: f32) -> u8 {
        self.middles.partition_point(|&middle| middle < x) as u8
    }
}

/// A slice of numbers in 8 bits each. All zero is a slice of zeros.
pub struct Blockwise<'a> {
    /// One code per number.
    pub codes: &'a mut [u8],
    /// The largest absolute value of each block.
    pub scales: &'a mut [f32],
}

/// Updates `param` and its moments.
pub fn adamw8bit_step(param: &mut [f32], grad: &[f32], m: Blockwise<'_>, v: Blockwise<'_>, settings: &AdamW) {
    let (n, blocks) = (param.len(), param.len().div_ceil(BLOCK));
    assert!(grad.len() == n && m.codes.len() == n && v.codes.len() == n, "adamw8bit_step: lengths differ");
    assert!(m.scales.len() == blocks && v.scales.len() == blocks, "adamw8bit_step: one scale per block is needed");
    assert!(settings.step > 0, "adamw8bit_step: steps count from 1");
    let factors = Factors::new(settings);
    let per_piece = CHUNK / BLOCK;
    let moments = m.codes.chunks_mut(CHUNK).zip(m.scales.chunks_mut(per_piece));
    let moments = moments.zip(v.codes.chunks_mut(CHUNK).zip(v.scales.chunks_mut(per_piece)));
    let values = param.chunks_mut(CHUNK).zip(grad.chunks(CHUNK));
    let mut pieces: Vec<_> = values.zip(moments).collect();
    for_chunks(&mut pieces, 1, |_, pieces| {
        for ((param, grad), ((m, m_scales), (v, v_scales))) in pieces {
            let m = m.chunks_mut(BLOCK).zip(m_scales.iter_mut());
            let v = v.chunks_mut(BLOCK).zip(v_scales.iter_mut());
            for ((param, grad), (m, v)) in param.chunks_mut(BLOCK).zip(grad.chunks(BLOCK)).zip(m.zip(v)) {
                block_step(param, grad, m, v, factors);
            }
        }
    });
}

fn block_step(param: &mut [f32], grad: &[f32], m: (&mut [u8], &mut f32), v: (&mut [u8], &mut f32), factors: Factors) {
    let (mut m_values, mut v_values) = ([0.0; BLOCK], [0.0; BLOCK]);
    let (m_values, v_values) = (&mut m_values[..param.len()], &mut v_values[..param.len()]);
    decode(&SIGNED, m_values, m.0, *m.1);
    decode(&UNSIGNED, v_values, v.0, *v.1);
    dispatch_on(isa(), Step::<true> { param, grad, m: m_values, v: v_values, factors });
    encode(&SIGNED, m_values, m.0, m.1);
    encode(&UNSIGNED, v_values, v.0, v.1);
    // A second moment that is rounded to zero would blow up a later step, which divides by it.
    let zero = UNSIGNED.nearest(0.0);
    let lost = |(code, &value): (&mut u8, &f32)| *code += u8::from(*code == zero && value > 0.0);
    v.0.iter_mut().zip(&*v_values).for_each(lost);
}

fn decode(table: &Codes, values: &mut [f32], codes: &[u8], scale: f32) {
    values.iter_mut().zip(codes).for_each(|(value, &code)| *value = table.values[usize::from(code)] * scale);
}

fn encode(table: &Codes, values: &[f32], codes: &mut [u8], scale: &mut f32) {
    *scale = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
    codes.iter_mut().zip(values).for_each(|(code, &value)| *code = table.nearest(value * inverse));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    const SETTINGS: AdamW =
        AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

    fn normal(n: usize, purpose: &str, step: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Rng::new(1, purpose, step).fill_normal(&mut x, 0.0, 1.0);
        x
    }

    #[test]
    fn the_codes_are_those_of_dynamic_tree_quantization() {
        let signed = &SIGNED.values;
        assert!(signed.is_sorted() && UNSIGNED.values.is_sorted());
        // Zero, one, and 127 values of either sign; the smallest is the middle of [0.1, 1] at 1e-6.
        assert_eq!((signed[127], signed[128], signed[255]), (0.0, 5.5e-7, 1.0));
        assert!((0..127).all(|i| signed[i] == -signed[254 - i]));
        assert_eq!((UNSIGNED.values[0], UNSIGNED.values[255]), (0.0, 1.0));
        // 64 parts of the largest decade: half a part below one.
        assert!((signed[254] - (1.0 - 0.45 / 64.0)).abs() < 1e-6);
        for table in [&*SIGNED, &*UNSIGNED] {
            assert!((0..=255).all(|code| table.nearest(table.values[usize::from(code)]) == code));
        }
    }

    #[test]
    fn a_value_comes_back_within_half_a_step_of_its_decade() {
        let values = normal(BLOCK, "values", 0);
        let (mut codes, mut scale, mut back) = ([0; BLOCK], 0.0, [0.0; BLOCK]);
        encode(&SIGNED, &values, &mut codes, &mut scale);
        decode(&SIGNED, &mut back, &codes, scale);
        let largest = values.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
        assert_eq!(scale, largest);
        for (a, b) in values.iter().zip(back) {
            // Decades with half as many parts are ten times finer, so the largest one's step bounds all.
            assert!((a - b).abs() <= largest * 0.45 / 64.0 * 1.001, "{a} came back as {b}");
        }
    }

    struct Moments {
        codes: Vec<u8>,
        scales: Vec<f32>,
    }

    impl Moments {
        fn zeros(n: usize) -> Self {
            Self { codes: vec![0; n], scales: vec![0.0; n.div_ceil(BLOCK)] }
        }

        fn view(&mut self) -> Blockwise<'_> {
            Blockwise { codes: &mut self.codes, scales: &mut self.scales }
        }
    }

    #[test]
    fn the_first_step_is_exactly_adamws() {
        let n = 700;
        let (mut param, grad) = (normal(n, "param", 0), normal(n, "grad", 1));
        let mut exact = param.clone();
        let (mut m, mut v) = (Moments::zeros(n), Moments::zeros(n));
        adamw8bit_step(&mut param, &grad, m.view(), v.view(), &SETTINGS);
        super::super::adamw_step(&mut exact, &grad, &mut vec![0.0; n], &mut vec![0.0; n], &SETTINGS);
        assert_eq!(param, exact, "nothing was rounded to 8 bits yet");
    }

    #[test]
    fn a_parameter_without_gradient_beside_a_large_one_stays_calm() {
        // Its second moment is a hundred million times smaller than its neighbour's, far below the smallest code.
        let (mut param, mut m, mut v) = (vec![0.0; 2], Moments::zeros(2), Moments::zeros(2));
        for step in 1..=5 {
            let grad = if step == 1 { [1e-4, 1.0] } else { [0.0, 1.0] };
            adamw8bit_step(&mut param, &grad, m.view(), v.view(), &AdamW { step, ..SETTINGS });
        }
        assert!(param[0].abs() < 5.0 * 0.01, "moved by {}", param[0]);
    }

    #[test]
    fn the_thread_count_changes_no_bit() {
        let n = 3 * CHUNK + 5;
        let run = |threads| {
            let (mut param, mut m, mut v) = (normal(n, "param", 0), Moments::zeros(n), Moments::zeros(n));
            let grad = normal(n, "grad", 1);
            with_threads(threads, || adamw8bit_step(&mut param, &grad, m.view(), v.view(), &SETTINGS));
            (param, m.codes, m.scales, v.codes, v.scales)
        };
        assert!(run(1) == run(2));
    }
}
