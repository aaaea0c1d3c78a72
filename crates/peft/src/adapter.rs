//! [`Adapter`]: a method with its tensors, made for one model.

use std::collections::HashSet;
use std::sync::Arc;

use loam_formats::nearest;
use loam_models::{LanguageModel, LinearSite, TableSite};
use loam_tensor::{Parameter, Raw, Tensor, no_grad};

use crate::bottleneck::{Joined, bottleneck};
use crate::config::{Config, Method};
use crate::error::{Error, Result};
use crate::linear::{Attached, Named, Rows, Whole, adalora, check_patterns, file_name, ia3, lora, vera};
use crate::prompt::{self, EMBEDDINGS, Encode, SharedPrompt};
use crate::tables::{Tabled, WholeTable, token_rows};
use crate::target::ends_with;

/// An adapter of a model. Its hooks hold on to the model's parameters, but it does nothing before it is attached
/// ([`crate::AdapterSet`]).
pub struct Adapter {
    pub(crate) config: Config,
    named: Named,
    pub(crate) linears: Vec<Attached>,
    pub(crate) joins: Vec<Joined>,
    pub(crate) tables: Vec<Tabled>,
    pub(crate) prompt: Option<SharedPrompt>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} parameters", self.config.method.name(), self.num_parameters())
    }
}

/// What an adapter starts from besides its configuration.
#[derive(Clone, Copy, Default)]
pub struct Origin<'a> {
    /// Seed of what is drawn.
    pub seed: u64,
    /// Encodes texts, for methods that start from one.
    pub encode: Option<Encode<'a>>,
    /// The text that a prefix starts from.
    pub prefix_text: Option<&'a str>,
}

impl Adapter {
    /// A fresh adapter for a model. The model's parameters are neither changed nor frozen.
    pub fn new(model: &LanguageModel, config: &Config, origin: Origin<'_>) -> Result<Self> {
        if let Method::Lora(lora) = &config.method {
            check_patterns(model, lora)?;
        }
        Self::made(model, config, origin)
    }

    fn made(model: &LanguageModel, config: &Config, origin: Origin<'_>) -> Result<Self> {
        let seed = origin.seed;
        let mut own = Self::empty(config.clone());
        match &config.method {
            Method::Lora(config) => (own.named, own.linears) = lora(model, config, seed)?,
            Method::AdaLora(config) => (own.named, own.linears) = adalora(model, config, seed)?,
            Method::Vera(config) => (own.named, own.linears) = vera(model, config)?,
            Method::Ia3(config) => (own.named, own.linears) = ia3(model, config)?,
            Method::Bottleneck(config) => (own.named, own.joins) = bottleneck(model, config, seed)?,
            Method::Prompt(config) => own.take_prompt(prompt::prompt_tuning(model, config, seed, origin.encode)?),
            Method::PTuning(config) => own.take_prompt(prompt::p_tuning(model, config, seed)?),
            Method::Prefix(config) => {
                let text = origin.prefix_text.map(|text| (text, origin.encode));
                own.take_prompt(prompt::prefix_tuning(model, config, seed, text)?);
            }
        }
        own.add_modules(model)?;
        Ok(own)
    }

    /// An adapter as files have it: soft prompts without the network that made them.
    pub(crate) fn bare(model: &LanguageModel, config: &Config) -> Result<Self> {
        let mut config = config.clone();
        // PEFT lists both names that classifiers' heads have, and models have one of them.
        let head = model.table_sites().pop();
        let is_head = |name: &String| head.as_ref().is_some_and(|site| ends_with(&site.name, name));
        config.modules_to_save.retain(|name| !["classifier", "score"].contains(&name.as_str()) || is_head(name));
        let config = &config;
        let (count, is_prefix) = match &config.method {
            Method::Prompt(config) => (config.num_virtual_tokens, false),
            Method::PTuning(config) => (config.num_virtual_tokens, false),
            Method::Prefix(config) => (config.num_virtual_tokens, true),
            _ => return Self::made(model, config, Origin::default()),
        };
        let mut own = Self::empty(config.clone());
        own.take_prompt(prompt::collapsed(model, count, is_prefix)?);
        own.add_modules(model)?;
        Ok(own)
    }

    fn empty(config: Config) -> Self {
        Self { config, named: Vec::new(), linears: Vec::new(), joins: Vec::new(), tables: Vec::new(), prompt: None }
    }

    fn take_prompt(&mut self, (named, prompt): (Named, prompt::SoftPrompt)) {
        self.named = named;
        self.prompt = Some(Arc::new(prompt));
    }

    /// Adds the modules that are trained as a whole, and the tokens whose vectors are.
    fn add_modules(&mut self, model: &LanguageModel) -> Result<()> {
        let config = self.config.clone();
        if !config.trainable_tokens.is_empty() {
            if !matches!(config.method, Method::Lora(_)) {
                let name = config.method.name();
                return Err(Error::Setting(format!("tokens' vectors are trained beside LoRA, not beside {name}")));
            }
            let (named, tables) = token_rows(model, &config.trainable_tokens)?;
            self.named.extend(named);
            self.tables.extend(tables);
        }
        let (tables, linears) = (model.table_sites(), model.linear_sites());
        let mut changed: HashSet<String> = self.linears.iter().map(|attached| attached.key.clone()).collect();
        for name in &config.modules_to_save {
            let meant: Vec<&TableSite> = tables.iter().filter(|site| ends_with(&site.name, name)).collect();
            let layers: Vec<&LinearSite> = linears.iter().filter(|site| ends_with(&site.name, name)).collect();
            if meant.is_empty() && layers.is_empty() {
                let known = tables.iter().map(|site| site.name.as_str());
                let ends = linears.iter().filter_map(|site| site.name.rsplit('.').next());
                let close = nearest(
                    name,
                    known.clone().chain(tables.iter().filter_map(|s| s.name.rsplit('.').next())).chain(ends),
                );
                return Err(Error::NoTarget {
                    name: name.clone(),
                    setting: "modules_to_save",
                    what: "module that can be trained as a whole",
                    family: model.spec().family.into(),
                    hint: close.map_or_else(
                        || format!("there are {}, and linear layers", known.collect::<Vec<_>>().join(", ")),
                        |close| format!("did you mean `{close}`?"),
                    ),
                });
            }
            for site in meant {
                if site.name.contains("embed") && !config.trainable_tokens.is_empty() {
                    let problem =
                        format!("`{}` is trained as a whole and some of its rows besides: keep one", site.name);
                    return Err(Error::Setting(problem));
                }
                let copy = copy_of(&site.weight);
                let key =
                    if site.weight.is_same(&model.token_table()) && site.name != "lm_head" { "tokens" } else { "head" };
                self.named.push((file_name(&site.name, "weight"), copy.clone()));
                self.tables.push(Tabled { key: key.into(), site: site.clone(), hook: Arc::new(WholeTable(copy)) });
            }
            for site in layers {
                if !changed.insert(format!("{}#0", site.name)) {
                    return Err(Error::Setting(format!(
                        "`{}` has an adapter and is trained as a whole: keep one",
                        site.name
                    )));
                }
                self.add_whole(site);
            }
        }
        Ok(())
    }

    fn add_whole(&mut self, site: &LinearSite) {
        let (inputs, outputs) = (site.in_features(), site.out_features());
        let weight = Parameter::new(Raw::from_f32(&site.weight(), [outputs, inputs]));
        let bias = site.parts[0].linear.bias.is_some().then(|| {
            let mut values = vec![0.0; outputs];
            for part in &site.parts {
                let own = part.linear.bias.as_ref().map(Parameter::to_vec).unwrap_or_default();
                part.rows.iter().zip(own).for_each(|(&row, value)| values[row] = value);
            }
            Parameter::new(Raw::from_f32(&values, [outputs]))
        });
        self.named.push((file_name(&site.name, "weight"), weight.clone()));
        self.named.extend(bias.iter().map(|bias| (file_name(&site.name, "bias"), bias.clone())));
        for (at, part) in site.parts.iter().enumerate() {
            let adapter = Whole { weight: weight.clone(), bias: bias.clone(), rows: Rows::of(part, outputs) };
            self.linears.push(Attached {
                key: format!("{}#{at}", site.name),
                linear: part.linear.clone(),
                adapter: Arc::new(adapter),
            });
        }
    }

    /// What it is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Remembers where the model is that it was made for.
    pub fn set_base(&mut self, base: Option<String>) {
        self.config.base = base;
    }

    /// Its tensors by the names of PEFT's (or AdapterHub's) files, those of a prompt's network included, in a fixed order.
    /// Some may be frozen: VeRA's matrices.
    pub fn parameters(&self) -> &[(String, Parameter)] {
        &self.named
    }

    /// How many numbers are trained.
    pub fn num_parameters(&self) -> usize {
        self.named.iter().filter(|(_, parameter)| parameter.is_trainable()).map(|(_, p)| p.count()).sum()
    }

    /// Whether different rows of a batch may go through it and through another one.
    pub(crate) fn problem_with_rows(&self) -> Option<&'static str> {
        if self.prompt.is_some() {
            return Some("soft prompts make rows of different lengths");
        }
        if !self.tables.is_empty() {
            return Some("it trains vectors of tokens or the head");
        }
        self.linears.iter().any(|attached| attached.key.contains(".experts.")).then_some("it stands inside of experts")
    }

    /// The tensors that are saved: a prompt's vectors as its network makes them, all else as it is.
    pub fn saved_tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let plain = |named: &[(String, Parameter)]| -> Vec<(String, Vec<usize>, Vec<f32>)> {
            named.iter().map(|(name, p)| (name.clone(), p.shape().to_vec(), p.to_vec())).collect()
        };
        let Some(prompt) = &self.prompt else { return plain(&self.named) };
        let embeddings: Tensor = no_grad(|| prompt.embeddings());
        let mut all = vec![(EMBEDDINGS.to_owned(), embeddings.shape().to_vec(), embeddings.to_vec())];
        let others: Named = self.named.iter().filter(|(name, _)| name.starts_with("base_model.")).cloned().collect();
        all.extend(plain(&others));
        all
    }
}

/// A trainable copy, decoded where it is quantised.
fn copy_of(parameter: &Parameter) -> Parameter {
    Parameter::new(Raw::from_f32(&parameter.to_vec(), parameter.shape()))
}
