//! VeRA: `W + diag(b) B diag(d) A`, where A and B are random, fixed, and shared by all layers.

use std::sync::Arc;

use loam_models::LanguageModel;
use loam_nn::{Fan, Init, LayerContext, Linear};
use loam_tensor::{Parameter, Tensor, no_grad};

use super::{Attached, LinearAdapter, Named, Rows, dropout_place, file_name, outer, plus};
use crate::config::Vera;
use crate::error::{Error, Result};
use crate::target::{self, Column};

struct VeraPart {
    /// Of all layers: `[r, widest input]`, `[widest output, r]`.
    shared: (Parameter, Parameter),
    sizes: (usize, usize),
    lambda_b: Parameter,
    lambda_d: Parameter,
    rows: Rows,
    dropout: f32,
    place: u64,
}

impl VeraPart {
    fn a(&self) -> Tensor {
        let a = Tensor::parameter(&self.shared.0);
        if a.size(1) == self.sizes.0 { a } else { a.narrow(1, 0, self.sizes.0) }
    }

    fn b(&self) -> Tensor {
        let b = Tensor::parameter(&self.shared.1);
        self.rows.of_matrix(&if b.size(0) == self.sizes.1 { b } else { b.narrow(0, 0, self.sizes.1) })
    }
}

impl LinearAdapter for VeraPart {
    fn forward(&self, linear: &Linear, x: &Tensor, context: &LayerContext) -> Tensor {
        let dropped = context.drop_with(x.clone(), self.dropout, self.place);
        let low = dropped.linear(&self.a(), None).mul(&Tensor::parameter(&self.lambda_d));
        let change = low.linear(&self.b(), None).mul(&self.rows.of_vector(&Tensor::parameter(&self.lambda_b)));
        &linear.apply(x) + &change
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![self.lambda_b.clone(), self.lambda_d.clone()]
    }

    fn merged(&self, linear: &Linear) -> (Vec<f32>, Option<Vec<f32>>) {
        let delta = no_grad(|| {
            let lambda_b = self.rows.of_vector(&Tensor::parameter(&self.lambda_b));
            let product = outer(&self.b().mul(&Tensor::parameter(&self.lambda_d)), &self.a());
            product.mul(&lambda_b.repeat_last(self.sizes.0))
        });
        plus(linear, &delta)
    }
}

/// VeRA on every layer that the configuration names.
pub(crate) fn vera(model: &LanguageModel, config: &Vera) -> Result<(Named, Vec<Attached>)> {
    let sites = target::matching(model, &config.targets, Column::Lora)?;
    if config.r == 0 {
        return Err(Error::Setting("VeRA's rank is 0: it must be 1 at least".into()));
    }
    let widest = |size: fn(&loam_models::LinearSite) -> usize| sites.iter().map(size).max().unwrap_or(0);
    let shared = (
        Parameter::zeros([config.r, widest(|site| site.in_features())]),
        Parameter::zeros([widest(|site| site.out_features()), config.r]),
    );
    let mut named = Vec::new();
    for (name, parameter) in [("base_model.vera_A", &shared.0), ("base_model.vera_B", &shared.1)] {
        let init = Init::KaimingUniform { fan: Fan::In, gain: std::f32::consts::SQRT_2 };
        init.fill(parameter, config.projection_prng_key, name);
        parameter.set_trainable(false);
        named.push((name.to_owned(), parameter.clone()));
    }
    let mut attached = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let (inputs, outputs) = (site.in_features(), site.out_features());
        let (lambda_b, lambda_d) = (Parameter::zeros([outputs]), Parameter::zeros([config.r]));
        lambda_d.set(&vec![config.d_initial as f32; config.r]);
        for (at, part) in site.parts.iter().enumerate() {
            let adapter = VeraPart {
                shared: shared.clone(),
                sizes: (inputs, outputs),
                lambda_b: lambda_b.clone(),
                lambda_d: lambda_d.clone(),
                rows: Rows::of(part, outputs),
                dropout: config.dropout as f32,
                place: dropout_place(index),
            };
            attached.push(Attached {
                key: format!("{}#{at}", site.name),
                linear: part.linear.clone(),
                adapter: Arc::new(adapter),
            });
        }
        named.push((file_name(&site.name, "vera_lambda_b"), lambda_b));
        named.push((file_name(&site.name, "vera_lambda_d"), lambda_d));
    }
    Ok((named, attached))
}
