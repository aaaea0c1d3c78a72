//! The values that a block can hold once its scales are fixed, and choosing among them number by number.

use loam_kernels::quant::{dequantise, quantise};
use loam_tensor::GgmlType;

/// Largest block.
const WIDEST: usize = 256;

/// Blocks of one type, whose levels can be set after their scales were found.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    ty: GgmlType,
    levels: usize,
}

/// One block: its bytes, and for every level the value of every number.
pub(crate) struct Fixed {
    grid: Grid,
    bytes: Vec<u8>,
    /// `[levels, block_len]`.
    values: Vec<f32>,
    chosen: Vec<u8>,
}

impl Grid {
    /// For a type whose numbers have levels of their own; `None` for others.
    pub fn new(ty: GgmlType) -> Option<Self> {
        let levels = match ty {
            GgmlType::Q2K => 4,
            GgmlType::Q3K => 8,
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q4K | GgmlType::Iq4Nl | GgmlType::Iq4Xs => 16,
            GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q5K => 32,
            GgmlType::Q6K => 64,
            GgmlType::Q8_0 => 256,
            _ => return None,
        };
        Some(Self { ty, levels })
    }

    /// The type.
    pub fn ty(self) -> GgmlType {
        self.ty
    }

    /// Finds the scales of a block for the numbers `x`, weighed by `importance`.
    pub(crate) fn fix(self, x: &[f32], importance: Option<&[f32]>) -> Fixed {
        let mut bytes = vec![0; self.ty.block_bytes()];
        quantise(self.ty, x, importance, &mut bytes);
        let (mut scratch, mut values) = (bytes.clone(), vec![0.0; self.levels * x.len()]);
        for (level, values) in values.chunks_exact_mut(x.len()).enumerate() {
            self.put(&mut scratch, &[level as u8; WIDEST]);
            dequantise(self.ty, &scratch, values);
        }
        Fixed { grid: self, bytes, values, chosen: vec![0; x.len()] }
    }

    /// Writes the levels of a block, and leaves its scales.
    pub(crate) fn put(self, block: &mut [u8], l: &[u8; WIDEST]) {
        match self.ty {
            GgmlType::Q4_0 | GgmlType::Iq4Nl => nibbles(&mut block[2..18], l),
            GgmlType::Q4_1 => nibbles(&mut block[4..20], l),
            GgmlType::Q5_0 => {
                fifth_bits(&mut block[2..6], l);
                nibbles(&mut block[6..22], l);
            }
            GgmlType::Q5_1 => {
                fifth_bits(&mut block[4..8], l);
                nibbles(&mut block[8..24], l);
            }
            GgmlType::Q8_0 => block[2..34].iter_mut().zip(l).for_each(|(out, l)| *out = l.wrapping_sub(128)),
            GgmlType::Iq4Xs => {
                for (out, l) in block[8..136].chunks_exact_mut(16).zip(l.chunks_exact(32)) {
                    nibbles(out, l);
                }
            }
            GgmlType::Q2K => two_bits(&mut block[16..80], l),
            GgmlType::Q3K => {
                one_bit(&mut block[..32], l, 2);
                two_bits(&mut block[32..96], l);
            }
            GgmlType::Q4K => wide_nibbles(&mut block[16..144], l),
            GgmlType::Q5K => {
                one_bit(&mut block[16..48], l, 4);
                wide_nibbles(&mut block[48..176], l);
            }
            GgmlType::Q6K => six_bits(&mut block[..192], l),
            _ => unreachable!("a grid is made for the types above alone"),
        }
    }
}

impl Fixed {
    /// The value nearest to `x` that number `at` of the block can have; it gets it.
    pub(crate) fn choose(&mut self, at: usize, x: f32) -> f32 {
        let (width, levels) = (self.chosen.len(), self.grid.levels);
        let value = |level: usize| self.values[level * width + at];
        // The values rise or fall with the level.
        let is_rising = value(levels - 1) >= value(0);
        let (mut low, mut high) = (0, levels - 1);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if (value(middle) <= x) == is_rising { low = middle } else { high = middle }
        }
        let level = if (value(low) - x).abs() <= (value(high) - x).abs() { low } else { high };
        self.chosen[at] = level as u8;
        self.values[level * width + at]
    }

    /// The block's bytes with what was chosen.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let mut levels = [0; WIDEST];
        levels[..self.chosen.len()].copy_from_slice(&self.chosen);
        self.grid.put(&mut self.bytes, &levels);
        self.bytes
    }
}

fn nibbles(out: &mut [u8], l: &[u8]) {
    out.iter_mut().enumerate().for_each(|(i, out)| *out = l[i] & 15 | l[i + 16] << 4);
}

fn fifth_bits(out: &mut [u8], l: &[u8]) {
    for (out, l) in out.iter_mut().zip(l.chunks_exact(8)) {
        *out = l.iter().enumerate().map(|(bit, l)| (l >> 4 & 1) << bit).sum();
    }
}

fn two_bits(out: &mut [u8], l: &[u8; WIDEST]) {
    for (l, out) in l.chunks_exact(128).zip(out.chunks_exact_mut(32)) {
        out.iter_mut().enumerate().for_each(|(i, out)| *out = (0..4).map(|b| (l[32 * b + i] & 3) << (2 * b)).sum());
    }
}

fn one_bit(out: &mut [u8], l: &[u8; WIDEST], bit: u8) {
    out.iter_mut().enumerate().for_each(|(i, out)| *out = (0..8).map(|b| (l[32 * b + i] >> bit & 1) << b).sum());
}

fn wide_nibbles(out: &mut [u8], l: &[u8; WIDEST]) {
    for (l, out) in l.chunks_exact(64).zip(out.chunks_exact_mut(32)) {
        out.iter_mut().enumerate().for_each(|(i, out)| *out = l[i] & 15 | (l[i + 32] & 15) << 4);
    }
}

fn six_bits(out: &mut [u8], l: &[u8; WIDEST]) {
    let (low, high) = out.split_at_mut(128);
    for (l, (low, high)) in l.chunks_exact(128).zip(low.chunks_exact_mut(64).zip(high.chunks_exact_mut(32))) {
        for i in 0..32 {
            low[i] = l[i] & 15 | (l[i + 64] & 15) << 4;
            low[i + 32] = l[i + 32] & 15 | (l[i + 96] & 15) << 4;
            high[i] = (0..4).map(|b| (l[32 * b + i] >> 4) << (2 * b)).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Vec<f32> {
        (0..WIDEST).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1.0 + (i / 32) as f32 / 4.0)).collect()
    }

    #[test]
    fn levels_that_are_put_back_give_the_values_that_were_chosen_in_every_type() {
        let mut seen = 0;
        for grid in GgmlType::all().filter_map(Grid::new) {
            seen += 1;
            let x = &numbers()[..grid.ty().block_len()];
            let mut fixed = grid.fix(x, None);
            let chosen: Vec<f32> = x.iter().enumerate().map(|(at, &x)| fixed.choose(at, x)).collect();
            let bytes = fixed.finish();
            let mut read = vec![0.0; x.len()];
            dequantise(grid.ty(), &bytes, &mut read);
            assert_eq!(read, chosen, "{}", grid.ty().name());
            // The nearest level is never farther than the one that rounding took.
            let mut plain = vec![0; grid.ty().block_bytes()];
            quantise(grid.ty(), x, None, &mut plain);
            let mut rounded = vec![0.0; x.len()];
            dequantise(grid.ty(), &plain, &mut rounded);
            for (at, ((x, own), other)) in x.iter().zip(&chosen).zip(&rounded).enumerate() {
                assert!((x - own).abs() <= (x - other).abs() + 1e-6, "{} number {at}", grid.ty().name());
            }
        }
        assert_eq!(seen, 12);
        assert!(Grid::new(GgmlType::F16).is_none() && Grid::new(GgmlType::Iq2Xs).is_none());
    }
}
