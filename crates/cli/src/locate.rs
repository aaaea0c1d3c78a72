//! What a MODEL argument means: a directory, a GGUF file, a run, or a name in the local store.

use crate::failure::Failure;
use crate::setup::Environment;
use loam_formats::Gguf;
use loam_formats::hf_dir::{CONFIG, TOKENIZER};
use std::path::{Path, PathBuf};

/// Finds a model's Hugging Face directory or GGUF file: the path itself, the `model/` of a run directory, or a name below
/// `$LOAM_HOME/models` or `$LOAM_HOME`.
pub fn model_path(name: &str, environment: &Environment) -> Result<PathBuf, Failure> {
    let places = places(name, environment);
    if let Some(found) = places.iter().find_map(|place| holding(place, CONFIG)) {
        return Ok(found);
    }
    let path = Path::new(name);
    let hint = if path.is_dir() {
        "a model directory holds config.json, model.safetensors and tokenizer.json; a run directory gets its model/ when \
         training ends"
            .to_owned()
    } else if path.is_file() {
        "a model is a GGUF file, or a directory with config.json and model.safetensors; this is another file".to_owned()
    } else {
        format!("give a GGUF file, or the directory of a model or of a run; looked at {}", list(&places))
    };
    Err(Failure::with_hint(format!("there is no model `{name}`"), hint))
}

/// The directory of an adapter: the path itself, or the `adapter/` of a run.
pub fn adapter_dir(path: &Path) -> Result<PathBuf, Failure> {
    let places = [path.to_owned(), path.join("adapter")];
    places.into_iter().find(|place| loam_peft::is_adapter_dir(place)).ok_or_else(|| {
        Failure::with_hint(
            format!("there is no adapter in {}", path.display()),
            "an adapter's directory holds adapter_config.json; a run gets its adapter/ when training ends",
        )
    })
}

/// Finds a tokenizer: a `tokenizer.json`, or whatever [`model_path`] takes.
pub fn tokenizer_path(name: &str, environment: &Environment) -> Result<PathBuf, Failure> {
    if Path::new(name).is_file() {
        return Ok(PathBuf::from(name));
    }
    let places = places(name, environment);
    places.iter().find_map(|place| holding(place, TOKENIZER)).ok_or_else(|| {
        Failure::with_hint(
            format!("there is no tokenizer `{name}`"),
            format!("give a tokenizer.json or a model directory that holds one; looked at {}", list(&places)),
        )
    })
}

fn places(name: &str, environment: &Environment) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(name)];
    if let Some(home) = environment.home.as_ref().filter(|_| Path::new(name).is_relative()) {
        places.push(home.join("models").join(name));
        places.push(home.join(name));
    }
    places
}

/// The GGUF file, or else the directory itself or its `model/`, whichever holds `file`.
fn holding(place: &Path, file: &str) -> Option<PathBuf> {
    if Gguf::is_one(place) {
        return Some(place.to_owned());
    }
    let places = [place.to_owned(), place.join("model")];
    places.into_iter().find(|dir| dir.join(file).is_file()).or_else(|| only_gguf(place))
}

/// The one GGUF file of a directory, as a pulled model may have; of shards the first.
pub fn only_gguf(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_later_shard = |path: &Path| {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        stem.rsplit_once("-of-").is_some_and(|(rest, _)| !rest.ends_with("-00001") && rest.contains('-'))
    };
    let mut found: Vec<PathBuf> = paths.filter(|path| Gguf::is_one(path) && !is_later_shard(path)).collect();
    if found.len() == 1 { found.pop() } else { None }
}

fn list(places: &[PathBuf]) -> String {
    places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}
