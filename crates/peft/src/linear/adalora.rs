//! AdaLoRA: `W + s/r B E A`, and where its ranks go.

use std::sync::Arc;

use loam_models::LanguageModel;
use loam_nn::{LayerContext, Linear};
use loam_tensor::{Parameter, Tensor, no_grad};

use super::lora::normal;
use super::{Attached, LinearAdapter, Named, Rows, dropout_place, file_name, outer, plus};
use crate::config::AdaLora;
use crate::error::{Error, Result};
use crate::target::{self, Column};

/// One layer's part of an AdaLoRA layer of the files.
pub(crate) struct AdaLoraPart {
    a: Parameter,
    e: Parameter,
    b: Parameter,
    rows: Rows,
    scale: f32,
    dropout: f32,
    place: u64,
}

impl LinearAdapter for AdaLoraPart {
    fn forward(&self, linear: &Linear, x: &Tensor, context: &LayerContext) -> Tensor {
        // All of its ranks may have gone elsewhere.
        if self.e.count() == 0 {
            return linear.apply(x);
        }
        let dropped = context.drop_with(x.clone(), self.dropout, self.place);
        let e = Tensor::parameter(&self.e);
        let low = dropped.linear(&Tensor::parameter(&self.a), None).mul(&e.reshape([e.count()]));
        let b = self.rows.of_matrix(&Tensor::parameter(&self.b));
        &linear.apply(x) + &low.linear(&b, None).scale(self.scale)
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![self.a.clone(), self.e.clone(), self.b.clone()]
    }

    fn merged(&self, linear: &Linear) -> (Vec<f32>, Option<Vec<f32>>) {
        if self.e.count() == 0 {
            return (linear.weight.to_vec(), linear.bias.as_ref().map(Parameter::to_vec));
        }
        let delta = no_grad(|| {
            let e = Tensor::parameter(&self.e);
            let b = self.rows.of_matrix(&Tensor::parameter(&self.b)).mul(&e.reshape([e.count()]));
            outer(&b, &Tensor::parameter(&self.a)).scale(self.scale)
        });
        plus(linear, &delta)
    }
}

/// Added to the rank that PEFT divides by.
const EPSILON: f64 = 1e-5;

/// AdaLoRA on every layer that the configuration names. Where ranks are settled, only those that are left.
pub(crate) fn adalora(model: &LanguageModel, config: &AdaLora, seed: u64) -> Result<(Named, Vec<Attached>)> {
    let sites = target::matching(model, &config.targets, Column::AdaLora)?;
    if config.init_r == 0 {
        return Err(Error::Setting("`init_r` is 0: ranks have to start somewhere".into()));
    }
    let (mut named, mut attached) = (Vec::new(), Vec::new());
    for (index, site) in sites.iter().enumerate() {
        let (inputs, outputs) = (site.in_features(), site.out_features());
        let key = format!("{}.lora_E", site.name);
        let kept = config.rank_pattern.iter().find(|(name, _)| target::ends_with(name, &key));
        let r = kept.map_or(config.init_r, |(_, left)| left.iter().filter(|&&is| is).count());
        let (a, e, b) = (Parameter::zeros([r, inputs]), Parameter::zeros([r, 1]), Parameter::zeros([outputs, r]));
        let names = ["lora_A", "lora_E", "lora_B"].map(|rest| file_name(&site.name, rest));
        a.set(&normal(r * inputs, 0.02, seed, &names[0]));
        b.set(&normal(r * outputs, 0.02, seed, &names[2]));
        // The number of ranks that PEFT divides by stays the one at the start.
        let alpha = if config.alpha > 0.0 { config.alpha } else { config.init_r as f64 };
        for (at, part) in site.parts.iter().enumerate() {
            let adapter = AdaLoraPart {
                a: a.clone(),
                e: e.clone(),
                b: b.clone(),
                rows: Rows::of(part, outputs),
                scale: (alpha / (config.init_r as f64 + EPSILON)) as f32,
                dropout: config.dropout as f32,
                place: dropout_place(index),
            };
            attached.push(Attached {
                key: format!("{}#{at}", site.name),
                linear: part.linear.clone(),
                adapter: Arc::new(adapter),
            });
        }
        named.extend(names.into_iter().zip([a, e, b]));
    }
    Ok((named, attached))
}
