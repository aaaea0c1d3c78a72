//! AdapterHub's `adapter_config.json` of bottleneck adapters.

use loam_models::LanguageModel;
use serde_json::{Value, json};

use super::Tensors;
use crate::bottleneck::NAME;
use crate::config::{Bottleneck, Config, Method};

/// Settings that change what an adapter computes, and the only value of each that is supported.
const FIXED: &[(&str, Fixed)] = &[
    ("ln_before", Fixed::No),
    ("ln_after", Fixed::No),
    ("use_gating", Fixed::No),
    ("adapter_residual_before_ln", Fixed::No),
    ("phm_layer", Fixed::No),
    ("cross_adapter", Fixed::No),
    ("original_ln_after", Fixed::Yes),
    ("residual_before_ln", Fixed::Yes),
    ("inv_adapter", Fixed::Null),
    ("leave_out", Fixed::Empty),
];

#[derive(Clone, Copy)]
enum Fixed {
    No,
    Yes,
    Null,
    Empty,
}

impl Fixed {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::No => value == &json!(false),
            Self::Yes => value == &json!(true),
            Self::Null => value.is_null(),
            Self::Empty => value.as_array().is_some_and(Vec::is_empty),
        }
    }
}

/// Reads a configuration.
pub(super) fn read(value: &Value) -> Result<Config, String> {
    let Some(config) = value.get("config").filter(|config| config.is_object()) else {
        return Err("has neither `peft_type` nor AdapterHub's `config`".into());
    };
    if let Some(architecture) = config.get("architecture").and_then(Value::as_str) {
        return Err(format!("`architecture` is `{architecture}`, which is not supported in AdapterHub's layout"));
    }
    for (key, fixed) in FIXED {
        if let Some(found) = config.get(key).filter(|found| !fixed.is(found)) {
            return Err(format!("`{key}` is {found}, which is not supported"));
        }
    }
    let flag = |key: &str, default: bool| match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(found) => found.as_bool().ok_or_else(|| format!("`{key}` must be true or false, found {found}")),
    };
    let number = |key: &str, default: f64| match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(found) => found.as_f64().ok_or_else(|| format!("`{key}` must be a number, found {found}")),
    };
    let text = |key: &str, default: &str| config.get(key).and_then(Value::as_str).unwrap_or(default).to_owned();
    let bottleneck = Bottleneck {
        mh_adapter: flag("mh_adapter", false)?,
        output_adapter: flag("output_adapter", true)?,
        reduction_factor: number("reduction_factor", 16.0)?,
        non_linearity: text("non_linearity", "relu"),
        original_ln_before: flag("original_ln_before", false)?,
        is_parallel: flag("is_parallel", false)?,
        scaling: number("scaling", 1.0)?,
        init_weights: text("init_weights", "bert"),
        dropout: number("dropout", 0.0)?,
        raw: Some(value.clone()),
    };
    let base = value.get("model_name").and_then(Value::as_str).filter(|base| !base.is_empty()).map(str::to_owned);
    Ok(Config { base, ..Config::new(Method::Bottleneck(bottleneck)) })
}

/// The configuration as AdapterHub writes it.
pub(super) fn write(config: &Config, model: &LanguageModel) -> Value {
    let Method::Bottleneck(own) = &config.method else { unreachable!("only bottleneck adapters have this layout") };
    let mut settings = json!({
        "adapter_residual_before_ln": false, "cross_adapter": false, "dropout": own.dropout,
        "factorized_phm_W": true, "factorized_phm_rule": false, "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": own.init_weights, "init_weights_seed": null, "inv_adapter": null,
        "inv_adapter_reduction_factor": null, "is_parallel": own.is_parallel, "learn_phm": true, "leave_out": [],
        "ln_after": false, "ln_before": false, "mh_adapter": own.mh_adapter, "non_linearity": own.non_linearity,
        "original_ln_after": true, "original_ln_before": own.original_ln_before,
        "output_adapter": own.output_adapter, "phm_bias": true, "phm_c_init": "normal", "phm_dim": 4,
        "phm_init_range": 0.0001, "phm_layer": false, "phm_rank": 1, "reduction_factor": own.reduction_factor,
        "residual_before_ln": true, "scaling": own.scaling, "shared_W_phm": false, "shared_phm_rule": true,
        "stochastic_depth": 0.0, "use_gating": false,
    });
    // What was read and means nothing here is kept.
    if let (Some(read), Some(all)) =
        (own.raw.as_ref().and_then(|raw| raw["config"].as_object()), settings.as_object_mut())
    {
        for (key, value) in read {
            all.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    let class = model.config()["architectures"][0].as_str().unwrap_or_default().to_owned();
    json!({
        "config": settings, "hidden_size": model.spec().hidden_size, "model_class": class, "model_name": config.base,
        "model_type": model.spec().family, "name": NAME, "version": "adapters.1.3.0",
    })
}

/// Tensors under the name that adapters have here, whatever they were called.
pub(super) fn without_name(tensors: Tensors) -> Tensors {
    let renamed = |name: String| {
        let Some((before, after)) = name.split_once(".adapters.") else { return name };
        match after.split_once('.') {
            Some((_, rest)) => format!("{before}.adapters.{NAME}.{rest}"),
            None => name,
        }
    };
    tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect()
}
