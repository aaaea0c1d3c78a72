//! LoRA and DoRA.

use std::sync::{Arc, OnceLock};

use loam_kernels::rng::Rng;
use loam_models::{LanguageModel, LinearSite};
use loam_nn::{Init, LayerContext, Linear};
use loam_tensor::{DType, GgmlType, Parameter, Precision, Raw, Tensor, no_grad, with_precision};

use super::{Attached, LinearAdapter, Named, Rows, dropout_place, file_name, outer, plus};
use crate::config::{Lora, LoraInit};
use crate::error::{Error, Result};
use crate::linalg;
use crate::target::{self, Column};

/// Ends of the names of what was taken out of a weight.
pub(crate) const TAKEN_A: &str = "taken_A.weight";
pub(crate) const TAKEN_B: &str = "taken_B.weight";

/// One layer's part of a LoRA layer of the files.
pub(crate) struct LoraPart {
    a: Parameter,
    b: Parameter,
    /// What was taken out of the weight: the same scale, never trained.
    taken: Option<(Parameter, Parameter)>,
    /// DoRA's lengths of rows.
    magnitude: Option<Parameter>,
    rows: Rows,
    scale: f32,
    dropout: f32,
    place: u64,
    /// Squared lengths of the base weight's rows, once they are needed.
    squares: OnceLock<Vec<f64>>,
}

impl LoraPart {
    /// `B A x` without the scale, and what was taken out.
    fn low_rank(&self, x: &Tensor) -> Tensor {
        let through = |a: &Parameter, b: &Parameter| {
            let b = self.rows.of_matrix(&Tensor::parameter(b));
            x.linear(&Tensor::parameter(a), None).linear(&b, None)
        };
        let own = through(&self.a, &self.b);
        match &self.taken {
            Some((a, b)) => &own - &through(a, b),
            None => own,
        }
    }

    fn delta(&self) -> Tensor {
        let product =
            |a: &Parameter, b: &Parameter| outer(&self.rows.of_matrix(&Tensor::parameter(b)), &Tensor::parameter(a));
        no_grad(|| {
            let own = product(&self.a, &self.b);
            let all = self.taken.as_ref().map_or(own.clone(), |(a, b)| &own - &product(a, b));
            all.scale(self.scale)
        })
    }

    /// Lengths of the rows of `W + s B A`, from the factors: `|w|² + 2 s b·(A w) + s² b·(A A^T b)`.
    fn lengths(&self, linear: &Linear) -> Vec<f32> {
        let width = linear.weight.shape()[1];
        let squares = self.squares.get_or_init(|| {
            let values = linear.weight.to_vec();
            values.chunks_exact(width).map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum()).collect()
        });
        let (a, b) = (self.a.to_vec(), no_grad(|| self.rows.of_matrix(&Tensor::parameter(&self.b)).to_vec()));
        let r = self.a.shape()[0];
        // In full, whatever the run's products are taken in: the lengths' ratio is near one. Products with halves are those of
        // f32 then, those with other types would round A.
        let weight = || match linear.weight.dtype() {
            DType::F32 | DType::Ggml(GgmlType::Bf16 | GgmlType::F16) => Tensor::parameter(&linear.weight),
            _ => Tensor::from_slice(&linear.weight.to_vec(), linear.weight.shape()),
        };
        let product = || Tensor::parameter(&self.a).linear(&weight(), None).transpose(0, 1).to_vec();
        let crossed = with_precision(Precision::F32, || no_grad(product));
        let mut gram = vec![0.0; r * r];
        for i in 0..r {
            for j in 0..r {
                let (x, y) = (&a[i * width..][..width], &a[j * width..][..width]);
                gram[i * r + j] = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            }
        }
        let scale = f64::from(self.scale);
        let length = |(row, square): (usize, &f64)| {
            let b = &b[row * r..][..r];
            let cross: f64 = b.iter().zip(&crossed[row * r..]).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            let mut own = 0.0;
            for i in 0..r {
                for j in 0..r {
                    own += f64::from(b[i]) * gram[i * r + j] * f64::from(b[j]);
                }
            }
            (square + 2.0 * scale * cross + scale * scale * own).max(0.0).sqrt() as f32
        };
        squares.iter().enumerate().map(length).collect()
    }
}

impl LinearAdapter for LoraPart {
    fn forward(&self, linear: &Linear, x: &Tensor, context: &LayerContext) -> Tensor {
        let dropped = context.drop_with(x.clone(), self.dropout, self.place);
        let change = self.low_rank(&dropped).scale(self.scale);
        let base = linear.apply(x);
        let Some(magnitude) = &self.magnitude else { return &base + &change };
        // The length counts as a constant in backward (Liu et al. 2024, section 4.3).
        let lengths = self.lengths(linear);
        let lengths = Tensor::from_slice(&lengths, [lengths.len()]);
        let factor = self.rows.of_vector(&Tensor::parameter(magnitude)).div(&lengths);
        // As in PEFT: the layer's own output, and how it changes for what the adapter sees, without the bias.
        let seen = match &linear.bias {
            _ if self.dropout > 0.0 && context.dropout.is_some() => {
                dropped.linear(&Tensor::parameter(&linear.weight), None)
            }
            Some(bias) => &base - &Tensor::parameter(bias),
            None => base.clone(),
        };
        &base + &(&(&seen + &change).mul(&factor) - &seen)
    }

    fn parameters(&self) -> Vec<Parameter> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude).cloned().collect()
    }

    fn merged(&self, linear: &Linear) -> (Vec<f32>, Option<Vec<f32>>) {
        let (mut weight, bias) = plus(linear, &self.delta());
        if let Some(magnitude) = &self.magnitude {
            let magnitude = no_grad(|| self.rows.of_vector(&Tensor::parameter(magnitude)).to_vec());
            let width = linear.weight.shape()[1];
            let factors = magnitude.iter().zip(self.lengths(linear)).map(|(m, length)| m / length);
            for (row, factor) in weight.chunks_exact_mut(width).zip(factors) {
                row.iter_mut().for_each(|w| *w *= factor);
            }
        }
        (weight, bias)
    }
}

/// Uniform as the weight of PyTorch's linear layer.
pub(crate) fn like_linear(parameter: &Parameter, inputs: usize, seed: u64, name: &str) {
    Init::Uniform { bound: 1.0 / (inputs as f32).sqrt() }.fill(parameter, seed, name);
}

/// `[rows of vectors] -> values`, row by row.
fn rows_of(vectors: &[Vec<f64>], factors: &[f64]) -> Vec<f32> {
    vectors.iter().zip(factors).flat_map(|(v, f)| v.iter().map(move |x| (x * f) as f32)).collect()
}

/// The same with the vectors as columns.
fn columns_of(vectors: &[Vec<f64>], factors: &[f64]) -> Vec<f32> {
    let len = vectors.first().map_or(0, Vec::len);
    (0..len).flat_map(|at| vectors.iter().zip(factors).map(move |(v, f)| (v[at] * f) as f32)).collect()
}

/// A and B that start as a part of the weight.
fn taken(site: &LinearSite, init: LoraInit, r: usize, scale: f64) -> (Vec<f32>, Vec<f32>) {
    let (rows, columns, weight) = (site.out_features(), site.in_features(), site.weight());
    match init {
        LoraInit::Pissa => {
            let svd = linalg::svd(&weight, rows, columns, r);
            let roots: Vec<f64> = svd.values.iter().map(|s| (s / scale).sqrt()).collect();
            (rows_of(&svd.right, &roots), columns_of(&svd.left, &roots))
        }
        // The Q and R of LAPACK have other signs, both of them; their product is the same.
        _ => {
            let (q, right) = linalg::qr(&weight, rows, columns, r);
            let ones = vec![1.0; r];
            (rows_of(&right, &ones), columns_of(&q, &ones))
        }
    }
}

/// Rank and scale of a layer.
pub(crate) fn rank_and_scale(config: &Lora, name: &str) -> Result<(usize, f64)> {
    let r = target::by_pattern(&config.rank_pattern, name, config.r, "rank_pattern")?;
    let alpha = target::by_pattern(&config.alpha_pattern, name, config.alpha, "alpha_pattern")?;
    Ok((r, alpha / if config.use_rslora { (r as f64).sqrt() } else { r as f64 }))
}

/// Refuses patterns that match no target, in what someone has just written; files may carry them along.
pub(crate) fn check_patterns(model: &LanguageModel, config: &Lora) -> Result<()> {
    let sites = target::matching(model, &config.targets, Column::Lora)?;
    target::check_patterns(&config.rank_pattern, &sites, "rank_pattern")?;
    target::check_patterns(&config.alpha_pattern, &sites, "alpha_pattern")
}

/// LoRA on every layer that the configuration names.
pub(crate) fn lora(model: &LanguageModel, config: &Lora, seed: u64) -> Result<(Named, Vec<Attached>)> {
    if config.use_dora && config.init.takes_from_weight() {
        return Err(Error::Setting(
            "DoRA's lengths need the whole weight, of which PiSSA and OLoRA take a part".into(),
        ));
    }
    let sites = target::matching(model, &config.targets, Column::Lora)?;
    let (mut named, mut attached) = (Vec::new(), Vec::new());
    for (index, site) in sites.iter().enumerate() {
        let (r, scale) = rank_and_scale(config, &site.name)?;
        let (inputs, outputs) = (site.in_features(), site.out_features());
        if r == 0 {
            return Err(Error::Setting(format!("the rank of `{}` is 0: it must be 1 at least", site.name)));
        }
        if config.init.takes_from_weight() && r > inputs.min(outputs) {
            return Err(Error::Setting(format!("`{}` is {outputs} x {inputs}: it has no rank {r}", site.name)));
        }
        let name_a = file_name(&site.name, "lora_A.weight");
        let name_b = file_name(&site.name, "lora_B.weight");
        let (a, b) = (Parameter::zeros([r, inputs]), Parameter::zeros([outputs, r]));
        let mut out = None;
        match config.init {
            LoraInit::Default => like_linear(&a, inputs, seed, &name_a),
            LoraInit::Gaussian => Init::Normal { std: 1.0 / r as f32 }.fill(&a, seed, &name_a),
            LoraInit::Random => {
                like_linear(&a, inputs, seed, &name_a);
                like_linear(&b, r, seed, &name_b);
            }
            init => {
                let (values_a, values_b) = taken(site, init, r, scale);
                a.set(&values_a);
                b.set(&values_b);
                let frozen = |values: &[f32], shape: [usize; 2]| {
                    let copy = Parameter::new(Raw::from_f32(values, shape));
                    copy.set_trainable(false);
                    copy
                };
                let (kept_a, kept_b) = (frozen(&values_a, [r, inputs]), frozen(&values_b, [outputs, r]));
                named.push((file_name(&site.name, TAKEN_A), kept_a.clone()));
                named.push((file_name(&site.name, TAKEN_B), kept_b.clone()));
                out = Some((kept_a, kept_b));
            }
        }
        let magnitude = config.use_dora.then(|| Parameter::zeros([outputs]));
        let mut parts = Vec::new();
        for (at, part) in site.parts.iter().enumerate() {
            let lora = LoraPart {
                a: a.clone(),
                b: b.clone(),
                taken: out.clone(),
                magnitude: magnitude.clone(),
                rows: Rows::of(part, outputs),
                scale: scale as f32,
                dropout: config.dropout as f32,
                place: dropout_place(index),
                squares: OnceLock::new(),
            };
            parts.push((format!("{}#{at}", site.name), part, Arc::new(lora)));
        }
        if let Some(magnitude) = &magnitude {
            // The lengths of the weight with the adapter as it starts.
            let mut values = vec![0.0; outputs];
            for (_, part, lora) in &parts {
                part.rows.iter().zip(lora.lengths(&part.linear)).for_each(|(&row, length)| values[row] = length);
            }
            magnitude.set(&values);
        }
        named.extend([(name_a, a), (name_b, b)]);
        named.extend(magnitude.map(|magnitude| (file_name(&site.name, "lora_magnitude_vector"), magnitude)));
        attached.extend(parts.into_iter().map(|(key, part, adapter)| Attached {
            key,
            linear: part.linear.clone(),
            adapter: adapter as Arc<dyn LinearAdapter>,
        }));
    }
    Ok((named, attached))
}

/// Normal numbers of PyTorch's standard deviation, for whoever needs them by name.
pub(crate) fn normal(count: usize, std: f32, seed: u64, name: &str) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Rng::new(seed, name, 0).fill_normal(&mut values, 0.0, std);
    values
}
