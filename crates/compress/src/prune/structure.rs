//! Structured pruning: whole blocks, heads and parts of the feed-forward go, and the model is really smaller.

use std::collections::HashMap;

use loam_models::{LanguageModel, Linear};
use serde_json::{Value, json};

use crate::awq::output_error;
use crate::calibration::Calibration;
use crate::linalg::{damped, solve_rows};
use crate::quantise::to_f32;
use crate::statistics::Statistics;
use crate::{Error, Result, Watch};

/// What is left of a model; `None` keeps all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub layers: Option<usize>,
    /// Key and value heads of every block, each with the queries that share it.
    pub heads: Option<usize>,
    /// Width of the feed-forwards.
    pub width: Option<usize>,
}

/// What was taken away, for the report.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Shrunk {
    /// Blocks that stayed, of the original's.
    pub layers: Vec<usize>,
    /// Parameters before.
    pub parameters_before: usize,
    /// Parameters after.
    pub parameters_after: usize,
}

/// Keys of `config.json` that say how many blocks, key heads, heads, and how wide, in the order they are looked for.
const LAYERS: [&str; 2] = ["num_hidden_layers", "n_layer"];
const KEY_HEADS: [&str; 1] = ["num_key_value_heads"];
const HEADS: [&str; 2] = ["num_attention_heads", "n_head"];
const WIDTH: [&str; 3] = ["intermediate_size", "n_inner", "ffn_dim"];

/// A smaller model of the same family, with the parts that matter most. What a removed part gave, those that stay in the
/// same layer make up for by least squares.
///
/// A block matters as much as it turns its input: `1 - cos(x, block(x))`, meaned over tokens (Men et al. 2024,
/// "ShortGPT", equation 1). A head or a feed-forward unit matters as much as its part of the output is large:
/// `tr(W_k H_kk W_k^T)` of the projection behind it, H the products of what this reads.
pub fn shrink(
    model: &LanguageModel,
    shape: Shape,
    calibration: &Calibration,
    watch: Watch<'_>,
) -> Result<(LanguageModel, Shrunk)> {
    to_f32(model);
    check(model, shape)?;
    let kept = kept_layers(model, shape, calibration)?;
    let config = smaller_config(model, shape, &kept)?;
    let small = LanguageModel::new(&config, 0)?;
    let parts = kept_parts(model, shape, calibration, watch)?;
    fill(model, &small, &kept, &parts)?;
    let (before, after) = (model.num_parameters(), small.num_parameters());
    Ok((small, Shrunk { layers: kept, parameters_before: before, parameters_after: after }))
}

fn check(model: &LanguageModel, shape: Shape) -> Result<()> {
    let spec = model.spec();
    let first = &spec.stack.layers[0];
    if spec.stack.layers.iter().any(|layer| layer.experts.is_some()) && (shape.heads.is_some() || shape.width.is_some())
    {
        return Err(Error::setting(
            "a model with experts keeps its heads and widths",
            "remove whole blocks: --layers N",
        ));
    }
    let limits = [
        (shape.layers, spec.stack.layers.len(), "--layers"),
        (shape.heads, first.attention.num_key_value_heads, "--heads"),
        (shape.width, first.feed_forward.intermediate_size, "--width"),
    ];
    for (wanted, own, flag) in limits {
        if let Some(wanted) = wanted.filter(|wanted| !(1..=own).contains(wanted)) {
            let hint = format!("the model has {own}; give a number from 1 to {own}");
            return Err(Error::setting(format!("{flag} {wanted} is not what can be left of {own}"), hint));
        }
    }
    if shape == Shape::default() {
        return Err(Error::setting("nothing says what is to be removed", "give --layers, --heads or --width"));
    }
    Ok(())
}

/// The blocks that stay, ascending.
fn kept_layers(model: &LanguageModel, shape: Shape, calibration: &Calibration) -> Result<Vec<usize>> {
    let count = model.spec().stack.layers.len();
    let Some(wanted) = shape.layers.filter(|&wanted| wanted < count) else { return Ok((0..count).collect()) };
    let influence = calibration.influence(model)?;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| influence[b].total_cmp(&influence[a]).then(a.cmp(&b)));
    order.truncate(wanted);
    order.sort_unstable();
    Ok(order)
}

/// What stays inside of a block, and the projections behind it fitted to that.
struct Parts {
    /// Of the attention's inner features.
    inner: Vec<usize>,
    /// Of its keys' and values'.
    keys: Vec<usize>,
    /// Of the feed-forward's.
    wide: Vec<usize>,
    output: Vec<f32>,
    down: Vec<f32>,
}

fn kept_parts(model: &LanguageModel, shape: Shape, calibration: &Calibration, watch: Watch<'_>) -> Result<Vec<Parts>> {
    let spec = model.spec();
    let mut all = Vec::new();
    if shape.heads.is_none() && shape.width.is_none() {
        return Ok(all);
    }
    calibration.through_blocks(model, true, watch, |block| {
        let layer = &spec.stack.layers[block.index];
        let (attention, wide) = (&layer.attention, layer.feed_forward.intermediate_size);
        let find = |module: &str| -> Result<(&Linear, &Statistics)> {
            let name = format!("layers.{}.{module}", block.index);
            let linear = block.linears.iter().find(|(own, _)| *own == name).map(|(_, linear)| linear);
            let missing = || Error::setting(format!("no text reaches {name}"), "give a longer text with --calibrate");
            Ok((linear.ok_or_else(missing)?, block.inputs(&name).map(|seen| &**seen).ok_or_else(missing)?))
        };
        let groups = attention.num_key_value_heads;
        let (dim, share) = (attention.head_dim, attention.num_attention_heads / groups);
        let (output, seen) = find("attention.o_proj")?;
        let heads = kept(output, seen, groups, shape.heads.unwrap_or(groups));
        let inner = spread(&heads, share * dim);
        let (down, read) = find("feed_forward.down_proj")?;
        let units = kept(down, read, wide, shape.width.unwrap_or(wide));
        all.push(Parts {
            output: fitted(output, seen, &inner)?,
            down: fitted(down, read, &units)?,
            keys: spread(&heads, dim),
            inner,
            wide: units,
        });
        Ok(())
    })?;
    Ok(all)
}

/// Groups of `size` neighbours as their places.
fn spread(groups: &[usize], size: usize) -> Vec<usize> {
    groups.iter().flat_map(|group| group * size..(group + 1) * size).collect()
}

/// The `wanted` of `groups` equal groups of inputs whose part of the output is largest, ascending.
fn kept(linear: &Linear, inputs: &Statistics, groups: usize, wanted: usize) -> Vec<usize> {
    if wanted == groups {
        return (0..groups).collect();
    }
    let (w, width) = (linear.weight.to_vec(), inputs.width);
    let size = width / groups;
    let part = |group: usize| -> f64 {
        let at = group * size..(group + 1) * size;
        let own: Vec<f32> = w.chunks_exact(width).flat_map(|row| row[at.clone()].iter().copied()).collect();
        let products = at.clone().flat_map(|i| inputs.gram[i * width..][at.clone()].iter().map(|&x| x as f32));
        output_error(&own, &products.collect::<Vec<f32>>(), size)
    };
    let scores: Vec<f64> = (0..groups).map(part).collect();
    let mut order: Vec<usize> = (0..groups).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(wanted);
    order.sort_unstable();
    order
}

/// The weight on the columns `kept` that is nearest to the whole one's outputs: `W H[:, kept] H[kept, kept]^-1`.
fn fitted(linear: &Linear, inputs: &Statistics, kept: &[usize]) -> Result<Vec<f32>> {
    let (w, width, n) = (linear.weight.to_vec(), inputs.width, kept.len());
    if n == width {
        return Ok(w);
    }
    let h = damped(&inputs.gram, width, 1e-4);
    let own: Vec<f64> =
        kept.iter().flat_map(|&i| kept.iter().map(move |&j| (i, j))).map(|(i, j)| h[i * width + j]).collect();
    let mut b = Vec::with_capacity(w.len() / width * n);
    for row in w.chunks_exact(width) {
        b.extend(kept.iter().map(|&j| (0..width).map(|i| f64::from(row[i]) * h[i * width + j]).sum::<f64>()));
    }
    if !solve_rows(own, n, &mut b) {
        return Err(Error::setting("a layer's inputs depend on each other", "give a longer text with --calibrate"));
    }
    Ok(b.iter().map(|&x| x as f32).collect())
}

/// Copies what stays, and puts the fitted projections in.
fn fill(model: &LanguageModel, small: &LanguageModel, kept: &[usize], parts: &[Parts]) -> Result<()> {
    let own: HashMap<String, Vec<f32>> = model.parameters().into_iter().map(|(name, p)| (name, p.to_vec())).collect();
    let widths: HashMap<String, usize> =
        model.parameters().into_iter().map(|(name, p)| (name, p.shape().width())).collect();
    for (name, parameter) in small.parameters() {
        let place = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
        let (source, part) = match place.and_then(|(layer, rest)| Some((layer.parse::<usize>().ok()?, rest))) {
            Some((layer, rest)) => {
                (format!("layers.{}.{rest}", kept[layer]), parts.get(kept[layer]).map(|p| (p, rest)))
            }
            None => (name.clone(), None),
        };
        let lost = || {
            Error::setting(format!("the smaller model has a weight {name} that this one lacks"), "report this family")
        };
        let values = own.get(&source).ok_or_else(lost)?;
        let width = widths[&source];
        let rows = |places: &[usize]| -> Vec<f32> {
            // A bias has one number per row.
            let width = if rest_is_bias(&source) { 1 } else { width };
            places.iter().flat_map(|&i| values[i * width..][..width].iter().copied()).collect()
        };
        let values = match part {
            Some((parts, "attention.q_proj.weight" | "attention.q_proj.bias")) => rows(&parts.inner),
            Some((parts, rest)) if rest.starts_with("attention.k_proj") || rest.starts_with("attention.v_proj") => {
                rows(&parts.keys)
            }
            Some((parts, "attention.o_proj.weight")) => parts.output.clone(),
            Some((parts, "feed_forward.down_proj.weight")) => parts.down.clone(),
            Some((parts, rest)) if rest.starts_with("feed_forward.up") || rest.starts_with("feed_forward.gate") => {
                rows(&parts.wide)
            }
            _ => values.clone(),
        };
        if values.len() != parameter.count() {
            return Err(Error::setting(
                format!(
                    "{} models cannot have this shape: {name} would hold {} numbers",
                    small.spec().family,
                    values.len()
                ),
                "remove whole blocks or feed-forward units instead: --layers N, --width N",
            ));
        }
        parameter.set(&values);
    }
    Ok(())
}

fn rest_is_bias(name: &str) -> bool {
    name.ends_with(".bias")
}

/// `config.json` of the smaller model.
fn smaller_config(model: &LanguageModel, shape: Shape, kept: &[usize]) -> Result<Value> {
    let (mut config, spec) = (model.config().clone(), model.spec());
    let count = spec.stack.layers.len();
    let set = |config: &mut Value, keys: &[&str], value: usize| {
        let key = keys.iter().find(|key| config.get(**key).is_some_and(|v| !v.is_null())).unwrap_or(&keys[0]);
        config[*key] = json!(value);
    };
    if kept.len() < count {
        set(&mut config, &LAYERS, kept.len());
        // Lists with an entry per block lose those of the blocks that go.
        for value in config.as_object_mut().into_iter().flat_map(|keys| keys.values_mut()) {
            if let Some(list) = value.as_array_mut().filter(|list| list.len() == count) {
                *list = kept.iter().map(|&layer| list[layer].clone()).collect();
            }
        }
    }
    let attention = &spec.stack.layers[0].attention;
    if let Some(heads) = shape.heads.filter(|&heads| heads < attention.num_key_value_heads) {
        if config.get("n_head").is_some() {
            return Err(Error::setting(
                format!("a head of a {} model is as wide as the model divided by their number", spec.family),
                "remove whole blocks or feed-forward units instead: --layers N, --width N",
            ));
        }
        let share = attention.num_attention_heads / attention.num_key_value_heads;
        set(&mut config, &HEADS, heads * share);
        set(&mut config, &KEY_HEADS, heads);
        config["head_dim"] = json!(attention.head_dim);
    }
    if let Some(width) = shape.width {
        let keys: &[&str] = if config.get("n_embd").is_some() { &["n_inner"] } else { &WIDTH };
        set(&mut config, keys, width);
    }
    Ok(config)
}
