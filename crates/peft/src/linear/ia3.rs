//! IA3: a factor for every output of a layer, or for every input.

use std::sync::Arc;

use loam_formats::nearest;
use loam_models::LanguageModel;
use loam_nn::{LayerContext, Linear};
use loam_tensor::{Parameter, Tensor, no_grad};

use super::{Attached, LinearAdapter, Named, Rows, file_name};
use crate::config::Ia3;
use crate::error::{Error, Result};
use crate::target::{self, Column};

struct Ia3Part {
    factors: Parameter,
    /// `None`: of the input.
    rows: Option<Rows>,
}

impl Ia3Part {
    fn factors(&self) -> Tensor {
        let factors = Tensor::parameter(&self.factors);
        self.rows.as_ref().map_or_else(|| factors.reshape([factors.count()]), |rows| rows.of_vector(&factors))
    }
}

impl LinearAdapter for Ia3Part {
    fn forward(&self, linear: &Linear, x: &Tensor, _context: &LayerContext) -> Tensor {
        match self.rows {
            None => linear.apply(&x.mul(&self.factors())),
            Some(_) => linear.apply(x).mul(&self.factors()),
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![self.factors.clone()]
    }

    fn merged(&self, linear: &Linear) -> (Vec<f32>, Option<Vec<f32>>) {
        let factors = no_grad(|| self.factors().to_vec());
        let (mut weight, mut bias) = (linear.weight.to_vec(), linear.bias.as_ref().map(Parameter::to_vec));
        let width = linear.weight.shape()[1];
        for (at, row) in weight.chunks_exact_mut(width).enumerate() {
            match self.rows {
                None => row.iter_mut().zip(&factors).for_each(|(w, f)| *w *= f),
                Some(_) => row.iter_mut().for_each(|w| *w *= factors[at]),
            }
        }
        if let (Some(bias), Some(_)) = (&mut bias, &self.rows) {
            bias.iter_mut().zip(&factors).for_each(|(b, f)| *b *= f);
        }
        (weight, bias)
    }
}

/// The names of the layers whose input is scaled.
pub(crate) fn feedforward(model: &LanguageModel, config: &Ia3) -> Vec<String> {
    config.feedforward.clone().unwrap_or_else(|| target::defaults(model.spec().family, Column::Ia3FeedForward))
}

/// IA3 on every layer that the configuration names.
pub(crate) fn ia3(model: &LanguageModel, config: &Ia3) -> Result<(Named, Vec<Attached>)> {
    let sites = target::matching(model, &config.targets, Column::Ia3)?;
    let inside = feedforward(model, config);
    let missing = inside.iter().find(|name| !sites.iter().any(|site| target::ends_with(&site.name, name)));
    if let (Some(name), Some(_)) = (missing, &config.feedforward) {
        let close = nearest(name, sites.iter().filter_map(|site| site.name.rsplit('.').next()));
        return Err(Error::NoTarget {
            name: name.clone(),
            setting: "feedforward_modules",
            what: "target module",
            family: model.spec().family.into(),
            hint: close.map_or("they have to be among the targets".into(), |close| format!("did you mean `{close}`?")),
        });
    }
    let (mut named, mut attached) = (Vec::new(), Vec::new());
    for site in &sites {
        let (inputs, outputs) = (site.in_features(), site.out_features());
        let is_inside = inside.iter().any(|name| target::ends_with(&site.name, name));
        let factors = if is_inside { Parameter::zeros([1, inputs]) } else { Parameter::zeros([outputs, 1]) };
        factors.set(&vec![1.0; factors.count()]);
        for (at, part) in site.parts.iter().enumerate() {
            let rows = (!is_inside).then(|| Rows::of(part, outputs));
            attached.push(Attached {
                key: format!("{}#{at}", site.name),
                linear: part.linear.clone(),
                adapter: Arc::new(Ia3Part { factors: factors.clone(), rows }),
            });
        }
        named.push((file_name(&site.name, "ia3_l"), factors));
    }
    Ok((named, attached))
}
