//! Bottleneck adapters: `up(act(down(h)))` where a block's half joins the residual stream, as AdapterHub has them.

use std::sync::Arc;

use loam_models::{JoinSite, LanguageModel};
use loam_nn::{Activation, Init, JoinHook, LayerContext, Linear, Norm};
use loam_tensor::{Parameter, Tensor};

use crate::config::Bottleneck;
use crate::error::{Error, Result};
use crate::linear::{Named, dropout_place, like_linear, normal};

struct BottleneckPart {
    down: Linear,
    up: Linear,
    activation: Activation,
    scaling: f32,
    /// Whether it reads the sum with the stream.
    reads_sum: bool,
    is_parallel: bool,
    dropout: f32,
    place: u64,
}

impl JoinHook for BottleneckPart {
    fn forward(&self, branch: &Tensor, x: &Tensor, norm: Option<&Norm>, context: &LayerContext) -> Tensor {
        let input = match (self.is_parallel, self.reads_sum) {
            (true, _) => x.clone(),
            (false, false) => branch.clone(),
            (false, true) => {
                let sum = branch + x;
                norm.map_or(sum.clone(), |norm| norm.forward(&sum))
            }
        };
        let wide = self.up.apply(&self.down.apply(&input).unary(self.activation.0)).scale(self.scaling);
        branch + &context.drop_with(wide, self.dropout, self.place)
    }

    fn parameters(&self) -> Vec<Parameter> {
        [&self.down, &self.up].into_iter().flat_map(|l| [&l.weight].into_iter().chain(&l.bias)).cloned().collect()
    }
}

/// One place, and what stands there.
pub(crate) struct Joined {
    pub(crate) key: String,
    pub(crate) slot: loam_nn::Slot<dyn JoinHook>,
    pub(crate) hook: Arc<dyn JoinHook>,
}

/// Name of the adapter in AdapterHub's files.
pub(crate) const NAME: &str = "loam";

/// Where AdapterHub's models keep the adapters of a block: after attention, after the feed-forward.
fn places(family: &str) -> [&'static str; 2] {
    match family {
        "bert" | "roberta" => ["attention.output.adapters", "output.adapters"],
        _ => ["attention_adapters.adapters", "output_adapters.adapters"],
    }
}

/// Adapters in every block.
pub(crate) fn bottleneck(model: &LanguageModel, config: &Bottleneck, seed: u64) -> Result<(Named, Vec<Joined>)> {
    let hidden = model.spec().hidden_size;
    let activation = Activation::by_name(&config.non_linearity.to_lowercase()).ok_or_else(|| {
        let known: Vec<&str> = Activation::names().collect();
        Error::Setting(format!("`{}` is no activation; known are {}", config.non_linearity, known.join(", ")))
    })?;
    if !(config.reduction_factor > 0.0 && config.reduction_factor.is_finite()) {
        return Err(Error::Setting("`reduction_factor` must be above 0".into()));
    }
    if !config.mh_adapter && !config.output_adapter {
        return Err(Error::Setting("bottleneck adapters neither after attention nor after the feed-forward".into()));
    }
    if model.spec().encoder.is_some() {
        return Err(Error::Setting("bottleneck adapters are for models of one stack".into()));
    }
    let width = ((hidden as f64 / config.reduction_factor) as usize).max(1);
    let (mut named, mut joined) = (Vec::new(), Vec::new());
    let wanted = [config.mh_adapter, config.output_adapter];
    for (index, site) in model.join_sites().into_iter().enumerate() {
        let JoinSite { name, attention, feed_forward } = site;
        for (half, slot) in [attention, feed_forward].into_iter().enumerate().filter(|(half, _)| wanted[*half]) {
            let place = places(model.spec().family)[half];
            let base = format!("{name}.{place}.{NAME}");
            let (down, up) = (Linear::zeros(hidden, width, true), Linear::zeros(width, hidden, true));
            let names = [format!("{base}.adapter_down.0.weight"), format!("{base}.adapter_up.weight")];
            match config.init_weights.as_str() {
                "bert" => {
                    down.weight.set(&normal(down.weight.count(), 0.02, seed, &names[0]));
                    up.weight.set(&normal(up.weight.count(), 0.02, seed, &names[1]));
                }
                "mam_adapter" => like_linear(&down.weight, hidden, seed, &names[0]),
                "houlsby" => {
                    Init::TruncatedNormal { std: 0.01 }.fill(&down.weight, seed, &names[0]);
                    Init::TruncatedNormal { std: 0.01 }.fill(&up.weight, seed, &names[1]);
                }
                other => {
                    let known = "known are bert, mam_adapter, houlsby";
                    return Err(Error::Setting(format!("`{other}` is no way for an adapter to start; {known}")));
                }
            }
            for (linear, rest) in [(&down, "adapter_down.0"), (&up, "adapter_up")] {
                named.push((format!("{base}.{rest}.weight"), linear.weight.clone()));
                named.extend(linear.bias.iter().map(|bias| (format!("{base}.{rest}.bias"), bias.clone())));
            }
            let hook = BottleneckPart {
                down,
                up,
                activation,
                scaling: config.scaling as f32,
                reads_sum: config.original_ln_before,
                is_parallel: config.is_parallel,
                dropout: config.dropout as f32,
                place: dropout_place(2 * index + half),
            };
            joined.push(Joined { key: format!("{index}#{half}"), slot, hook: Arc::new(hook) });
        }
    }
    Ok((named, joined))
}
