//! [`LanguageModel`]: a configuration, its stack, and the files they come from and go to.

use std::path::Path;

use loam_formats::{Dtype, HfDir, HfWriter, TensorOut, Weights, nearest};
use loam_kernels::cross_entropy::IGNORED;
use loam_nn::{Init, KvCache, Module};
use loam_tensor::{HeadSettings, Parameter, Tensor};
use serde_json::{Value, json};

use crate::config::Config;
use crate::decoder::{Decoder, Forward, Input};
use crate::error::Error;
use crate::family::{self, Family};
use crate::spec::{Position, Spec};
use crate::weight_map::Entry;

/// A decoder-only language model.
pub struct LanguageModel {
    family: &'static Family,
    config: Value,
    spec: Spec,
    stack: Decoder,
}

impl std::fmt::Debug for LanguageModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.spec.summary())
    }
}

impl LanguageModel {
    /// A new model of this `config.json`, with weights that depend on `seed` alone. Keys left out take the family's
    /// defaults.
    pub fn new(config: &Value, seed: u64) -> Result<Self, Error> {
        let family = family::of_config(config)?;
        let mut complete = (family.defaults)();
        if let (Some(all), Some(given)) = (complete.as_object_mut(), config.as_object()) {
            for (key, value) in given {
                all.insert(key.clone(), value.clone());
            }
        }
        complete["dtype"] = json!("float32");
        let model = Self::zeros(complete)?;
        model.stack.initialise(&model.spec, seed);
        Ok(model)
    }

    /// Draws the matrices of the blocks again, as `init` says: without the smaller scale that [`LanguageModel::new`] gives
    /// projections to the residual stream. Embeddings and head stay.
    pub fn initialise_blocks(&self, init: Init, seed: u64) {
        for (name, parameter) in self.parameters() {
            if name.starts_with("layers.") && parameter.shape().len() == 2 {
                init.fill(&parameter, seed, &name);
            }
        }
    }

    fn zeros(config: Value) -> Result<Self, Error> {
        let family = family::of_config(&config)?;
        let spec = (family.spec)(Config::new(&config))?;
        let stack = Decoder::zeros(&spec);
        Ok(Self { family, config, spec, stack })
    }

    /// Opens a Hugging Face directory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = HfDir::open(path)?;
        let model = Self::zeros(dir.config().clone())?;
        model.load(&dir)?;
        Ok(model)
    }

    fn load(&self, dir: &HfDir) -> Result<(), Error> {
        let weights = dir.weights()?;
        let map = &self.family.weights;
        let entries = self.entries();
        let mut used = std::collections::HashSet::new();
        for entry in &entries {
            let name = self.name_in(&weights, entry, dir.path())?;
            let view = weights.get(&name)?;
            if view.shape != entry.file_shape() {
                return Err(Error::WeightShape {
                    path: weights.file_of(&name).unwrap_or(dir.path()).into(),
                    name,
                    found: view.shape.to_vec(),
                    expected: entry.file_shape(),
                });
            }
            entry.import(&view.to_f32()?);
            used.insert(name);
        }
        // Checkpoints of tied models may carry the head a second time.
        let is_tied_head = |name: &str| self.spec.tie_word_embeddings && name == "lm_head.weight";
        let is_known = |name: &str| map.ignored_suffixes.iter().any(|suffix| name.ends_with(suffix));
        match weights.names().find(|name| !used.contains(*name) && !is_known(name) && !is_tied_head(name)) {
            None => Ok(()),
            Some(name) => Err(Error::UnexpectedWeight {
                path: weights.file_of(name).unwrap_or(dir.path()).into(),
                name: name.to_string(),
                family: self.family.name,
                nearest: nearest(name, entries.iter().map(|entry| entry.name.as_str())),
            }),
        }
    }

    /// The name that a tensor has in these weights: with or without the family's prefix.
    fn name_in(&self, weights: &Weights, entry: &Entry, path: &Path) -> Result<String, Error> {
        let bare = entry.name.strip_prefix(self.family.weights.optional_prefix).unwrap_or(&entry.name);
        let found = [entry.name.as_str(), bare].into_iter().find(|name| weights.contains(name));
        found.map(str::to_owned).ok_or_else(|| Error::MissingWeight {
            path: path.into(),
            name: entry.name.clone(),
            nearest: nearest(&entry.name, weights.names()),
        })
    }

    /// The tensors that a directory's weights hold for this model, tied ones once: name, shape and element type.
    pub fn stored_tensors(&self, dir: &HfDir) -> Result<Vec<(String, Vec<usize>, Dtype)>, Error> {
        let weights = dir.weights()?;
        let stored = |entry: &Entry| {
            let name = self.name_in(&weights, entry, dir.path())?;
            let dtype = weights.get(&name)?.dtype;
            Ok((name, entry.file_shape(), dtype))
        };
        self.entries().iter().map(stored).collect()
    }

    /// Writes `config.json` and the weights into a directory, in the element type that `config.json` names; files of
    /// at most `max_shard_bytes` each, if given.
    pub fn save(&self, writer: &HfWriter, max_shard_bytes: Option<u64>) -> Result<(), Error> {
        self.save_watched(writer, max_shard_bytes, &|_| {})
    }

    /// The same; `watch` is told the bytes of each tensor when it is about to be written.
    pub fn save_watched(
        &self,
        writer: &HfWriter,
        max_shard_bytes: Option<u64>,
        watch: &dyn Fn(usize),
    ) -> Result<(), Error> {
        writer.config(&self.config)?;
        let dtype = self.file_dtype()?;
        let entries = self.entries();
        let tensors = entries.iter().map(|entry| {
            let shape = entry.file_shape();
            TensorOut::lazy(entry.name.clone(), dtype, &shape, move || {
                let values = entry.export(Parameter::to_vec);
                let bytes = loam_formats::safetensors::encode_f32(dtype, &values).into_owned();
                watch(bytes.len());
                bytes.into()
            })
        });
        Ok(writer.weights(tensors, max_shard_bytes)?)
    }

    /// Element type of the weights on disk: `dtype` (transformers 5) or `torch_dtype` (transformers 4).
    pub fn file_dtype(&self) -> Result<Dtype, Error> {
        let key = if self.config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        match Config::new(&self.config).text(key, "float32")? {
            "float32" => Ok(Dtype::F32),
            "bfloat16" => Ok(Dtype::BF16),
            "float16" => Ok(Dtype::F16),
            other => Err(Error::config(key, format!("is `{other}`; known are float32, bfloat16, float16"))),
        }
    }

    /// Changes one key of `config.json` that does not alter the architecture, such as `eos_token_id` or `dtype`.
    pub fn set_config(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    /// The configuration, as written to disk.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Every parameter with its dotted name, in a fixed order; tied ones once.
    pub fn parameters(&self) -> Vec<(String, Parameter)> {
        let mut found = Vec::new();
        self.stack.visit("", &mut |name, parameter| found.push((name, parameter.clone())));
        found
    }

    /// Number of trainable and frozen numbers, tied ones once.
    pub fn num_parameters(&self) -> usize {
        self.parameters().iter().map(|(_, parameter)| parameter.count()).sum()
    }

    /// Gradients under the names and layouts of the family's files: `(name, shape, values)`, for checks against other
    /// implementations.
    pub fn gradients(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let read = |parameter: &Parameter| match parameter.grad() {
            Some(grad) => grad.f32().to_vec(),
            None => vec![0.0; parameter.count()],
        };
        self.entries().iter().map(|entry| (entry.name.clone(), entry.file_shape(), entry.export(read))).collect()
    }

    fn entries(&self) -> Vec<Entry> {
        self.family.weights.entries(&self.parameters(), &self.spec)
    }

    /// An empty cache for step-by-step decoding.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.spec.layers.len())
    }

    /// Hidden states after the final norm: `[batch, time, hidden]`.
    pub fn hidden(&self, input: &Input<'_>, forward: Forward<'_>) -> Result<Tensor, Error> {
        self.check(input, &forward)?;
        Ok(self.stack.hidden(input, forward))
    }

    /// Logits of every position: `[batch, time, vocab]`.
    pub fn logits(&self, input: &Input<'_>, forward: Forward<'_>) -> Result<Tensor, Error> {
        Ok(self.capped(self.hidden(input, forward)?.linear(&self.stack.head(), None)))
    }

    /// Logits of the last position of every row: `[batch, vocab]`.
    pub fn last_logits(&self, input: &Input<'_>, forward: Forward<'_>) -> Result<Tensor, Error> {
        let hidden = self.hidden(input, forward)?;
        let last = hidden.narrow(1, input.time - 1, 1).reshape([input.batch, self.spec.hidden_size]);
        Ok(self.capped(last.linear(&self.stack.head(), None)))
    }

    fn capped(&self, logits: Tensor) -> Tensor {
        match self.spec.final_logit_softcapping {
            Some(cap) => logits.softcap(cap),
            None => logits,
        }
    }

    /// Sum over all positions of the negative log-likelihood of `targets` `[batch * time]` (-100 counts nothing),
    /// and the pass's `terms`, times `scale`. Natural-log units. The logits never exist as a whole. Auxiliary losses
    /// (those of routers) are in the gradients but not in the value.
    pub fn loss(&self, input: &Input<'_>, targets: &[i32], scale: f32, forward: Forward<'_>) -> Result<Tensor, Error> {
        let vocab = 0..self.spec.vocab_size as i32;
        if let Some(target) = targets.iter().find(|&&target| target != IGNORED && !vocab.contains(&target)) {
            return Err(Error::Input(format!("target {target} is outside the vocabulary of {}", self.spec.vocab_size)));
        }
        // Auxiliary losses are means over these positions, which count as much as their targets do.
        let counted = targets.iter().filter(|&&target| target != IGNORED).count();
        let auxiliary_scale = scale * counted as f32 / targets.len().max(1) as f32;
        let terms = forward.terms;
        let hidden = self.hidden(input, Forward { auxiliary_scale, ..forward })?;
        let settings = HeadSettings { softcap: self.spec.final_logit_softcapping, terms };
        Ok(hidden.linear_cross_entropy(&self.stack.head(), None, targets, scale, settings))
    }

    /// Refuses what would otherwise be a bug's panic further down.
    fn check(&self, input: &Input<'_>, forward: &Forward<'_>) -> Result<(), Error> {
        let Input { tokens, batch, time, .. } = *input;
        if tokens.is_empty() || tokens.len() != batch * time {
            return Err(Error::Input(format!("{} tokens do not fill {batch} rows of {time}", tokens.len())));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.spec.vocab_size) {
            return Err(Error::Input(format!("token {token} is outside the vocabulary of {}", self.spec.vocab_size)));
        }
        let cached = forward.cache.as_ref().map_or(0, |cache| cache.len());
        let last = match input.positions {
            Some(positions) => positions.iter().max().map_or(0, |&p| p as usize + 1),
            None => cached + time,
        };
        if self.spec.position != Position::Rotary && last > self.spec.max_position_embeddings {
            return Err(Error::Input(format!(
                "{last} positions do not fit the context of {}",
                self.spec.max_position_embeddings
            )));
        }
        Ok(())
    }
}
