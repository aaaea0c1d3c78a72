//! The methods, from a model in f32 to one whose weights are blocks.

use std::sync::Arc;

use loam_models::{Importance, LanguageModel, Mix, Plan};
use loam_tensor::{DType, GgmlType, Parameter, Raw, SharedBytes};

use crate::activations::{rows_of_int8, smooth_block};
use crate::awq::{scale_block, scaled_importance};
use crate::calibration::{Block, Calibration};
use crate::gptq::{GptqSettings, gptq};
use crate::grid::Grid;
use crate::{Error, Result, Watch};

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// To the nearest, one weight at a time.
    Rtn,
    /// The same, with scales that are searched for with the inputs' mean squares as weights.
    Imatrix,
    /// Column by column, later ones making up for the errors of earlier ones.
    Gptq,
    /// After columns with large inputs were made larger.
    Awq,
    /// Eight bits per output, after the inputs' range was moved into the weights.
    SmoothQuant,
}

impl Method {
    /// Whether it looks at texts.
    pub fn is_calibrated(self) -> bool {
        self != Self::Rtn
    }
}

/// What a model is rounded to, and how.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Which element type each weight gets.
    pub mix: Mix,
    /// How it is rounded to that.
    pub method: Method,
    /// GPTQ's.
    pub gptq: GptqSettings,
    /// SmoothQuant's share of the range that goes to the weights.
    pub smoothing: f64,
}

impl Settings {
    /// The defaults of a method.
    pub fn new(mix: Mix, method: Method) -> Self {
        Self { mix, method, gptq: GptqSettings::default(), smoothing: 0.5 }
    }
}

/// What became of the weights.
#[derive(Clone, Debug, Default)]
pub struct Quantised {
    /// The importance matrix that was used, by the weights' names.
    pub importance: Option<Importance>,
    /// Weights that the method could not round, and that were rounded to the nearest: experts that no text reached, types
    /// without levels.
    pub fallen_back: Vec<String>,
}

/// Makes all weights dense f32, decoding what is quantised, so that they can be changed.
pub fn to_f32(model: &LanguageModel) {
    for (_, parameter) in model.parameters() {
        if parameter.dtype() != DType::F32 {
            let values = parameter.to_vec();
            parameter.replace(Raw::from_f32(&values, parameter.shape()));
        }
    }
}

/// Rounds a model's weights in place. `importance` stands in for what calibration would find for the methods that need
/// nothing else ([`Method::Rtn`] ignores it).
pub fn quantise(
    model: &LanguageModel,
    settings: &Settings,
    calibration: Option<&Calibration>,
    importance: Option<Importance>,
    watch: Watch<'_>,
) -> Result<Quantised> {
    to_f32(model);
    let plan = model.plan(settings.mix);
    if settings.method != Method::Rtn && plan.values().any(|ty| *ty == DType::Nf4) {
        return Err(Error::setting("NF4 has no method but rounding to the nearest", "leave --method out, or give rtn"));
    }
    let needed = || {
        calibration.ok_or_else(|| {
            Error::setting("this method looks at the inputs of every layer", "give a text with --calibrate FILE")
        })
    };
    match settings.method {
        Method::Rtn => {
            model.quantise(&plan, None)?;
            Ok(Quantised::default())
        }
        Method::Imatrix => {
            let importance = match importance {
                Some(importance) => importance,
                None => needed()?.importance(model, watch)?,
            };
            model.quantise(&plan, Some(&usable(model, &importance)))?;
            Ok(Quantised { importance: Some(importance), ..Quantised::default() })
        }
        Method::Gptq => by_gptq(model, &plan, settings, needed()?, watch),
        Method::Awq => by_awq(model, &plan, needed()?, watch),
        Method::SmoothQuant => by_smoothing(model, &plan, settings, needed()?, watch),
    }
}

/// The importances without those that say nothing: of columns that were never read all are alike.
fn usable(model: &LanguageModel, importance: &Importance) -> Importance {
    let is_ours = |name: &str| model.parameters().iter().any(|(own, _)| own == name);
    let says_something = |values: &[f32]| values.iter().any(|&x| x > 0.0) && values.iter().all(|x| x.is_finite());
    importance
        .iter()
        .filter(|(name, values)| is_ours(name) && says_something(values))
        .map(|(name, values)| (name.clone(), values.clone()))
        .collect()
}

fn put(parameter: &Parameter, ty: GgmlType, bytes: Vec<u8>) {
    let shape = parameter.shape();
    let bytes: SharedBytes = Arc::new(bytes);
    parameter.replace(Raw::quantised(ty, [shape[0], shape[1]], bytes, 0));
}

/// Types of a block's layers by the plan, which names weights.
fn planned(plan: &Plan, name: &str) -> Option<GgmlType> {
    match plan.get(&format!("{name}.weight"))? {
        DType::Ggml(ty) if ty.is_quantised() => Some(*ty),
        _ => None,
    }
}

/// The weights of the plan that are not rounded yet: tables, heads, what a method left out.
fn rest(model: &LanguageModel, plan: &Plan, importance: Option<&Importance>) -> Result<()> {
    let parameters = model.parameters();
    let is_left = |name: &str| parameters.iter().any(|(own, parameter)| own == name && parameter.dtype() == DType::F32);
    let left: Plan = plan.iter().filter(|(name, _)| is_left(name)).map(|(name, ty)| (name.clone(), *ty)).collect();
    model.quantise(&left, importance.map(|all| usable(model, all)).as_ref())?;
    Ok(())
}

fn by_gptq(
    model: &LanguageModel,
    plan: &Plan,
    settings: &Settings,
    calibration: &Calibration,
    watch: Watch<'_>,
) -> Result<Quantised> {
    let mut fallen_back = Vec::new();
    calibration.through_blocks(model, true, watch, |block| {
        for (name, linear) in &block.linears {
            let Some(ty) = planned(plan, name) else { continue };
            let rows = linear.weight.shape()[0];
            let inputs = block.inputs(name).filter(|_| Grid::new(ty).is_some());
            let bytes = inputs.and_then(|inputs| gptq(&linear.weight.to_vec(), rows, inputs, ty, settings.gptq));
            match bytes {
                Some(bytes) => put(&linear.weight, ty, bytes),
                None => fallen_back.push(format!("{name}.weight")),
            }
        }
        // What was left must be rounded before the next block reads what this one gives.
        let left = |name: &String| fallen_back.contains(name);
        let left: Plan = plan.iter().filter(|(name, _)| left(name)).map(|(name, ty)| (name.clone(), *ty)).collect();
        model.quantise(&only_f32(model, left), None)?;
        Ok(())
    })?;
    rest(model, plan, None)?;
    Ok(Quantised { importance: None, fallen_back })
}

fn only_f32(model: &LanguageModel, plan: Plan) -> Plan {
    let done: Vec<String> = model
        .parameters()
        .into_iter()
        .filter(|(_, parameter)| parameter.dtype() != DType::F32)
        .map(|(name, _)| name)
        .collect();
    plan.into_iter().filter(|(name, _)| !done.contains(name)).collect()
}

fn by_awq(model: &LanguageModel, plan: &Plan, calibration: &Calibration, watch: Watch<'_>) -> Result<Quantised> {
    let mut all = Importance::new();
    let last = calibration.through_blocks(model, true, watch, |block| {
        let scaled = scale_block(model, block, |name| planned(plan, name))?;
        let mut own = Importance::new();
        for (name, _) in &block.linears {
            let Some(inputs) = block.inputs(name) else { continue };
            let factors = scaled.iter().find(|(scaled, _)| scaled == name).map(|(_, factors)| factors);
            let importance = inputs.importance();
            let importance = factors.map_or(importance.clone(), |factors| scaled_importance(&importance, factors));
            own.insert(format!("{name}.weight"), importance);
        }
        let prefix = format!("layers.{}.", block.index);
        let of_block: Plan =
            plan.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(name, ty)| (name.clone(), *ty)).collect();
        model.quantise(&of_block, Some(&usable(model, &own)))?;
        all.extend(own);
        Ok(())
    })?;
    let head = if model.spec().tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
    all.insert(head.into(), last.importance());
    rest(model, plan, Some(&all))?;
    Ok(Quantised { importance: Some(all), fallen_back: Vec::new() })
}

fn by_smoothing(
    model: &LanguageModel,
    plan: &Plan,
    settings: &Settings,
    calibration: &Calibration,
    watch: Watch<'_>,
) -> Result<Quantised> {
    if settings.mix.name() != "q8_0" {
        return Err(Error::setting(
            format!("smoothquant rounds to eight bits, not to {}", settings.mix.name()),
            "leave --type out, or give q8_0",
        ));
    }
    calibration.through_blocks(model, false, watch, |block: &Block| {
        smooth_block(model, block, settings.smoothing)?;
        for (name, linear) in &block.linears {
            if planned(plan, name) == Some(GgmlType::Q8_0) {
                let bytes = rows_of_int8(&linear.weight.to_vec(), linear.weight.shape()[1]);
                put(&linear.weight, GgmlType::Q8_0, bytes);
            }
        }
        Ok(())
    })?;
    rest(model, plan, None)?;
    Ok(Quantised::default())
}
