//! A run that trains an adapter: the model is frozen, and everything that the loop would do to its parameters it does to the
//! adapter's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loam_formats::atomic;
use loam_models::{LanguageModel, Task};
use loam_peft::{Adapter, AdapterSet, Config, Method, Origin, RankAllocator};
use loam_tensor::{Parameter, Precision, Tensor, with_precision};
use loam_tokenizer::{Special, Tokenizer};

use crate::error::{Error, Result};
use crate::recipe::{PeftSection, Recipe};

/// An adapter in training, attached to its model.
pub struct AdapterRun {
    adapter: Arc<Adapter>,
    allocator: Option<RankAllocator>,
    /// The adapter's parameters, and what its method remembers from step to step (frozen).
    parameters: Vec<(String, Parameter)>,
    lr_ratio: f64,
    _set: AdapterSet,
}

impl AdapterRun {
    /// Attaches the adapter of a resolved recipe to a model that is frozen; `None` without the section.
    pub fn begin(recipe: &Recipe, model: &LanguageModel, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(section) = &recipe.peft else { return Ok(None) };
        let mut adapter = match &section.path {
            Some(path) => Adapter::open(model, Path::new(path))?,
            None => fresh(recipe, section, model, tokenizer)?,
        };
        adapter.set_base(recipe.model.path.clone());
        let adapter = Arc::new(adapter);
        let allocator = RankAllocator::new(&adapter);
        let mut parameters = adapter.parameters().to_vec();
        parameters.extend(allocator.iter().flat_map(|allocator| allocator.state().iter().cloned()));
        let set = AdapterSet::attach(model, vec![adapter.clone()]);
        Ok(Some(Self { adapter, allocator, parameters, lr_ratio: section.lr_ratio.unwrap_or(1.0), _set: set }))
    }

    /// The adapter.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// What is trained and what a checkpoint keeps.
    pub(crate) fn parameters(&self) -> &[(String, Parameter)] {
        &self.parameters
    }

    /// The learning rate of a parameter over the run's (LoRA+): that of B, and of vectors.
    pub(crate) fn lr_factor(&self, name: &str, parameter: &Parameter) -> f64 {
        let is_fast = name.contains("lora_B") || parameter.shape().len() == 1;
        if is_fast { self.lr_ratio } else { 1.0 }
    }

    /// Whether gradients have to stay until all of them are there.
    pub(crate) fn needs_all_gradients(&self) -> bool {
        self.allocator.is_some()
    }

    /// What the method adds to the loss of a batch.
    pub(crate) fn regularisation(&self) -> Option<Tensor> {
        self.allocator.as_ref().map(|allocator| with_precision(Precision::F32, || allocator.regularisation()))
    }

    /// Lets the method look at a step's gradients; what it returns is run after the optimizer's update.
    pub(crate) fn watch(&self) -> impl FnOnce(u64) + '_ {
        let watched = self.allocator.as_ref().map(|allocator| (allocator, allocator.gradients()));
        move |step| {
            if let Some((allocator, gradients)) = watched {
                allocator.after_step(step, &gradients);
            }
        }
    }

    /// Writes the adapter's directory, with a card.
    pub(crate) fn export(&self, model: &LanguageModel, path: &Path, card: &str) -> Result<PathBuf> {
        let settled = match &self.allocator {
            Some(allocator) => Some(allocator.settle(model, &self.adapter)?),
            None => None,
        };
        let adapter = settled.as_ref().unwrap_or(&self.adapter);
        adapter.save_with(model, path, |dir| -> Result<()> {
            Ok(atomic::write_file(dir.join("README.md"), card.as_bytes())?)
        })?;
        Ok(path.to_owned())
    }
}

/// Freezes a model under the adapter that a recipe trains, and rounds it where the section says so.
pub(crate) fn freeze(section: &PeftSection, model: &LanguageModel) -> Result<()> {
    model.parameters().iter().for_each(|(_, parameter)| parameter.set_trainable(false));
    if let Some(quant) = &section.quant {
        model.quantise(&model.plan(quant.parse()?), None)?;
    }
    Ok(())
}

fn fresh(recipe: &Recipe, section: &PeftSection, model: &LanguageModel, tokenizer: &Tokenizer) -> Result<Adapter> {
    let mut config = section
        .config(recipe.train.steps.unwrap_or(1))
        .expect("validation asks for a method or the path of an adapter");
    for text in &section.trainable_tokens {
        config.trainable_tokens.push(tokenizer.token_to_id(text).ok_or_else(|| Error::Examples {
            what: format!("peft.trainable_tokens: the tokenizer has no token `{text}`"),
            hint: "name tokens as the tokenizer writes them: `loam tokenizer show` lists them".into(),
        })?);
    }
    add_head(&mut config, model)?;
    let encode = |text: &str| tokenizer.encode(text, Special::Parse).map_err(|error| error.to_string());
    let is_prefix = matches!(config.method, Method::Prefix(_));
    let origin =
        Origin { seed: recipe.seed, encode: Some(&encode), prefix_text: section.text.as_deref().filter(|_| is_prefix) };
    Ok(Adapter::new(model, &config, origin)?)
}

/// A classifier's head is drawn anew for its task: it has to be trained, too.
fn add_head(config: &mut Config, model: &LanguageModel) -> Result<()> {
    let head = &model.spec().head;
    if matches!(head.task, Task::LanguageModel | Task::Embedding) {
        return Ok(());
    }
    if head.has_bias || head.transform.is_some() {
        return Err(Error::Examples {
            what: format!(
                "the head of a {} model has more weights than adapter files have a place for",
                model.spec().family
            ),
            hint: "leave [peft] out, or take a decoder such as `llama`, whose classifier is one matrix".into(),
        });
    }
    if let Some(site) = model.table_sites().pop() {
        let name = site.name.rsplit('.').next().unwrap_or(&site.name).to_owned();
        if !config.modules_to_save.contains(&name) {
            config.modules_to_save.push(name);
        }
    }
    Ok(())
}

/// The card of an adapter's directory.
pub(crate) fn adapter_card(run: &AdapterRun, recipe: &Recipe, model: &LanguageModel, steps: u64) -> String {
    let base = recipe.model.path.as_deref().unwrap_or_default();
    let (trained, all) = (run.adapter.num_parameters(), model.num_parameters());
    let is_hub = matches!(run.adapter.config().method, Method::Bottleneck(_));
    let library = if is_hub { "adapter-transformers" } else { "peft" };
    format!(
        "---\nlibrary_name: {library}\nbase_model: {base}\ntags:\n- loam\n- {stage}\n---\n\n# {name}\n\nAn adapter ({method}) of \
         `{base}`, trained with Loam {version} (stage `{stage}`).\n\n| | |\n|---|---|\n| trained parameters | {trained} of {all} |\n\
         | steps | {steps} |\n\n## Use\n\n```sh\nloam generate {base} --adapter . \"Once\"\nloam model merge {base} . merged/\n```\n\n\
         ## Recipe\n\n```toml\n{recipe}```\n",
        stage = recipe.stage.name(),
        name = recipe.train.name.as_deref().unwrap_or("adapter"),
        method = run.adapter.config().method.name(),
        version = env!("CARGO_PKG_VERSION"),
        recipe = recipe.to_toml(),
    )
}
