//! The files of sentence-transformers that say how a model's hidden states become embeddings.

use super::Pooling;
use crate::Error;
use loam_formats::{HfDir, Weights};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The list of what a text goes through.
const MODULES: &str = "modules.json";

/// What the directory of a sentence encoder says.
#[derive(Debug)]
pub(super) struct Description {
    /// Where the model itself is.
    pub(super) model: PathBuf,
    pub(super) pooling: Vec<Pooling>,
    pub(super) dense: Vec<Dense>,
    pub(super) normalize: bool,
    pub(super) max_tokens: Option<usize>,
    pub(super) lower_case: bool,
}

/// A layer after pooling: `activation(W x + b)`.
#[derive(Debug)]
pub(super) struct Dense {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    pub(super) width: usize,
    is_tanh: bool,
}

impl Dense {
    pub(super) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let row = |(index, weight): (usize, &[f32])| {
            let sum = weight.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
            let sum = sum as f32 + self.bias.as_ref().map_or(0.0, |bias| bias[index]);
            if self.is_tanh { sum.tanh() } else { sum }
        };
        self.weight.chunks_exact(self.width).enumerate().map(row).collect()
    }

    /// Number of features that it gives.
    pub(super) fn outputs(&self) -> usize {
        self.weight.len() / self.width
    }
}

impl Description {
    /// Reads a directory; `None` where it is that of a plain model.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let file = dir.join(MODULES);
        if !file.is_file() {
            return Ok(None);
        }
        let fail = |reason: String| Error::Sentence { path: file.clone(), reason };
        let bytes = loam_formats::Mapped::open(&file)?;
        let modules: Vec<Value> = serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
        let mut found = Self {
            model: dir.to_owned(),
            pooling: Vec::new(),
            dense: Vec::new(),
            normalize: false,
            max_tokens: None,
            lower_case: false,
        };
        for (index, module) in modules.iter().enumerate() {
            let kind = module["type"].as_str().unwrap_or_default();
            let place = dir.join(module["path"].as_str().unwrap_or_default());
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if index == 0 => found.read_transformer(place)?,
                "Pooling" if index == 1 => found.pooling = poolings(&place)?,
                "Dense" if index > 1 && !found.normalize => found.dense.push(dense(&place)?),
                "Normalize" if index > 1 => found.normalize = normalizes(&place)?,
                // It does nothing outside of training.
                "Dropout" if index > 1 => {}
                _ => {
                    let known = "known is Transformer, Pooling, then Dense and Normalize";
                    return Err(fail(format!("module {index} is a `{kind}`; {known}")));
                }
            }
        }
        match found.pooling.is_empty() {
            true => Err(fail("there is no Pooling, so the model gives no vector of a text".into())),
            false => Ok(Some(found)),
        }
    }

    fn read_transformer(&mut self, place: PathBuf) -> Result<(), Error> {
        let settings = HfDir::open(&place)?.json("sentence_bert_config.json")?.unwrap_or_default();
        self.max_tokens = settings["max_seq_length"].as_u64().map(|n| n as usize);
        self.lower_case = settings["do_lower_case"] == true;
        self.model = place;
        Ok(())
    }
}

/// What `config.json` of a pooling switches on: a flag each, or names since version 5.
fn poolings(place: &Path) -> Result<Vec<Pooling>, Error> {
    let config = HfDir::open(place)?.config().clone();
    let fail = |reason: String| Error::Sentence { path: place.join("config.json"), reason };
    let name = |value: &Value| match value.as_str() {
        Some(name) => name.parse::<Pooling>().map_err(&fail),
        None => Err(fail(format!("`pooling_mode` holds {value}"))),
    };
    let found: Vec<Pooling> = match &config["pooling_mode"] {
        Value::Null => Pooling::ALL.into_iter().filter(|pooling| config[pooling.legacy_key()] == true).collect(),
        Value::Array(names) => names.iter().map(name).collect::<Result<_, _>>()?,
        one => vec![name(one)?],
    };
    if found.is_empty() { Err(fail("it switches on no pooling that Loam knows".into())) } else { Ok(found) }
}

/// A module of settings, of which older directories have none.
fn normalizes(place: &Path) -> Result<bool, Error> {
    let config = if place.join("config.json").is_file() { HfDir::open(place)?.config().clone() } else { Value::Null };
    match config.get("module_input_name").and_then(Value::as_str).unwrap_or("sentence_embedding") {
        "sentence_embedding" => Ok(true),
        other => {
            let reason = format!("it normalises `{other}`; only the sentence embedding is known");
            Err(Error::Sentence { path: place.join("config.json"), reason })
        }
    }
}

fn dense(place: &Path) -> Result<Dense, Error> {
    let dir = HfDir::open(place)?;
    let config = dir.config();
    let fail = |reason: String| Error::Sentence { path: place.join("config.json"), reason };
    let activation = config["activation_function"].as_str().unwrap_or("torch.nn.modules.activation.Tanh");
    let is_tanh = match activation.rsplit('.').next() {
        Some("Tanh") => true,
        Some("Identity") => false,
        _ => return Err(fail(format!("the activation `{activation}` is unknown; known are Tanh and Identity"))),
    };
    let input = config.get("module_input_name").and_then(Value::as_str).unwrap_or("sentence_embedding");
    if config["use_residual"] == true || input != "sentence_embedding" {
        return Err(fail("only a plain layer on the sentence embedding is known".into()));
    }
    let weights = Weights::open(place)?;
    let view = weights.get("linear.weight")?;
    let &[outputs, width] = view.shape else {
        return Err(fail(format!("linear.weight has the shape {:?}", view.shape)));
    };
    let weight = view.to_f32()?;
    let bias = weights.contains("linear.bias").then(|| weights.get("linear.bias")?.to_f32()).transpose()?;
    match bias.as_ref().is_none_or(|bias| bias.len() == outputs) && width > 0 {
        true => Ok(Dense { weight, bias, width, is_tanh }),
        false => Err(fail(format!("linear.bias does not fit linear.weight of {outputs} rows"))),
    }
}
