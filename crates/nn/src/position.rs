//! Rotary positions and the ways of stretching them.

use std::f64::consts::PI;

use loam_tensor::{Raw, RopeStyle, RopeTables, Tensor};

/// How frequencies are changed to reach beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All positions divided by `factor` (Chen et al. 2023).
    Linear {
        /// How many times longer the context gets.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// How many times longer the context gets.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the original training.
        original_max_position_embeddings: f64,
    },
    /// NTK by parts with attention temperature (Peng et al. 2023).
    Yarn {
        /// How many times longer the context gets.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Context of the original training.
        original_max_position_embeddings: f64,
        /// Whether the ramp's ends are rounded to whole frequencies.
        truncate: bool,
    },
}

/// Rotary position embedding (Su et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub rope_theta: f64,
    /// Features of a head that rotate.
    pub rotary_dim: usize,
    /// Which features pair up.
    pub style: RopeStyle,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// The frequencies of a [`RopeConfig`], worked out.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position, `[rotary_dim / 2]`, rounded to f32 as checkpoints were trained with.
    inverse_frequencies: Vec<f32>,
    attention_factor: f32,
    style: RopeStyle,
}

impl Rope {
    /// Works the frequencies out.
    pub fn new(config: &RopeConfig) -> Self {
        let half = config.rotary_dim / 2;
        let base: Vec<f64> =
            (0..half).map(|i| config.rope_theta.powf(-2.0 * i as f64 / config.rotary_dim as f64)).collect();
        let scaled: Vec<f64> = match config.scaling {
            RopeScaling::None => base,
            RopeScaling::Linear { factor } => base.iter().map(|f| f / factor).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => base.iter().map(|&f| llama3(f, factor, low_freq_factor, high_freq_factor, original)).collect(),
            RopeScaling::Yarn { .. } => yarn(&base, config),
        };
        let attention_factor = match config.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        Self {
            inverse_frequencies: scaled.into_iter().map(|f| f as f32).collect(),
            attention_factor,
            style: config.style,
        }
    }

    /// Cosines and sines of `positions`, `[positions.len(), rotary_dim / 2]`.
    pub fn tables(&self, positions: &[u32]) -> RopeTables {
        let half = self.inverse_frequencies.len();
        let mut cos = vec![0.0; positions.len() * half];
        let mut sin = vec![0.0; positions.len() * half];
        for (row, &position) in positions.iter().enumerate() {
            for (i, &frequency) in self.inverse_frequencies.iter().enumerate() {
                // The angle itself is rounded to f32, as the reference implementation does.
                let angle = f64::from(position as f32 * frequency);
                cos[row * half + i] = angle.cos() as f32 * self.attention_factor;
                sin[row * half + i] = angle.sin() as f32 * self.attention_factor;
            }
        }
        let shape = [positions.len(), half];
        RopeTables { cos: Raw::from_f32(&cos, shape), sin: Raw::from_f32(&sin, shape), style: self.style }
    }
}

/// Sines and cosines of `positions`, `[positions.len(), width]`: feature pair i turns by `10000^(-2i / width)` per
/// position (Vaswani et al. 2017, section 3.5). Interleaved, each pair lies together; else all sines come first.
pub fn sinusoids(positions: &[u32], width: usize, interleaved: bool) -> Tensor {
    let half = width.div_ceil(2);
    let mut out = vec![0.0; positions.len() * width];
    for (row, &position) in out.chunks_exact_mut(width).zip(positions) {
        for pair in 0..half {
            let angle = f64::from(position) * 10_000f64.powf(-2.0 * pair as f64 / width as f64);
            let (sine, cosine) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, half + pair) };
            row[sine] = angle.sin() as f32;
            // The last sine of an odd width has no cosine.
            if let Some(place) = row.get_mut(cosine) {
                *place = angle.cos() as f32;
            }
        }
    }
    Tensor::from_slice(&out, [positions.len(), width])
}

fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * PI / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

fn yarn(base: &[f64], config: &RopeConfig) -> Vec<f64> {
    let RopeScaling::Yarn {
        factor, beta_fast, beta_slow, original_max_position_embeddings: original, truncate, ..
    } = config.scaling
    else {
        unreachable!("called for yarn only");
    };
    let dim = config.rotary_dim as f64;
    // The feature pair that turns `rotations` times over the original context.
    let pair_at = |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * config.rope_theta.ln());
    let (mut low, mut high) = (pair_at(beta_fast), pair_at(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    base.iter()
        .enumerate()
        .map(|(i, &frequency)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * ramp + frequency * (1.0 - ramp)
        })
        .collect()
}
