//! Adapter directories: `adapter_config.json` and the tensors beside it, as PEFT or AdapterHub write them.

mod gguf;
mod hub;
mod peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loam_formats::{Dtype, Gguf, SafeTensors, TensorOut, TorchFile, atomic, nearest, safetensors};
use loam_models::LanguageModel;
use serde_json::Value;

use crate::adapter::Adapter;
use crate::config::{Config, LoraInit, Method};
use crate::error::{Error, Result};
use crate::linear::{TAKEN_A, TAKEN_B};

/// The configuration, in both layouts.
const CONFIG: &str = "adapter_config.json";
/// PEFT's tensors.
const PEFT_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// AdapterHub's.
const HUB_WEIGHTS: [&str; 2] = ["adapter.safetensors", "pytorch_adapter.bin"];

/// Name, shape and values.
type Stored = (String, Vec<usize>, Vec<f32>);

/// Whether a directory holds an adapter, or a file may be one (GGUF).
pub fn is_adapter_dir(path: &Path) -> bool {
    path.join(CONFIG).is_file() || (path.is_file() && Gguf::is_one(path))
}

fn file_error(path: PathBuf, problem: impl Into<String>, hint: &str) -> Error {
    Error::File { path, problem: problem.into(), hint: hint.into() }
}

impl Config {
    /// Reads the `adapter_config.json` of a directory.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let hint = "an adapter is a directory with adapter_config.json and adapter_model.safetensors";
            file_error(path.clone(), format!("cannot be read: {error}"), hint)
        })?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| file_error(path.clone(), format!("is no JSON: {error}"), "copy the adapter again"))?;
        let read = if value.get("peft_type").is_some() { peft::read(&value) } else { hub::read(&value) };
        read.map_err(|problem| {
            file_error(path, problem, "known are the configurations of PEFT and AdapterHub's bottleneck adapters")
        })
    }
}

impl Adapter {
    /// Opens an adapter that was made for this model: a directory, or a LoRA in a GGUF file. Every tensor has to be there with its shape, and no other.
    pub fn open(model: &LanguageModel, dir: &Path) -> Result<Self> {
        if Gguf::is_one(dir) {
            return Self::open_gguf(model, dir);
        }
        let config = Config::open(dir)?;
        let is_hub = matches!(config.method, Method::Bottleneck(_));
        let (path, mut stored) = read_tensors(dir, if is_hub { HUB_WEIGHTS } else { PEFT_WEIGHTS })?;
        if is_hub {
            stored = hub::without_name(stored);
        }
        let adapter = Self::bare(model, &config)?;
        let other_base = "is this the model that the adapter was made for?";
        for (name, parameter) in adapter.parameters() {
            if name.ends_with(TAKEN_A) || name.ends_with(TAKEN_B) {
                continue;
            }
            let Some((shape, values)) = stored.remove(name) else {
                let close = nearest(name, stored.keys().map(String::as_str));
                let hint = close.map_or(other_base.to_owned(), |close| format!("the nearest name is `{close}`"));
                return Err(file_error(path, format!("tensor `{name}` is missing"), &hint));
            };
            if shape != parameter.shape()[..] {
                let problem = format!("tensor `{name}` has shape {shape:?}, here it is {:?}", parameter.shape());
                return Err(file_error(path, problem, other_base));
            }
            parameter.set(&values);
        }
        match stored.keys().next() {
            None => Ok(adapter),
            Some(name) => {
                let close = nearest(name, adapter.parameters().iter().map(|(name, _)| name.as_str()));
                let hint = close.map_or(other_base.to_owned(), |close| format!("the nearest name is `{close}`"));
                Err(file_error(path, format!("tensor `{name}` has no place in the model"), &hint))
            }
        }
    }

    /// Writes `adapter_config.json` and the tensors into a directory, whole or not at all, in the layout of PEFT, or of
    /// AdapterHub for bottleneck adapters. PiSSA's and OLoRA's become a LoRA of twice the rank over the untouched model.
    pub fn save(&self, model: &LanguageModel, dir: &Path) -> Result<()> {
        self.save_with(model, dir, |_| Ok(()))
    }

    /// The same, with further files.
    pub fn save_with<E: From<Error> + From<loam_formats::Error>>(
        &self,
        model: &LanguageModel,
        dir: &Path,
        more: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let (config, tensors) = plain_lora(self.config(), self.saved_tensors());
        let is_hub = matches!(config.method, Method::Bottleneck(_));
        let value = if is_hub { hub::write(&config, model) } else { peft::write(&config, model) };
        let name = if is_hub { HUB_WEIGHTS[0] } else { PEFT_WEIGHTS[0] };
        atomic::replace_dir(dir, |dir| -> Result<(), E> {
            atomic::write_file(dir.join(CONFIG), format!("{value:#}\n").as_bytes())?;
            let out = tensors
                .iter()
                .map(|(name, shape, values)| TensorOut::from_f32(name.clone(), Dtype::F32, shape, values));
            // As PEFT does, for whoever asks where a file comes from.
            safetensors::write(dir.join(name), &[("format".into(), "pt".into())], out)?;
            more(dir)
        })
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read_tensors(dir: &Path, names: [&str; 2]) -> Result<(PathBuf, Tensors)> {
    let [safe, torch] = names.map(|name| dir.join(name));
    if !safe.is_file() && torch.is_file() {
        let file = TorchFile::open(&torch)?;
        let read = |name: &str| -> Result<_> {
            let view = file.get(name)?;
            Ok((name.to_owned(), (view.shape.to_vec(), view.to_f32()?)))
        };
        let tensors: Result<Tensors> = file.names().map(read).collect();
        return Ok((torch, tensors?));
    }
    let file = SafeTensors::open(&safe)?;
    let read = |name: &str| -> Result<_> {
        let view = file.get(name)?;
        Ok((name.to_owned(), (view.shape.to_vec(), view.to_f32()?)))
    };
    let tensors: Result<Tensors> = file.names().map(read).collect();
    Ok((safe, tensors?))
}

/// `s B A - s B0 A0 = s [B, -B0] [A; A0]`: an adapter that starts as a part of the weight, as one over the whole weight.
fn plain_lora(config: &Config, tensors: Vec<Stored>) -> (Config, Vec<Stored>) {
    let mut config = config.clone();
    let Method::Lora(lora) = &mut config.method else { return (config, tensors) };
    if !lora.init.takes_from_weight() {
        return (config, tensors);
    }
    lora.init = LoraInit::Default;
    // The scale stays what it was.
    let factor = if lora.use_rslora { 2f64.sqrt() } else { 2.0 };
    lora.r *= 2;
    lora.alpha *= factor;
    lora.rank_pattern.iter_mut().for_each(|(_, r)| *r *= 2);
    lora.alpha_pattern.iter_mut().for_each(|(_, alpha)| *alpha *= factor);
    let (taken, own): (Vec<Stored>, Vec<Stored>) =
        tensors.into_iter().partition(|(name, ..)| name.ends_with(TAKEN_A) || name.ends_with(TAKEN_B));
    let taken: BTreeMap<String, Vec<f32>> = taken.into_iter().map(|(name, _, values)| (name, values)).collect();
    let doubled = |(name, shape, values): Stored| -> Stored {
        if let Some(other) = name.strip_suffix("lora_A.weight").and_then(|base| taken.get(&format!("{base}{TAKEN_A}")))
        {
            return (name, vec![2 * shape[0], shape[1]], [values, other.clone()].concat());
        }
        let other = name.strip_suffix("lora_B.weight").and_then(|base| taken.get(&format!("{base}{TAKEN_B}")));
        let Some(other) = other else { return (name, shape, values) };
        let rows = values.chunks_exact(shape[1]).zip(other.chunks_exact(shape[1]));
        let joined = rows.flat_map(|(own, other)| own.iter().copied().chain(other.iter().map(|x| -x))).collect();
        (name, vec![shape[0], 2 * shape[1]], joined)
    };
    (config, own.into_iter().map(doubled).collect())
}
