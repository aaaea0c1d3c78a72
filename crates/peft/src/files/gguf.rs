//! LoRA as a GGUF file, as llama.cpp reads it: `general.type = "adapter"`, and for every tensor of the model that is changed
//! `NAME.lora_a` `[r, in]` and `NAME.lora_b` `[out, r]`, in the order of outputs that the model's file has.

use std::collections::BTreeMap;
use std::path::Path;

use loam_formats::gguf::write_split;
use loam_formats::{Gguf, GgufOut, GgufTensor, GgufValue, nearest};
use loam_kernels::quant::{can_dequantise, dequantise_rows};
use loam_models::{LanguageModel, LinearSite};
use loam_tensor::{GgmlType, Parameter};

use super::{Stored, file_error, plain_lora};
use crate::adapter::Adapter;
use crate::config::{Config, Lora, Method, Targets};
use crate::error::{Error, Result};
use crate::linear::{file_name, rank_and_scale};

const SCALE: &str = "adapter.lora.alpha";

/// A site of the model's own files whose layers are all those of `site`, and for every output of `site` the output there.
fn same_layers(sites: &[LinearSite], site: &LinearSite) -> Option<(usize, Vec<(usize, usize)>)> {
    let first = &site.parts[0].linear.weight;
    let is_in =
        |other: &LinearSite, weight: &Parameter| other.parts.iter().any(|part| part.linear.weight.is_same(weight));
    let index = sites.iter().position(|other| is_in(other, first))?;
    let mut outputs = Vec::new();
    for part in &site.parts {
        let own = sites[index].parts.iter().find(|own| own.linear.weight.is_same(&part.linear.weight))?;
        outputs.extend(part.rows.iter().copied().zip(own.rows.iter().copied()));
    }
    Some((index, outputs))
}

impl Adapter {
    /// Writes a LoRA as a GGUF file for llama.cpp. Refuses what that has no words for.
    pub fn save_gguf(&self, model: &LanguageModel, path: &Path) -> Result<()> {
        let (config, tensors) = plain_lora(self.config(), self.saved_tensors());
        let refuse = |problem: &str| Err(Error::Setting(format!("a GGUF adapter holds LoRA alone: {problem}")));
        let lora = match &config.method {
            Method::Lora(lora) if lora.use_dora => return refuse("this is DoRA"),
            Method::Lora(lora) => lora,
            other => return refuse(&format!("this is {}", other.name())),
        };
        if !config.modules_to_save.is_empty() || !config.trainable_tokens.is_empty() {
            return refuse("this adapter has modules or tokens that are trained as a whole");
        }
        let (architecture, theirs) = model.gguf_linear_sites()?;
        let own = model.linear_sites();
        let tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> =
            tensors.into_iter().map(|(name, shape, values): Stored| (name, (shape, values))).collect();
        let mut out: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for site in &theirs {
            let Some((index, outputs)) = same_layers(&own, site) else { continue };
            let name = &own[index].name;
            let stored = |end: &str| tensors.get(&file_name(name, end));
            let (Some((shape, a)), Some((_, b))) = (stored("lora_A.weight"), stored("lora_B.weight")) else { continue };
            let r = shape[0];
            // Readers scale by the file's alpha over the tensor's own rank.
            let factor = rank_and_scale(lora, name)?.1 * r as f64 / lora.alpha;
            let mut rows = vec![0.0f32; outputs.len() * r];
            for &(there, here) in &outputs {
                let values = b[here * r..][..r].iter().map(|x| (f64::from(*x) * factor) as f32);
                rows[there * r..][..r].iter_mut().zip(values).for_each(|(out, x)| *out = x);
            }
            let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            out.push((format!("{}.weight.lora_a", site.name), shape.clone(), bytes(a)));
            out.push((format!("{}.weight.lora_b", site.name), vec![outputs.len(), r], bytes(&rows)));
        }
        if out.len() != tensors.len() {
            return refuse(&format!("{} of its {} tensors have a place in such a file", out.len(), tensors.len()));
        }
        let metadata: Vec<(String, GgufValue)> = vec![
            ("general.architecture".into(), architecture.into()),
            ("general.type".into(), "adapter".into()),
            ("adapter.type".into(), "lora".into()),
            (SCALE.into(), GgufValue::F32(lora.alpha as f32)),
        ];
        let tensors = out.iter().map(|(name, shape, bytes)| GgufOut::new(name.clone(), GgmlType::F32, shape, bytes));
        write_split(path, &metadata, tensors.collect(), u64::MAX)?;
        Ok(())
    }

    /// Opens a LoRA in a GGUF file that was made for this model.
    pub(super) fn open_gguf(model: &LanguageModel, path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        let refuse = |problem: String, hint: &str| Err(file_error(path.into(), problem, hint));
        let (architecture, theirs) = model.gguf_linear_sites()?;
        if file.text("general.type")? != Some("adapter") || file.text("adapter.type")? != Some("lora") {
            return refuse(
                "holds no LoRA".into(),
                "an adapter's file says general.type = adapter and adapter.type = lora",
            );
        }
        let found = file.text("general.architecture")?.unwrap_or_default();
        if found != architecture {
            return refuse(
                format!("is for {found} models, this is one of {architecture}"),
                "choose the model it was made for",
            );
        }
        let alpha = file.number(SCALE)?.unwrap_or(0.0);
        let own = model.linear_sites();
        let is_known = |tensor: &&GgufTensor| {
            theirs.iter().any(|site| {
                let end = tensor.name.strip_prefix(&site.name);
                end.is_some_and(|end| [".weight.lora_a", ".weight.lora_b"].contains(&end))
            })
        };
        if let Some(left) = file.tensors().iter().find(|tensor| !is_known(tensor)) {
            let close = nearest(&left.name, theirs.iter().map(|site| site.name.as_str()));
            let hint = close.map_or_else(
                || "only linear layers can be changed here".to_owned(),
                |close| format!("the nearest layer is `{close}`"),
            );
            return refuse(format!("tensor `{}` has no place in the model", left.name), &hint);
        }
        let mut read = BTreeMap::new();
        for site in &theirs {
            let tensor = |end: &str| file.find(&format!("{}.weight.{end}", site.name));
            let (a, b) = match (tensor("lora_a"), tensor("lora_b")) {
                (Some(a), Some(b)) => (a, b),
                (None, None) => continue,
                _ => return refuse(format!("has one of lora_a and lora_b of {}", site.name), "copy the adapter again"),
            };
            let r = a.shape[0];
            let Some((index, outputs)) = same_layers(&own, site) else { continue };
            if a.shape != [r, site.in_features()] || b.shape != [site.out_features(), r] {
                let problem = format!(
                    "tensors {}.weight.lora_a {:?} and lora_b {:?} do not fit the model",
                    site.name, a.shape, b.shape
                );
                return refuse(problem, "is this the model that the adapter was made for?");
            }
            let (a, b) = (values(&file, a)?, values(&file, b)?);
            // A file without alpha means the product as it is.
            let (_, rows) =
                read.entry(own[index].name.clone()).or_insert((a, vec![0.0f32; own[index].out_features() * r]));
            outputs.iter().for_each(|&(there, here)| rows[here * r..][..r].copy_from_slice(&b[there * r..][..r]));
        }
        adapter_of(model, read, alpha)
    }
}

fn values(file: &Gguf, tensor: &GgufTensor) -> Result<Vec<f32>> {
    if !can_dequantise(tensor.ty) {
        let problem =
            format!("tensor `{}` has the element type {}, which is not decoded here", tensor.name, tensor.ty.name());
        return Err(file_error(file.path().into(), problem, "convert the adapter to f32 or f16"));
    }
    let mut values = vec![0.0; tensor.elements()];
    dequantise_rows(tensor.ty, file.bytes(tensor), &mut values);
    Ok(values)
}

/// A LoRA with these factors A and B by the names of layers.
fn adapter_of(model: &LanguageModel, read: BTreeMap<String, (Vec<f32>, Vec<f32>)>, alpha: f64) -> Result<Adapter> {
    let inputs: BTreeMap<String, usize> =
        model.linear_sites().iter().map(|site| (site.name.clone(), site.in_features())).collect();
    let rank = |name: &str, a: &[f32]| a.len() / inputs[name].max(1);
    let r = read.iter().map(|(name, (a, _))| rank(name, a)).max().unwrap_or(1);
    let escaped = |name: &str| regex::escape(name);
    let others = read.iter().map(|(name, (a, _))| (name, rank(name, a))).filter(|(_, own)| *own != r);
    let rank_pattern: Vec<(String, usize)> = others.map(|(name, own)| (escaped(name), own)).collect();
    // Without an alpha the product is meant as it is: then it is the rank, also where that differs.
    let has_alpha = alpha != 0.0;
    let alpha_pattern =
        rank_pattern.iter().filter(|_| !has_alpha).map(|(name, own)| (name.clone(), *own as f64)).collect();
    let lora = Lora {
        targets: Targets::Names(read.keys().cloned().collect()),
        r,
        alpha: if has_alpha { alpha } else { r as f64 },
        rank_pattern,
        alpha_pattern,
        ..Lora::default()
    };
    let adapter = Adapter::bare(model, &Config::new(Method::Lora(lora)))?;
    for (name, parameter) in adapter.parameters() {
        let factors = read.iter().find_map(|(site, (a, b))| {
            let is = |end: &str| *name == file_name(site, end);
            if is("lora_A.weight") { Some(a) } else { is("lora_B.weight").then_some(b) }
        });
        if let Some(values) = factors {
            parameter.set(values);
        }
    }
    Ok(adapter)
}
