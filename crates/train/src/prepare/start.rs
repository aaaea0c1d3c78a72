//! Tokenizer and model: opened, or made.

use std::path::{Path, PathBuf};

use loam_formats::HfDir;
use loam_models::{LanguageModel, Task, set_labels};
use loam_tensor::with_precision;
use loam_tokenizer::{ChatTemplate, Progress, Tokenizer, TrainConfig, TrainKind, save_directory};
use serde_json::{Value, json};

use super::labelled::labels;
use super::records;
use super::text::texts;
use crate::error::{Error, Result};
use crate::recipe::{
    DEFAULT_MIN_FREQUENCY, DEFAULT_TOKENIZER_BYTES, DEFAULT_VOCAB_SIZE, Noise, Recipe, Stage, TokenizerKind,
};
use crate::run::file_hashes;
use crate::trainer::Observer;

/// A model about to be trained, and its tokenizer.
pub(crate) struct Start {
    pub(crate) model: LanguageModel,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// Names of a classifier's classes, as its head numbers them.
    pub(crate) labels: Vec<String>,
    /// What `environment.json` says about the model that was opened; null for a new one.
    pub(crate) base: Value,
}

impl Start {
    /// Opens or makes what the recipe says.
    pub(crate) fn of(recipe: &Recipe, cache_dir: &Path, observer: &mut dyn Observer) -> Result<Self> {
        let start = match &recipe.model.path {
            Some(path) => Self::open(Path::new(path), recipe, observer),
            None => Self::new(recipe, cache_dir, observer),
        }?;
        if let Some(section) = &recipe.peft {
            crate::adapter::freeze(section, &start.model)?;
        }
        Ok(start)
    }

    fn open(path: &Path, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Self> {
        let dir = HfDir::open(path)?;
        // Halves are kept as products in the run's precision read them.
        let precision = recipe.train.precision.settled();
        let (mut model, labels) = with_precision(precision, || with_head(path, &dir, recipe, observer))?;
        let tokenizer = Tokenizer::open(path)?;
        // transformers finds the last token of a padded row by it.
        if recipe.stage == Stage::Reward
            && model.config()["pad_token_id"].is_null()
            && let Some(pad) = tokenizer.pad_id().or(tokenizer.eos_id())
        {
            model.set_config("pad_token_id", json!(pad));
        }
        let special = tokenizer.special();
        let template = match dir.chat_template()? {
            Some(source) => Some(ChatTemplate::new(source, special.bos.as_deref(), special.eos.as_deref())?),
            None => chatml_if_known(&tokenizer),
        };
        check_vocabulary(&tokenizer, model.spec().vocab_size)?;
        let base = json!({"path": path.display().to_string(), "files": file_hashes(&weight_files(path)?)?});
        Ok(Self { model, tokenizer, template, labels, base })
    }

    fn new(recipe: &Recipe, cache_dir: &Path, observer: &mut dyn Observer) -> Result<Self> {
        let tokenizer = match &recipe.tokenizer.path {
            Some(path) => Tokenizer::open(path)?,
            None => trained(recipe, cache_dir, observer)?,
        };
        let mut config = recipe.new_config(tokenizer.vocab_size());
        let labels = labels(recipe)?;
        let family = loam_models::family_by_name(recipe.family())?;
        config["architectures"] = json!([family.architecture_of(recipe.stage.task())?]);
        if !labels.is_empty() {
            set_labels(&mut config, &labels);
        }
        let mut ids = vec![("bos_token_id", tokenizer.bos_id()), ("eos_token_id", tokenizer.eos_id())];
        if (family.defaults)()["is_encoder_decoder"] == true {
            let start = tokenizer.pad_id().or(tokenizer.eos_id());
            ids.extend([("decoder_start_token_id", start), ("pad_token_id", start)]);
        }
        for (key, id) in ids {
            if config.get(key).is_none() {
                config[key] = json!(id);
            }
        }
        let model = LanguageModel::new(&config, recipe.seed)?;
        let range = model.spec().initializer_range;
        if let Some(init) = recipe.model.initializer.and_then(|initializer| initializer.init(range)) {
            model.initialise_blocks(init, recipe.seed);
        }
        check_vocabulary(&tokenizer, model.spec().vocab_size)?;
        let template = chatml_if_known(&tokenizer);
        Ok(Self { model, tokenizer, template, labels, base: Value::Null })
    }
}

/// Opens a model with the stage's head: its own, or a new one where the recipe allows that. Returns the classes that the
/// head tells apart, too.
fn with_head(
    path: &Path,
    dir: &HfDir,
    recipe: &Recipe,
    observer: &mut dyn Observer,
) -> Result<(LanguageModel, Vec<String>)> {
    let (task, wanted) = (recipe.stage.task(), labels(recipe)?);
    // Under an adapter nothing of it is trained: halves stay where they lie.
    let in_place = recipe.peft.is_some();
    let own = LanguageModel::task_of(dir.config())?;
    let known = known_labels(dir.config());
    if own == task && wanted.iter().all(|label| known.contains(label)) {
        let open = if in_place { LanguageModel::open_to_run } else { LanguageModel::open };
        return Ok((open(path)?, known));
    }
    // Nothing but hidden states is wanted, and every model of one stack has these.
    // And a reward model's head is what its stage is for.
    let is_allowed = recipe.model.new_head == Some(true) || task == Task::Embedding || recipe.stage == Stage::Reward;
    if !is_allowed {
        let found = match own == task {
            true => format!("for the classes {}", known.join(", ")),
            false => format!("for {own}"),
        };
        return Err(Error::Examples {
            what: format!(
                "{}: the model's head is {found}, stage `{}` needs another",
                path.display(),
                recipe.stage.name()
            ),
            hint: "set `model.new_head = true`, and one is drawn anew".into(),
        });
    }
    let (model, report) = LanguageModel::open_for(path, task, &wanted, recipe.seed, in_place)?;
    if !report.initialised.is_empty() {
        observer.on_message(&format!("drawn anew: {}", report.initialised.join(", ")));
    }
    if !report.dropped.is_empty() {
        observer.on_message(&format!("not used: {}", report.dropped.join(", ")));
    }
    Ok((model, wanted))
}

/// The classes that a configuration names, in the order of their numbers.
fn known_labels(config: &Value) -> Vec<String> {
    let by_id = config.get("id2label").and_then(Value::as_object);
    let label = |id: usize| Some(by_id?.get(&id.to_string())?.as_str()?.to_owned());
    (0..).map_while(label).collect()
}

/// ChatML where the vocabulary has its marks.
fn chatml_if_known(tokenizer: &Tokenizer) -> Option<ChatTemplate> {
    let marks = ["<|im_start|>", "<|im_end|>"];
    marks.iter().all(|mark| tokenizer.token_to_id(mark).is_some()).then(ChatTemplate::chatml)
}

fn check_vocabulary(tokenizer: &Tokenizer, vocab_size: usize) -> Result<()> {
    if tokenizer.vocab_size() <= vocab_size {
        return Ok(());
    }
    Err(Error::Examples {
        what: format!("the tokenizer has {} tokens, the model has room for {vocab_size}", tokenizer.vocab_size()),
        hint: "leave `model.vocab_size` out, and it follows from the tokenizer".into(),
    })
}

pub(super) fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(path).map_err(|e| loam_formats::Error::io("read", path, e))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect();
    files.sort();
    Ok(files)
}

/// Trains a tokenizer on the training text, or takes the one that the same text and settings gave before.
fn trained(recipe: &Recipe, cache_dir: &Path, observer: &mut dyn Observer) -> Result<Tokenizer> {
    let section = &recipe.tokenizer;
    let config = train_config(recipe);
    let files = expand(&recipe.data.train)?;
    let identity = json!({
        "config": format!("{config:?}"), "files": file_hashes(&files)?, "max_bytes": section.max_bytes,
        "text_column": recipe.data.text_column, "fields": recipe.data.fields, "version": env!("CARGO_PKG_VERSION"),
    });
    let key = format!("{:016x}", twox_hash::XxHash3_64::oneshot(identity.to_string().as_bytes()));
    let dir = cache_dir.join("tokenizers").join(key);
    if dir.is_dir() {
        observer.on_message(&format!("tokenizer: {}", dir.display()));
        return Ok(Tokenizer::open(&dir)?);
    }
    observer.on_message("training the tokenizer");
    let limit = section.max_bytes.unwrap_or(DEFAULT_TOKENIZER_BYTES);
    let mut taken = 0;
    let mut unreadable = None;
    // A text that cannot be read ends them, and its own error is reported: it knows the file and a way out.
    let all: Box<dyn Iterator<Item = Result<String>>> = match records::texts(recipe)? {
        Some(texts) => Box::new(texts.into_iter().map(Ok)),
        None => Box::new(texts(&files, recipe)?),
    };
    let readable = all.map_while(|text| text.map_err(|error| unreadable = Some(error)).ok());
    let wanted = readable.take_while(|text| {
        let is_wanted = taken < limit;
        taken += text.len() as u64;
        is_wanted
    });
    let trained = loam_tokenizer::train(wanted.map(Ok::<_, Error>), &config, &mut |_: Progress| {});
    if let Some(error) = unreadable {
        return Err(error);
    }
    let tokenizer = trained?;
    loam_formats::atomic::replace_dir(&dir, |dir| -> Result<()> {
        Ok(save_directory(dir, &tokenizer, Default::default())?)
    })?;
    observer.on_message(&format!("tokenizer: {} tokens", tokenizer.vocab_size()));
    Ok(tokenizer)
}

fn train_config(recipe: &Recipe) -> TrainConfig {
    let section = &recipe.tokenizer;
    let kind = match section.kind.unwrap_or(TokenizerKind::ByteBpe) {
        TokenizerKind::ByteBpe => TrainKind::ByteBpe,
        TokenizerKind::Wordpiece => TrainKind::WordPiece,
        TokenizerKind::Unigram => TrainKind::Unigram,
        TokenizerKind::Char => TrainKind::Char,
    };
    let mut config = TrainConfig {
        vocab_size: section.vocab_size.unwrap_or(DEFAULT_VOCAB_SIZE),
        min_frequency: section.min_frequency.unwrap_or(DEFAULT_MIN_FREQUENCY),
        split_digits: section.split_digits.unwrap_or(false),
        // Whoever opens the model elsewhere encodes a source as we did.
        ends_texts: recipe.stage == Stage::Seq2seq,
        ..TrainConfig::new(kind)
    };
    let masks = config.special_tokens.iter().any(|token| token == "[MASK]");
    let needed: Vec<String> = match (recipe.stage, recipe.data.noise) {
        (Stage::MaskedLm, _) | (_, Noise::Infilling) if !masks => vec!["<mask>".into()],
        (_, Noise::Spans) => (0..SENTINELS).map(|i| format!("<extra_id_{i}>")).collect(),
        _ => Vec::new(),
    };
    for token in section.special_tokens.clone().unwrap_or(needed) {
        if !config.special_tokens.contains(&token) {
            config.special_tokens.push(token);
        }
    }
    config
}

/// Sentinels of a new tokenizer for span corruption, as many as T5's has.
const SENTINELS: usize = 100;

/// The files that glob patterns name, in alphabetical order.
pub(super) fn expand(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let sources = loam_data::source::find(patterns)?;
    Ok(sources.iter().map(|source| source.path().to_path_buf()).collect())
}
