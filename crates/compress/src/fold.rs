//! Factors on the inputs of linear layers that cost nothing: what is multiplied into their columns is divided out of what
//! comes before them.

use std::collections::HashMap;

use loam_models::{LanguageModel, LayerSpec, Linear, Residual};
use loam_tensor::Parameter;

use crate::calibration::Block;

/// Layers of one block that read the same inputs, and what gives these.
pub(crate) struct Group {
    /// Names of the layers' modules.
    pub(crate) names: Vec<String>,
    pub(crate) linears: Vec<Linear>,
    source: Source,
}

/// What the inputs' factors can be divided out of.
enum Source {
    /// A norm: weight, bias, and whether its scale is one plus the weight.
    Norm(Parameter, Option<Parameter>, bool),
    /// A layer whose outputs are the inputs, but for a weighted sum or a factor in between.
    Linear(Linear),
}

/// The groups of a block. `with_linears` adds those that read what another linear layer wrote.
pub(crate) fn groups(model: &LanguageModel, block: &Block, with_linears: bool) -> Vec<Group> {
    let spec = &model.spec().stack.layers[block.index];
    let parameters: HashMap<String, Parameter> = model.parameters().into_iter().collect();
    let prefix = format!("layers.{}", block.index);
    let linears: HashMap<&str, &Linear> = block.linears.iter().map(|(name, linear)| (name.as_str(), linear)).collect();
    let group = |source: Source, modules: &[&str]| {
        let names: Vec<String> = modules.iter().map(|module| format!("{prefix}.{module}")).collect();
        let linears: Option<Vec<Linear>> = names.iter().map(|n| linears.get(n.as_str()).map(|&l| l.clone())).collect();
        linears.map(|linears| Group { names, linears, source })
    };
    let norm = |name: &str| {
        let parameter = |part: &str| parameters.get(&format!("{prefix}.{name}.{part}")).cloned();
        Some(Source::Norm(parameter("weight")?, parameter("bias"), spec.norm.one_plus_weight))
    };
    let mut found = Vec::new();
    for (name, modules) in behind_norms(spec) {
        found.extend(norm(name).and_then(|source| group(source, &modules)));
    }
    if with_linears {
        let attention = &spec.attention;
        let value = linears.get(format!("{prefix}.attention.v_proj").as_str());
        if let Some(&value) = value.filter(|_| attention.num_attention_heads == attention.num_key_value_heads) {
            found.extend(group(Source::Linear(value.clone()), &["attention.o_proj"]));
        }
        let wide = linears.get(format!("{prefix}.feed_forward.up_proj").as_str());
        if let Some(&wide) = wide.filter(|_| spec.feed_forward.gated) {
            found.extend(group(Source::Linear(wide.clone()), &["feed_forward.down_proj"]));
        }
    }
    found
}

/// The norms of a block that feed linear layers alone, with these.
fn behind_norms(spec: &LayerSpec) -> Vec<(&'static str, Vec<&'static str>)> {
    let attention = vec!["attention.q_proj", "attention.k_proj", "attention.v_proj"];
    let wide = match (spec.experts.is_some(), spec.feed_forward.gated) {
        // A router reads the same inputs and has to be exact.
        (true, _) => Vec::new(),
        (false, true) => vec!["feed_forward.up_proj", "feed_forward.gate_proj"],
        (false, false) => vec!["feed_forward.up_proj"],
    };
    match spec.residual {
        // The norm's output goes on in the residual stream, too.
        Residual::PostNorm => Vec::new(),
        Residual::ParallelSharedNorm if wide.is_empty() => Vec::new(),
        Residual::ParallelSharedNorm => vec![("attention_norm", [attention, wide].concat())],
        _ if wide.is_empty() => vec![("attention_norm", attention)],
        _ => vec![("attention_norm", attention), ("feed_forward_norm", wide)],
    }
}

impl Group {
    /// Multiplies column j of every layer by `factors[j]` and divides its source by it: the same function.
    pub(crate) fn apply(&self, factors: &[f32]) {
        for linear in &self.linears {
            linear.weight.set(&scaled_columns(&linear.weight.to_vec(), factors));
        }
        let divide = |parameter: &Parameter, shift: f32| {
            let divided: Vec<f32> =
                parameter.to_vec().iter().zip(factors).map(|(x, s)| (x + shift) / s - shift).collect();
            parameter.set(&divided);
        };
        match &self.source {
            Source::Norm(weight, bias, one_plus) => {
                divide(weight, f32::from(u8::from(*one_plus)));
                bias.iter().for_each(|bias| divide(bias, 0.0));
            }
            Source::Linear(linear) => {
                let (mut rows, width) = (linear.weight.to_vec(), linear.weight.shape()[1]);
                for (row, s) in rows.chunks_exact_mut(width).zip(factors) {
                    row.iter_mut().for_each(|x| *x /= s);
                }
                linear.weight.set(&rows);
                linear.bias.iter().for_each(|bias| divide(bias, 0.0));
            }
        }
    }
}

/// `w[i][j] * factors[j]`.
pub(crate) fn scaled_columns(w: &[f32], factors: &[f32]) -> Vec<f32> {
    w.chunks_exact(factors.len()).flat_map(|row| row.iter().zip(factors).map(|(w, s)| w * s)).collect()
}
