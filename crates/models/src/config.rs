//! Reading `config.json` with errors that name the key.

use loam_nn::{Activation, RopeConfig, RopeScaling};
use loam_tensor::RopeStyle;
use serde_json::Value;

use crate::error::Error;
use crate::spec::{HeadSpec, Reads, Task};

/// Names of `layer_types`.
const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// A view of a JSON object whose getters complain by name.
#[derive(Clone, Copy)]
pub struct Config<'a> {
    object: &'a Value,
    /// Prefix of keys in messages, for nested objects.
    prefix: &'a str,
}

impl<'a> Config<'a> {
    /// The whole of a `config.json`.
    pub fn new(object: &'a Value) -> Self {
        Self { object, prefix: "" }
    }

    fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_string() } else { format!("{}.{key}", self.prefix) }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`, if there is one.
    pub fn object(&self, key: &'a str) -> Option<Config<'a>> {
        self.get(key).filter(|value| value.is_object()).map(|object| Config { object, prefix: key })
    }

    /// A positive whole number.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        self.optional_size(key)?.ok_or_else(|| Error::config(&self.name(key), "is missing"))
    }

    /// A positive whole number that may be absent or null.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if size > 0 && size <= u64::from(u32::MAX) => Ok(Some(size as usize)),
            _ => Err(Error::config(&self.name(key), format!("must be a positive whole number, found {value}"))),
        }
    }

    /// A finite number, or `default`.
    pub fn number(&self, key: &str, default: f64) -> Result<f64, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite())
                .ok_or_else(|| Error::config(&self.name(key), format!("must be a number, found {value}"))),
        }
    }

    /// A finite number; `None` where the file says null, `default` where it says nothing.
    pub fn nullable_number(&self, key: &str, default: f64) -> Result<Option<f64>, Error> {
        match self.object.get(key) {
            Some(Value::Null) => Ok(None),
            _ => self.number(key, default).map(Some),
        }
    }

    /// A list of whole numbers that may be absent.
    pub fn indices(&self, key: &str) -> Result<Vec<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let numbers = value.as_array().and_then(|all| all.iter().map(|x| x.as_u64().map(|x| x as usize)).collect());
        numbers.ok_or_else(|| Error::config(&self.name(key), format!("must list whole numbers, found {value}")))
    }

    /// A finite number that must be there.
    pub fn required_number(&self, key: &str) -> Result<f64, Error> {
        match self.get(key) {
            None => Err(Error::config(&self.name(key), "is missing")),
            Some(_) => self.number(key, 0.0),
        }
    }

    /// A truth value, or `default`.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| Error::config(&self.name(key), format!("must be true or false, found {value}"))),
        }
    }

    /// A text, or `default`.
    pub fn text(&self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_str().ok_or_else(|| Error::config(&self.name(key), format!("must be a text, found {value}")))
            }
        }
    }

    /// What the model is for, as `architectures` says; the first of the known ones where it says nothing.
    pub fn task(&self, known: &[(&str, Task)]) -> Result<Task, Error> {
        let Some(list) = self.get("architectures") else { return Ok(known[0].1) };
        let name = list.get(0).and_then(Value::as_str).unwrap_or_default();
        known.iter().find(|(architecture, _)| *architecture == name).map(|&(_, task)| task).ok_or_else(|| {
            let names = known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            Error::config(&self.name("architectures"), format!("is {list}; known here are {names}"))
        })
    }

    /// Classes of a classifier, as `id2label` or `num_labels` counts them; 2 where neither is there.
    pub fn num_labels(&self) -> Result<usize, Error> {
        match self.object("id2label") {
            Some(labels) => Ok(labels.object.as_object().map_or(0, |labels| labels.len())),
            None => Ok(self.optional_size("num_labels")?.unwrap_or(2)),
        }
    }

    /// The head of a decoder: over tokens, or over classes at the last one.
    pub fn decoder_head(&self, known: &[(&str, Task)]) -> Result<HeadSpec, Error> {
        match self.task(known)? {
            Task::LanguageModel => Ok(HeadSpec::tokens()),
            task => Ok(HeadSpec::labels(task, Reads::Last, self.num_labels()?)),
        }
    }

    /// The activation named under `key`, or `default`.
    pub fn activation(&self, key: &str, default: &'a str) -> Result<Activation, Error> {
        let name = self.text(key, default)?;
        Activation::by_name(name).ok_or_else(|| {
            let known = Activation::names().collect::<Vec<_>>().join(", ");
            Error::config(&self.name(key), format!("is `{name}`; known are {known}"))
        })
    }

    /// Refuses a number of heads that does not divide evenly.
    pub fn divides(&self, key: &str, divisor: usize, what: &str, total: usize) -> Result<(), Error> {
        if total.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(Error::config(&self.name(key), format!("is {divisor}, which does not divide {what} {total}")))
    }

    /// Rotary positions from either layout: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`
    /// (transformers 4).
    pub fn rope(&self, head_dim: usize, max_positions: usize) -> Result<RopeConfig, Error> {
        let nested = self.object("rope_parameters").or_else(|| self.object("rope_scaling"));
        let top_theta = self.number("rope_theta", self.number("rotary_emb_base", 10_000.0)?)?;
        let top_share = self.number("partial_rotary_factor", self.number("rotary_pct", 1.0)?)?;
        match nested {
            None => self.rotation(head_dim, top_theta, top_share, RopeScaling::None),
            Some(rope) => {
                let (theta, scaling) = (rope.number("rope_theta", top_theta)?, rope.scaling(max_positions)?);
                rope.rotation(head_dim, theta, rope.number("partial_rotary_factor", top_share)?, scaling)
            }
        }
    }

    /// Rotary positions of one kind of layer, where the configuration tells kinds apart: an object per kind in
    /// `rope_parameters`, or, in transformers 4, a base of their own for sliding layers.
    pub fn rope_of_kind(&self, is_sliding: bool, head_dim: usize, max_positions: usize) -> Result<RopeConfig, Error> {
        let kind = if is_sliding { SLIDING } else { FULL };
        let own = self.object("rope_parameters").and_then(|all| all.get(kind)).filter(|value| value.is_object());
        if let Some(object) = own {
            let rope = Config { object, prefix: "rope_parameters" };
            let scaling = rope.scaling(max_positions)?;
            return rope.rotation(head_dim, rope.required_number("rope_theta")?, 1.0, scaling);
        }
        if is_sliding && self.get("rope_local_base_freq").is_some() {
            return self.rotation(head_dim, self.number("rope_local_base_freq", 10_000.0)?, 1.0, RopeScaling::None);
        }
        // ModernBERT's, in transformers 4.
        let own = if is_sliding { "local_rope_theta" } else { "global_rope_theta" };
        if self.get(own).is_some() {
            return self.rotation(head_dim, self.number(own, 10_000.0)?, 1.0, RopeScaling::None);
        }
        self.rope(head_dim, max_positions)
    }

    fn rotation(&self, head_dim: usize, theta: f64, share: f64, scaling: RopeScaling) -> Result<RopeConfig, Error> {
        let rotary_dim = (head_dim as f64 * share) as usize;
        if !(share > 0.0 && share <= 1.0) || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let what = format!("gives {share} of {head_dim} features to rotary positions; they need an even number");
            return Err(Error::config(&self.name("partial_rotary_factor"), what));
        }
        if theta <= 1.0 {
            return Err(Error::config(&self.name("rope_theta"), format!("must be above 1, found {theta}")));
        }
        Ok(RopeConfig { rope_theta: theta, rotary_dim, style: RopeStyle::Half, scaling })
    }

    /// Which layers see only a window: as `layer_types` says, else by `default`.
    pub fn sliding_layers(&self, layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>, Error> {
        let Some(types) = self.get("layer_types") else { return Ok((0..layers).map(default).collect()) };
        let kinds = types.as_array().filter(|kinds| kinds.len() == layers).ok_or_else(|| {
            Error::config(&self.name("layer_types"), format!("must list {layers} layers, found {types}"))
        })?;
        let is_sliding = |kind: &Value| match kind.as_str() {
            Some(SLIDING) => Ok(true),
            Some(FULL) => Ok(false),
            _ => Err(Error::config(&self.name("layer_types"), format!("has {kind}; known are {SLIDING}, {FULL}"))),
        };
        kinds.iter().map(is_sliding).collect()
    }

    fn scaling(&self, max_positions: usize) -> Result<RopeScaling, Error> {
        let kind = self.text("rope_type", self.text("type", "default")?)?;
        let original = |config: &Self| config.number("original_max_position_embeddings", max_positions as f64);
        let factor = || {
            let factor = self.required_number("factor")?;
            if factor >= 1.0 {
                return Ok(factor);
            }
            Err(Error::config(&self.name("factor"), format!("must be at least 1, found {factor}")))
        };
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: self.required_number("low_freq_factor")?,
                high_freq_factor: self.required_number("high_freq_factor")?,
                original_max_position_embeddings: original(self)?,
            }),
            "yarn" => {
                let factor = factor()?;
                Ok(RopeScaling::Yarn {
                    factor,
                    beta_fast: self.number("beta_fast", 32.0)?,
                    beta_slow: self.number("beta_slow", 1.0)?,
                    attention_factor: self.yarn_attention_factor(factor)?,
                    original_max_position_embeddings: original(self)?,
                    truncate: self.flag("truncate", true)?,
                })
            }
            other => Err(Error::config(
                &self.name("rope_type"),
                format!("is `{other}`; known are default, linear, llama3, yarn"),
            )),
        }
    }

    /// Peng et al. (2023), eq. 22: `0.1 ln(factor) + 1`, unless the configuration states it.
    fn yarn_attention_factor(&self, factor: f64) -> Result<f64, Error> {
        if self.get("attention_factor").is_some() {
            return self.required_number("attention_factor");
        }
        let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let (mscale, all_dim) = (self.number("mscale", 0.0)?, self.number("mscale_all_dim", 0.0)?);
        if mscale != 0.0 && all_dim != 0.0 {
            return Ok(temperature(mscale) / temperature(all_dim));
        }
        Ok(temperature(1.0))
    }
}
