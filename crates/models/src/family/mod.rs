//! The model families, one file each: `config.json` in, [`Spec`] and weight names out, no arithmetic.

mod bart;
mod bert;
mod distilbert;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod mixtral;
mod modernbert;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod t5;

use serde_json::Value;

use crate::config::Config;
use crate::error::Error;
use crate::spec::{Spec, Task};
use crate::weight_map::WeightMap;

/// What a family file provides.
pub struct Family {
    /// `model_type` of `config.json`.
    pub name: &'static str,
    /// What `architectures` of `config.json` may say, and what it means; the first is a new model's.
    pub architectures: &'static [(&'static str, Task)],
    /// Translates a configuration; decoders leave the head to [`Family::spec_of`].
    pub spec: fn(Config<'_>) -> Result<Spec, Error>,
    /// Its weight names.
    pub weights: WeightMap,
    /// A complete `config.json` of a new model from the fields someone cares about.
    pub defaults: fn() -> Value,
}

impl Family {
    /// Translates a configuration, the head that it asks for included.
    pub fn spec_of(&self, config: &Value) -> Result<Spec, Error> {
        let config = Config::new(config);
        let mut spec = (self.spec)(config)?;
        if spec.encoder.is_none() && spec.is_causal() {
            spec.head = config.decoder_head(self.architectures)?;
        }
        Ok(spec)
    }

    /// What `architectures` says for this task.
    pub fn architecture_of(&self, task: Task) -> Result<&'static str, Error> {
        let found = self.architectures.iter().find(|(_, known)| *known == task);
        found
            .map(|(name, _)| *name)
            .ok_or_else(|| Error::Input(format!("a {} model has no head for {task}", self.name)))
    }
}

/// Every family, in the order that messages list them.
pub static FAMILIES: &[Family] = &[
    gpt2::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma::GEMMA2,
    gemma::GEMMA3,
    phi3::FAMILY,
    gpt_neox::FAMILY,
    opt::FAMILY,
    mixtral::FAMILY,
    qwen3_moe::FAMILY,
    bert::FAMILY,
    roberta::FAMILY,
    distilbert::FAMILY,
    modernbert::FAMILY,
    t5::FAMILY,
    bart::BART,
    bart::MARIAN,
];

/// The family called `name`.
pub fn by_name(name: &str) -> Result<&'static Family, Error> {
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| Error::UnknownFamily {
        family: name.to_string(),
        known: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
    })
}

/// The family that a `config.json` names.
pub fn of_config(config: &Value) -> Result<&'static Family, Error> {
    match config.get("model_type").and_then(Value::as_str) {
        Some(name) => by_name(name),
        None => Err(Error::config("model_type", "is missing")),
    }
}
