//! [`LanguageModel`]: a configuration, its stack, and the files they come from and go to.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use loam_formats::{Dtype, Gguf, HfDir, HfWriter, TensorOut, Weights, nearest};
use loam_kernels::cross_entropy::IGNORED;
use loam_kernels::with_team;
use loam_nn::{Hooks, Init, KvCache, KvType, Memory, Module};
use loam_tensor::{HeadSettings, LogProbSettings, Nf4Scales, Parameter, Tensor};
use serde_json::{Map, Value, json};

use crate::bitsandbytes;
use crate::config::Config;
use crate::error::Error;
use crate::family::{self, Family};
use crate::network::Network;
use crate::spec::{Position, Spec, Task};
use crate::stack::{Forward, Input};
use crate::stored::Halves;
use crate::weight_map::Entry;

/// A language model of any family, or such a model with another head.
pub struct LanguageModel {
    family: &'static Family,
    config: Value,
    spec: Spec,
    pub(crate) network: Network,
}

/// What became of a checkpoint's weights in a model with another head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewHead {
    /// Weights that the checkpoint lacks, drawn anew.
    pub initialised: Vec<String>,
    /// Weights of the checkpoint that the model has no place for.
    pub dropped: Vec<String>,
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
        model.network.initialise(&model.spec, seed, |_| true);
        Ok(model)
    }

    /// Draws the matrices of the blocks again, as `init` says: without the smaller scale that [`LanguageModel::new`] gives
    /// projections to the residual stream. Embeddings and head stay.
    pub fn initialise_blocks(&self, init: Init, seed: u64) {
        for (name, parameter) in self.parameters() {
            let is_inside = name.starts_with("layers.") || name.starts_with("encoder.layers.");
            if is_inside && parameter.shape().len() == 2 {
                init.fill(&parameter, seed, &name);
            }
        }
    }

    pub(crate) fn zeros(config: Value) -> Result<Self, Error> {
        let family = family::of_config(&config)?;
        let spec = family.spec_of(&config)?;
        let network = Network::zeros(&spec);
        Ok(Self { family, config, spec, network })
    }

    /// Opens a Hugging Face directory, whose weights become f32 and can be trained, or a GGUF file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path.as_ref(), false)
    }

    /// The same for running alone, or under an adapter that is trained: matrices of halves stay where they lie in a
    /// directory's files, too, which must not be overwritten meanwhile, and are frozen. They give the numbers that they give
    /// as f32; but where products of bf16 are in force and read no other halves, F16 is rounded, for lookups, too:
    /// [`kept_type`](crate::kept_type).
    pub fn open_to_run(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path.as_ref(), true)
    }

    fn open_with(path: &Path, in_place: bool) -> Result<Self, Error> {
        if Gguf::is_one(path) {
            return Self::from_gguf(&Gguf::open(path)?);
        }
        let dir = HfDir::open(path)?;
        let model = Self::zeros(dir.config().clone())?;
        model.load(&dir, None, in_place)?;
        Ok(model)
    }

    /// Opens a Hugging Face directory for another task than its own: what the checkpoint lacks of the new head is drawn
    /// from `seed`. `labels` names the classes of a classifier. With `in_place` as [`LanguageModel::open_to_run`].
    pub fn open_for(
        path: impl AsRef<Path>,
        task: Task,
        labels: &[String],
        seed: u64,
        in_place: bool,
    ) -> Result<(Self, NewHead), Error> {
        let dir = HfDir::open(path)?;
        let mut config = dir.config().clone();
        config["architectures"] = json!([family::of_config(&config)?.architecture_of(task)?]);
        if !labels.is_empty() {
            set_labels(&mut config, labels);
        }
        let model = Self::zeros(config)?;
        let found = model.load(&dir, Some(seed), in_place)?;
        Ok((model, found))
    }

    /// What the model of a `config.json` is for.
    pub fn task_of(config: &Value) -> Result<Task, Error> {
        Ok(family::of_config(config)?.spec_of(config)?.head.task)
    }

    /// Fills the weights from a directory. With a seed, weights of heads may be missing or left over.
    fn load(&self, dir: &HfDir, seed: Option<u64>, in_place: bool) -> Result<NewHead, Error> {
        let (weights, entries) = (dir.weights()?, self.entries());
        let (names, report) = self.found(&weights, &entries, dir.path(), seed.is_some())?;
        for (entry, name) in entries.iter().zip(&names) {
            let Some(name) = name else { continue };
            let halves = in_place.then(|| Halves::of(&self.spec, &weights, entry, name)).flatten();
            if let Some(packed) = bitsandbytes::read(&weights, name)? {
                entry.import_nf4(packed);
            } else if let Some(Halves { ty, bytes, start }) = halves {
                if !entry.import_blocks(ty, &bytes, start, true) {
                    continue;
                }
            } else {
                entry.import(&weights.get(name)?.to_f32()?);
            }
            weights.forget(name);
        }
        if let Some(seed) = seed {
            let is_new =
                |name: &str| entries.iter().any(|e| e.feeds[0] == name && report.initialised.contains(&e.name));
            self.network.initialise(&self.spec, seed, is_new);
        }
        Ok(report)
    }

    /// The name of the tensor that each entry is read from. Refuses weights that are not those of this model: each must be
    /// there, whole, in its shape, and none left over. Reads headers alone.
    pub(crate) fn names_in(&self, weights: &Weights, entries: &[Entry], path: &Path) -> Result<Vec<String>, Error> {
        self.found(weights, entries, path, false).map(|(names, _)| names.into_iter().flatten().collect())
    }

    /// The name of the tensor that each entry is read from. With a new head, weights of heads may be missing or left over.
    fn found(
        &self,
        weights: &Weights,
        entries: &[Entry],
        path: &Path,
        has_new_head: bool,
    ) -> Result<(Vec<Option<String>>, NewHead), Error> {
        let (mut names, mut report) = (Vec::new(), NewHead::default());
        for entry in entries {
            let name = match self.name_in(weights, entry, path) {
                Err(_) if has_new_head && entry.is_of_head() => {
                    report.initialised.push(entry.name.clone());
                    names.push(None);
                    continue;
                }
                other => other?,
            };
            let found = match bitsandbytes::shape(weights, &name)? {
                Some(shape) => shape,
                None => weights.get(&name)?.shape.to_vec(),
            };
            if found != entry.file_shape() {
                return Err(Error::WeightShape {
                    path: weights.file_of(&name).unwrap_or(path).into(),
                    name,
                    found,
                    expected: entry.file_shape(),
                });
            }
            names.push(Some(name));
        }
        let used: HashSet<&str> = names.iter().flatten().map(String::as_str).collect();
        let map = &self.family.weights;
        // Checkpoints of models with a tied head may carry the table under its other names, too.
        let is_copy = |name: &str| self.spec.tie_word_embeddings && map.copies.contains(&name);
        let is_known = |name: &str| {
            let of_another = bitsandbytes::beside(name).is_some_and(|name| used.contains(name));
            of_another || map.ignored_suffixes.iter().any(|suffix| name.ends_with(suffix))
        };
        let mut left = weights.names().filter(|name| !used.contains(*name) && !is_known(name) && !is_copy(name));
        if has_new_head {
            report.dropped = left.map(str::to_owned).collect();
            return Ok((names, report));
        }
        match left.next() {
            None => Ok((names, report)),
            Some(name) => Err(Error::UnexpectedWeight {
                path: weights.file_of(name).unwrap_or(path).into(),
                name: name.to_string(),
                family: self.family.name,
                nearest: nearest(name, entries.iter().map(|entry| entry.name.as_str())),
            }),
        }
    }

    /// The name that a tensor has in these weights: with or without the family's prefix.
    fn name_in(&self, weights: &Weights, entry: &Entry, path: &Path) -> Result<String, Error> {
        let bare = self.bare(&entry.name);
        let whole = format!("{}{bare}", self.family.weights.optional_prefix);
        let found = [entry.name.as_str(), bare, &whole].into_iter().find(|name| weights.contains(name));
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
        let dtype = self.file_dtype()?;
        let entries = self.entries();
        let (mut config, mut tensors, mut nested) = (self.config.clone(), Vec::new(), None);
        for entry in &entries {
            let (shape, value) = (entry.file_shape(), entry.parameters[0].value());
            if let Some(packed) = value.as_nf4().filter(|_| entry.is_one_matrix()) {
                nested = Some(matches!(packed.scales(), Nf4Scales::Nested { .. }));
                tensors.extend(bitsandbytes::tensors(&entry.name, packed, &shape, dtype));
                continue;
            }
            tensors.push(TensorOut::lazy(entry.name.clone(), dtype, &shape, move || {
                let values = entry.export(Parameter::to_vec);
                let bytes = loam_formats::safetensors::encode_f32(dtype, &values).into_owned();
                watch(bytes.len());
                bytes.into()
            }));
        }
        // A model that has become plain again says nothing of how it was once quantised.
        config.as_object_mut().map(|keys| keys.shift_remove(bitsandbytes::CONFIG));
        if let Some(is_nested) = nested {
            config[bitsandbytes::CONFIG] = bitsandbytes::config(is_nested, dtype);
        }
        writer.config(&config)?;
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
        self.network.visit("", &mut |name, parameter| found.push((name, parameter.clone())));
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
        let entries = self.entries();
        let trained = entries.iter().filter(|entry| entry.parameters.iter().any(Parameter::is_trainable));
        trained.map(|entry| (entry.name.clone(), entry.file_shape(), entry.export(read))).collect()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut entries = self.family.weights.entries(&self.parameters(), &self.spec);
        if self.spec.head.task == Task::Embedding {
            // A model without a head is saved without the prefix that tells its body from one.
            for entry in &mut entries {
                entry.name = self.bare(&entry.name).to_owned();
            }
        }
        entries
    }

    fn bare<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(self.family.weights.optional_prefix).unwrap_or(name)
    }

    /// An empty cache for step-by-step decoding.
    pub fn new_cache(&self) -> KvCache {
        self.new_cache_of(KvType::Full)
    }

    /// The same, with keys and values kept in another type, which must fit all heads ([`LanguageModel::fits`]). Layers with
    /// a sliding window keep what it reaches.
    pub fn new_cache_of(&self, kind: KvType) -> KvCache {
        let attentions = self.spec.stack.layers.iter().map(|layer| &layer.attention);
        KvCache::with_windows(attentions.map(|a| a.sliding_window.filter(|_| a.is_causal)), kind)
    }

    /// Whether a cache can keep this model's keys and values so.
    pub fn fits(&self, kind: KvType) -> bool {
        self.spec.stack.layers.iter().all(|layer| kind.fits(layer.attention.head_dim))
    }

    /// What the encoder makes of a source, for the other stack to look at.
    pub fn encode(&self, source: &Input<'_>, forward: Forward<'_>) -> Result<Memory, Error> {
        self.check(source, &forward)?;
        match self.network.encoded(source, forward) {
            Some(hidden) => Ok(Memory { hidden, segments: source.segments.clone() }),
            None => Err(Error::Input(format!("a {} model has no encoder that reads a source", self.spec.family))),
        }
    }

    /// Hidden states after the last block and its norm: `[batch, time, hidden]`.
    pub fn hidden(&self, input: &Input<'_>, forward: Forward<'_>) -> Result<Tensor, Error> {
        self.check(input, &forward)?;
        match (&self.spec.encoder, input.memory) {
            (Some(_), None) => {
                Err(Error::Input(format!("a {} model needs a source beside its text", self.spec.family)))
            }
            (None, Some(_)) => Err(Error::Input(format!("a {} model reads no source", self.spec.family))),
            _ if input.batch * input.time <= SHORT => Ok(with_team(|| self.network.hidden(input, forward))),
            _ => Ok(self.network.hidden(input, forward)),
        }
    }

    /// Logits of every position: `[batch, time, vocab]`.
    pub fn logits(&self, input: &Input<'_>, forward: Forward<'_>) -> Result<Tensor, Error> {
        let hooks = forward.hooks.clone();
        let hidden = self.hidden(input, forward)?;
        self.tokens(&hidden, &hooks)
    }

    /// Logits of the last position of every row: `[batch, vocab]`.
    pub fn last_logits(&self, input: &Input<'_>, forward: Forward<'_>) -> Result<Tensor, Error> {
        let hooks = forward.hooks.clone();
        let hidden = self.hidden(input, forward)?;
        self.tokens(&hidden.narrow(1, input.time - 1, 1).reshape([input.batch, self.spec.hidden_size]), &hooks)
    }

    /// Logits at some positions, counted through all rows, of what [`LanguageModel::hidden`] gave: `[places, vocab]`.
    pub fn logits_at(&self, hidden: &Tensor, places: &[u32], hooks: &Hooks) -> Result<Tensor, Error> {
        let rows = hidden.reshape([hidden.size(0) * hidden.size(1), self.spec.hidden_size]);
        self.tokens(&rows.embedding(places, [places.len()]), hooks)
    }

    /// Scores of the head's classes: `[documents, labels]`, or `[positions, labels]` of a head that reads every position.
    /// Documents are ranges of the input's positions, counted through all rows.
    pub fn scores(&self, input: &Input<'_>, documents: &[Range<usize>], forward: Forward<'_>) -> Result<Tensor, Error> {
        let hooks = forward.hooks.clone();
        let hidden = self.hidden(input, forward)?;
        if self.spec.head.task == Task::LanguageModel {
            return self.tokens(&hidden, &hooks);
        }
        let positions = input.batch * input.time;
        match documents.iter().find(|document| document.is_empty() || document.end > positions) {
            Some(bad) => Err(Error::Input(format!("document {bad:?} lies outside of {positions} positions"))),
            None => Ok(self.network.head.scores(&hidden, documents, &hooks)),
        }
    }

    /// Logits after hidden states `[.., hidden]`: `[.., vocab]`.
    pub fn logits_of(&self, hidden: &Tensor) -> Result<Tensor, Error> {
        self.tokens(hidden, &Hooks::default())
    }

    /// Logits over the vocabulary of hidden states `[.., hidden]`.
    fn tokens(&self, hidden: &Tensor, hooks: &Hooks) -> Result<Tensor, Error> {
        self.expect_language_model()?;
        let head = &self.network.head;
        let logits = head.input(hidden).linear(&self.network.vocabulary(hooks), head.bias().as_ref());
        Ok(self.spec.final_logit_softcapping.map_or(logits.clone(), |cap| logits.softcap(cap)))
    }

    /// The most likely token at some positions, counted through all rows.
    pub fn predictions(&self, input: &Input<'_>, places: &[u32], forward: Forward<'_>) -> Result<Vec<u32>, Error> {
        let hooks = forward.hooks.clone();
        let hidden = self.hidden(input, forward)?;
        let mut found = Vec::with_capacity(places.len());
        for places in places.chunks(PREDICTED_AT_ONCE) {
            let logits = self.logits_at(&hidden, places, &hooks)?.to_vec();
            found.extend(logits.chunks_exact(self.spec.vocab_size).map(|row| {
                let best = (0u32..)
                    .zip(row)
                    .fold((0, f32::NEG_INFINITY), |best, (id, &x)| if x > best.1 { (id, x) } else { best });
                best.0
            }));
        }
        Ok(found)
    }

    fn expect_language_model(&self) -> Result<(), Error> {
        match self.spec.head.task {
            Task::LanguageModel => Ok(()),
            other => {
                Err(Error::Input(format!("a {} model with a head for {other} predicts no tokens", self.family.name)))
            }
        }
    }

    /// Sum over all positions of the negative log-likelihood of `targets` `[batch * time]` (-100 counts nothing),
    /// and the pass's `terms`, times `scale`. Natural-log units. The logits never exist as a whole. Auxiliary losses
    /// (those of routers) are in the gradients but not in the value.
    pub fn loss(&self, input: &Input<'_>, targets: &[i32], scale: f32, forward: Forward<'_>) -> Result<Tensor, Error> {
        self.expect_language_model()?;
        let vocab = 0..self.spec.vocab_size as i32;
        if let Some(target) = targets.iter().find(|&&target| target != IGNORED && !vocab.contains(&target)) {
            return Err(Error::Input(format!("target {target} is outside the vocabulary of {}", self.spec.vocab_size)));
        }
        // Auxiliary losses are means over these positions, which count as much as their targets do.
        let counted = targets.iter().filter(|&&target| target != IGNORED).count();
        let auxiliary_scale = scale * counted as f32 / targets.len().max(1) as f32;
        let (terms, hooks) = (forward.terms, forward.hooks.clone());
        let hidden = self.hidden(input, Forward { auxiliary_scale, ..forward })?;
        let (hidden, targets) = worth_scoring(hidden, targets, counted);
        let settings = HeadSettings { softcap: self.spec.final_logit_softcapping, terms };
        let head = &self.network.head;
        let vocabulary = self.network.vocabulary(&hooks);
        Ok(head.input(&hidden).linear_cross_entropy(&vocabulary, head.bias().as_ref(), &targets, scale, settings))
    }

    /// Natural log-probability of a token after each of some hidden states `[.., hidden]`, as sampled at `temperature`:
    /// `[tokens]`; and the entropies there, in nats, where they are wanted.
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        tokens: &[u32],
        temperature: f32,
        entropies: bool,
    ) -> Result<(Tensor, Vec<f32>), Error> {
        self.expect_language_model()?;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.spec.vocab_size) {
            return Err(Error::Input(format!("token {token} is outside the vocabulary of {}", self.spec.vocab_size)));
        }
        let head = &self.network.head;
        let settings = LogProbSettings { softcap: self.spec.final_logit_softcapping, temperature, entropies };
        let vocabulary = self.network.vocabulary(&Hooks::default());
        Ok(head.input(hidden).linear_log_probs(&vocabulary, head.bias().as_ref(), tokens, settings))
    }

    /// The sum over chunks of rows of `work(logits, rows)`, a scalar, where the logits `[rows, vocab]` are those after hidden
    /// states `[.., hidden]`: a loss of logits that never exist as a whole.
    pub fn loss_of_logits(
        &self,
        hidden: &Tensor,
        work: impl FnMut(&Tensor, Range<usize>) -> Tensor,
    ) -> Result<Tensor, Error> {
        self.expect_language_model()?;
        let head = &self.network.head;
        let (vocabulary, cap) = (self.network.vocabulary(&Hooks::default()), self.spec.final_logit_softcapping);
        Ok(head.input(hidden).linear_loss(&vocabulary, head.bias().as_ref(), cap, work))
    }

    /// Refuses what would otherwise be a bug's panic further down.
    pub(crate) fn check(&self, input: &Input<'_>, forward: &Forward<'_>) -> Result<(), Error> {
        let Input { tokens, batch, time, .. } = *input;
        if tokens.is_empty() || tokens.len() != batch * time {
            return Err(Error::Input(format!("{} tokens do not fill {batch} rows of {time}", tokens.len())));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.spec.vocab_size) {
            return Err(Error::Input(format!("token {token} is outside the vocabulary of {}", self.spec.vocab_size)));
        }
        let cached = forward.cache.as_ref().map_or(0, |cache| cache.len());
        let behind =
            if cached == 0 { self.network.prompt.of(&forward.hooks).map_or(0, |hook| hook.count()) } else { 0 };
        let last = match input.positions {
            Some(positions) => positions.iter().max().map_or(0, |&p| p as usize + 1),
            None => cached + time,
        } + behind;
        if behind > 0 && input.runs.is_some() {
            return Err(Error::Input("texts that lie end to end cannot have virtual tokens in front of each".into()));
        }
        if let Hooks::Rows(rows) = &forward.hooks
            && rows.len() != batch
            && !(batch == 1 && rows.len() == time)
        {
            return Err(Error::Input(format!("{} rows of hooks for a batch of {batch}", rows.len())));
        }
        if self.has_last_position() && last > self.spec.max_position_embeddings {
            return Err(Error::Input(format!(
                "{last} positions do not fit the context of {}",
                self.spec.max_position_embeddings
            )));
        }
        Ok(())
    }

    /// Whether positions come from a table, which ends.
    fn has_last_position(&self) -> bool {
        let stacks = self.spec.encoder.iter().chain([&self.spec.stack]);
        stacks.map(|stack| stack.position).any(|position| matches!(position, Position::Learned { .. }))
    }
}

/// Positions of a pass whose operations are so short that threads are kept awake between them.
const SHORT: usize = 64;
/// Positions whose logits exist together.
const PREDICTED_AT_ONCE: usize = 512;

/// The positions that have a target, where they are the smaller part: the rest need no head.
fn worth_scoring(hidden: Tensor, targets: &[i32], counted: usize) -> (Tensor, Vec<i32>) {
    if counted == 0 || 2 * counted > targets.len() {
        return (hidden, targets.to_vec());
    }
    let places: Vec<u32> = (0u32..).zip(targets).filter(|(_, target)| **target != IGNORED).map(|(i, _)| i).collect();
    let width = hidden.shape().width();
    let rows = hidden.reshape([targets.len(), width]).embedding(&places, [counted]);
    (rows, targets.iter().copied().filter(|&target| target != IGNORED).collect())
}

/// Names the classes of a classifier in a `config.json`, as transformers does.
pub fn set_labels(config: &mut Value, labels: &[String]) {
    if let Some(keys) = config.as_object_mut() {
        set_labels_of(keys, labels);
    }
}

pub(crate) fn set_labels_of(keys: &mut Map<String, Value>, labels: &[String]) {
    let by_id = labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label)));
    keys.insert("id2label".into(), Value::Object(by_id.collect()));
    let by_label = labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id)));
    keys.insert("label2id".into(), Value::Object(by_label.collect()));
    // A count beside the names, in another layout, could contradict them.
    keys.remove("num_labels");
}
