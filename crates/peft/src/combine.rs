//! Several LoRA adapters of one model as one, in the ways of PEFT's `add_weighted_adapter`.

use loam_kernels::rng::Rng;
use loam_models::LanguageModel;
use loam_tensor::Parameter;

use crate::adapter::{Adapter, Origin};
use crate::config::{Config, Lora, Method, Targets};
use crate::error::{Error, Result};
use crate::linalg;
use crate::linear::{file_name, rank_and_scale};
use crate::target::{self, Column};

/// How adapters become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combination {
    /// Weighted sums of A and of B, each with the root of the weight: an approximation, the ranks have to be equal.
    Linear,
    /// All of their ranks side by side: exact.
    Cat,
    /// The largest singular vectors of the weighted sum of changes; `rank` of them, by default the largest rank.
    Svd {
        /// Rank of the result.
        rank: Option<usize>,
    },
    /// The largest `density` of each adapter's numbers, those whose sign the majority has (Yadav et al. 2023).
    Ties {
        /// Share of the numbers that stays.
        density: f64,
    },
    /// Random `density` of each adapter's numbers, divided by it, and then as `Linear` (Yu et al. 2024).
    DareLinear {
        /// Share of the numbers that stays.
        density: f64,
        /// Seed of which stay.
        seed: u64,
    },
    /// Random `density` of each adapter's numbers, divided by it, and then as `Ties`.
    DareTies {
        /// Share of the numbers that stays.
        density: f64,
        /// Seed of which stay.
        seed: u64,
    },
    /// The largest `density` of each adapter's numbers, and then as `Linear`.
    MagnitudePrune {
        /// Share of the numbers that stays.
        density: f64,
    },
}

/// One layer of one adapter, with its weight in the sum.
struct Part {
    a: Vec<f32>,
    b: Vec<f32>,
    r: usize,
    /// Weight times scale.
    factor: f64,
}

/// Makes one adapter of several; the result's scale is one.
pub fn combine(model: &LanguageModel, adapters: &[(&Adapter, f64)], how: Combination) -> Result<Adapter> {
    let (loras, targets) = checked(adapters, how)?;
    let rank = match how {
        Combination::Cat => loras.iter().map(|lora| lora.r).sum(),
        Combination::Svd { rank } => rank.unwrap_or_else(|| loras.iter().map(|lora| lora.r).max().unwrap_or(1)),
        _ => loras[0].r,
    };
    let own = Lora { targets, r: rank, alpha: rank as f64, ..Lora::default() };
    let config = Config { base: adapters[0].0.config().base.clone(), ..Config::new(Method::Lora(own.clone())) };
    let result = Adapter::new(model, &config, Origin::default())?;
    for site in target::matching(model, &own.targets, Column::Lora)? {
        let names = ["lora_A.weight", "lora_B.weight"].map(|end| file_name(&site.name, end));
        let mut parts = Vec::new();
        for ((adapter, weight), lora) in adapters.iter().zip(&loras) {
            let [a, b] = names.each_ref().map(|name| find(adapter, name));
            if let (Some(a), Some(b)) = (a, b) {
                let (r, scale) = rank_and_scale(lora, &site.name)?;
                parts.push(Part { a: a.to_vec(), b: b.to_vec(), r, factor: weight * scale });
            }
        }
        let [Some(a), Some(b)] = names.each_ref().map(|name| find(&result, name)) else { continue };
        let (values_a, values_b) = combined(&parts, how, rank, site.in_features(), site.out_features(), &site.name);
        a.set(&values_a);
        b.set(&values_b);
    }
    Ok(result)
}

fn find(adapter: &Adapter, name: &str) -> Option<Parameter> {
    adapter.parameters().iter().find(|(known, _)| known == name).map(|(_, parameter)| parameter.clone())
}

/// The adapters' settings and all their targets, if they can be combined like that.
fn checked(adapters: &[(&Adapter, f64)], how: Combination) -> Result<(Vec<Lora>, Targets)> {
    let refuse = |why: String| Err(Error::Setting(format!("the adapters cannot be combined: {why}")));
    if adapters.is_empty() {
        return refuse("there is none".into());
    }
    let mut loras = Vec::new();
    for (number, (adapter, weight)) in adapters.iter().enumerate() {
        let config = adapter.config();
        let Method::Lora(lora) = &config.method else {
            return refuse(format!("adapter {number} is {}, only LoRA's can be added up", config.method.name()));
        };
        if lora.use_dora || lora.init.takes_from_weight() {
            return refuse(format!("adapter {number} is more than A and B (DoRA, PiSSA or OLoRA as it trains)"));
        }
        if !config.modules_to_save.is_empty() || !config.trainable_tokens.is_empty() {
            return refuse(format!("adapter {number} trains modules or vectors of tokens besides"));
        }
        if !weight.is_finite() {
            return refuse(format!("the weight of adapter {number} is {weight}"));
        }
        loras.push(lora.clone());
    }
    let density = match how {
        Combination::Ties { density }
        | Combination::MagnitudePrune { density }
        | Combination::DareLinear { density, .. }
        | Combination::DareTies { density, .. } => density,
        _ => 1.0,
    };
    if !(density > 0.0 && density <= 1.0) {
        return refuse(format!("the density is {density}, it must be above 0 and at most 1"));
    }
    let needs_equal = !matches!(how, Combination::Cat | Combination::Svd { .. });
    let has_patterns = loras.iter().any(|lora| !lora.rank_pattern.is_empty());
    if has_patterns && !matches!(how, Combination::Svd { .. }) || needs_equal && loras.iter().any(|l| l.r != loras[0].r)
    {
        return refuse("their ranks differ; `svd` takes any, `cat` any that are the same in all layers".into());
    }
    let mut names: Vec<String> = Vec::new();
    for lora in &loras {
        match &lora.targets {
            Targets::Names(own) => {
                names.extend(own.iter().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>())
            }
            other if loras.iter().all(|lora| lora.targets == *other) => return Ok((loras.clone(), other.clone())),
            _ => return refuse("their targets are not all lists of names".into()),
        }
    }
    Ok((loras, Targets::Names(names)))
}

fn combined(
    parts: &[Part],
    how: Combination,
    rank: usize,
    inputs: usize,
    outputs: usize,
    name: &str,
) -> (Vec<f32>, Vec<f32>) {
    match how {
        Combination::Cat => side_by_side(parts, rank, inputs, outputs),
        Combination::Svd { .. } => {
            let mut delta = vec![0.0f64; inputs * outputs];
            for part in parts {
                for (row, sums) in delta.chunks_exact_mut(inputs).enumerate() {
                    for k in 0..part.r {
                        let b = part.factor * f64::from(part.b[row * part.r + k]);
                        sums.iter_mut().zip(&part.a[k * inputs..]).for_each(|(s, a)| *s += b * f64::from(*a));
                    }
                }
            }
            let delta: Vec<f32> = delta.into_iter().map(|x| x as f32).collect();
            let svd = linalg::svd(&delta, outputs, inputs, rank);
            let (mut a, mut b) = (vec![0.0; rank * inputs], vec![0.0; outputs * rank]);
            for (k, ((left, value), right)) in svd.left.iter().zip(&svd.values).zip(&svd.right).enumerate() {
                a[k * inputs..][..inputs].iter_mut().zip(right).for_each(|(a, x)| *a = *x as f32);
                left.iter().enumerate().for_each(|(row, x)| b[row * rank + k] = (x * value) as f32);
            }
            (a, b)
        }
        _ => {
            // The sign of a weight goes to one side only.
            let weights_a: Vec<f32> = parts
                .iter()
                .map(|p| (p.factor.abs().sqrt() * if p.factor < 0.0 { -1.0 } else { 1.0 }) as f32)
                .collect();
            let weights_b: Vec<f32> = parts.iter().map(|p| p.factor.abs().sqrt() as f32).collect();
            let side = |pick: fn(&Part) -> &Vec<f32>, weights: &[f32], side: &str| {
                let tensors = parts.iter().map(pick).enumerate();
                let pruned = tensors.map(|(at, x)| pruned(x, how, &format!("{name} {side} {at}"))).collect::<Vec<_>>();
                added_up(&pruned, weights, how)
            };
            (side(|p| &p.a, &weights_a, "A"), side(|p| &p.b, &weights_b, "B"))
        }
    }
}

fn side_by_side(parts: &[Part], rank: usize, inputs: usize, outputs: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut a, mut b, mut start) = (vec![0.0; rank * inputs], vec![0.0; outputs * rank], 0);
    for part in parts {
        let own = &mut a[start * inputs..][..part.r * inputs];
        own.iter_mut().zip(&part.a).for_each(|(a, x)| *a = x * part.factor as f32);
        for row in 0..outputs {
            b[row * rank + start..][..part.r].copy_from_slice(&part.b[row * part.r..][..part.r]);
        }
        start += part.r;
    }
    (a, b)
}

/// The numbers that stay.
fn pruned(values: &[f32], how: Combination, purpose: &str) -> Vec<f32> {
    match how {
        Combination::Ties { density } | Combination::MagnitudePrune { density } if density < 1.0 => {
            let kept = (density * values.len() as f64) as usize;
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
            let mut out = vec![0.0; values.len()];
            order[..kept].iter().for_each(|&at| out[at] = values[at]);
            out
        }
        Combination::DareLinear { density, seed } | Combination::DareTies { density, seed } if density < 1.0 => {
            let rng = Rng::new(seed, purpose, 0);
            let stays = |at: usize| f64::from(rng.uniform_f32(at as u64)) < density;
            values.iter().enumerate().map(|(at, x)| if stays(at) { x / density as f32 } else { 0.0 }).collect()
        }
        _ => values.to_vec(),
    }
}

/// The weighted sum; with TIES the mean of those that have the majority's sign.
fn added_up(tensors: &[Vec<f32>], weights: &[f32], how: Combination) -> Vec<f32> {
    let is_ties = matches!(how, Combination::Ties { .. } | Combination::DareTies { .. });
    let at = |i: usize| {
        let mut sum = 0.0;
        if !is_ties {
            tensors.iter().zip(weights).for_each(|(x, w)| sum += w * x[i]);
            return sum;
        }
        let total: f32 = tensors.iter().map(|x| x[i]).sum();
        let majority = if total >= 0.0 { 1.0 } else { -1.0 };
        let sign = |x: f32| if x == 0.0 { 0.0 } else { x.signum() };
        let mut kept = 0.0f32;
        for (x, w) in tensors.iter().zip(weights).filter(|(x, _)| sign(x[i]) == majority) {
            (sum, kept) = (sum + w * x[i], kept + 1.0);
        }
        sum / kept.max(1.0)
    };
    (0..tensors.first().map_or(0, Vec::len)).map(at).collect()
}
