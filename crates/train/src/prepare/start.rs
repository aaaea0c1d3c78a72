//! Tokenizer and model: opened, or made.

use std::path::{Path, PathBuf};

use loam_formats::HfDir;
use loam_models::LanguageModel;
use loam_tokenizer::{ChatTemplate, Progress, Tokenizer, TrainConfig, TrainKind, save_directory};
use serde_json::{Value, json};

use super::text::texts;
use crate::error::{Error, Result};
use crate::recipe::{
    DEFAULT_MIN_FREQUENCY, DEFAULT_TOKENIZER_BYTES, DEFAULT_VOCAB_SIZE, Recipe, TokenizerKind, TokenizerSection,
};
use crate::run::file_hashes;
use crate::trainer::Observer;

/// A model about to be trained, and its tokenizer.
pub(crate) struct Start {
    pub(crate) model: LanguageModel,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// What `environment.json` says about the model that was opened; null for a new one.
    pub(crate) base: Value,
}

impl Start {
    /// Opens or makes what the recipe says.
    pub(crate) fn of(recipe: &Recipe, cache_dir: &Path, observer: &mut dyn Observer) -> Result<Self> {
        match &recipe.model.path {
            Some(path) => Self::open(Path::new(path)),
            None => Self::new(recipe, cache_dir, observer),
        }
    }

    fn open(path: &Path) -> Result<Self> {
        let dir = HfDir::open(path)?;
        let model = LanguageModel::open(path)?;
        let tokenizer = Tokenizer::open(path)?;
        let special = tokenizer.special();
        let template = match dir.chat_template()? {
            Some(source) => Some(ChatTemplate::new(source, special.bos.as_deref(), special.eos.as_deref())?),
            None => chatml_if_known(&tokenizer),
        };
        check_vocabulary(&tokenizer, model.spec().vocab_size)?;
        let base = json!({"path": path.display().to_string(), "files": file_hashes(&weight_files(path)?)?});
        Ok(Self { model, tokenizer, template, base })
    }

    fn new(recipe: &Recipe, cache_dir: &Path, observer: &mut dyn Observer) -> Result<Self> {
        let tokenizer = match &recipe.tokenizer.path {
            Some(path) => Tokenizer::open(path)?,
            None => trained(recipe, cache_dir, observer)?,
        };
        let mut config = recipe.new_config(tokenizer.vocab_size());
        let ids = [("bos_token_id", tokenizer.bos_id()), ("eos_token_id", tokenizer.eos_id())];
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
        Ok(Self { model, tokenizer, template, base: Value::Null })
    }
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

fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
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
    let config = train_config(section);
    let files = expand(&recipe.data.train)?;
    let identity = json!({
        "config": format!("{config:?}"), "files": file_hashes(&files)?, "max_bytes": section.max_bytes,
        "text_column": recipe.data.text_column, "version": env!("CARGO_PKG_VERSION"),
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
    let readable = texts(&files, recipe)?.map_while(|text| text.map_err(|error| unreadable = Some(error)).ok());
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

fn train_config(section: &TokenizerSection) -> TrainConfig {
    let kind = match section.kind.unwrap_or(TokenizerKind::ByteBpe) {
        TokenizerKind::ByteBpe => TrainKind::ByteBpe,
        TokenizerKind::Wordpiece => TrainKind::WordPiece,
        TokenizerKind::Unigram => TrainKind::Unigram,
        TokenizerKind::Char => TrainKind::Char,
    };
    TrainConfig {
        vocab_size: section.vocab_size.unwrap_or(DEFAULT_VOCAB_SIZE),
        min_frequency: section.min_frequency.unwrap_or(DEFAULT_MIN_FREQUENCY),
        split_digits: section.split_digits.unwrap_or(false),
        ..TrainConfig::new(kind)
    }
}

/// The files that glob patterns name, in alphabetical order.
pub(super) fn expand(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let sources = loam_data::source::find(patterns)?;
    Ok(sources.iter().map(|source| source.path().to_path_buf()).collect())
}
