//! A model directory or file opened for talking: weights, tokenizer, chat template, sampling defaults.

use std::path::Path;
use std::sync::Arc;

use loam_chat::Sampling;
use loam_formats::{Gguf, HfDir};
use loam_models::{LanguageModel, gguf_generation_config};
use loam_tokenizer::{ChatTemplate, Tokenizer};
use serde_json::Value;

use crate::{Error, Generator};

/// Everything that a Hugging Face directory or a GGUF file holds for writing text.
#[derive(Debug)]
pub struct OpenModel {
    /// The weights.
    pub model: Arc<LanguageModel>,
    /// The tokenizer; its end tokens include those of `generation_config.json`.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, if the directory has one.
    pub template: Option<ChatTemplate>,
    /// The settings that `generation_config.json` recommends, if it does.
    pub recommended: Option<Sampling>,
}

impl OpenModel {
    /// Opens a directory with `config.json`, weights and `tokenizer.json`, or a GGUF file, to run it: see
    /// [`LanguageModel::open_to_run`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        if Gguf::is_one(path) {
            let gguf = Gguf::open(path)?;
            let tokenizer = Tokenizer::from_gguf(&gguf)?;
            let model = LanguageModel::from_gguf(&gguf)?;
            return Self::new(model, tokenizer, Tokenizer::gguf_chat_template(&gguf)?, gguf_generation_config(&gguf)?);
        }
        let dir = HfDir::open(path)?;
        let tokenizer = Tokenizer::open(dir.path())?;
        let model = LanguageModel::open_to_run(dir.path())?;
        Self::new(model, tokenizer, dir.chat_template()?, dir.generation_config()?)
    }

    fn new(
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: Option<String>,
        generation_config: Option<Value>,
    ) -> Result<Self, Error> {
        let vocab_size = model.spec().vocab_size;
        if tokenizer.vocab_size() > vocab_size {
            return Err(Error::VocabularyMismatch { token: tokenizer.vocab_size() as u32 - 1, vocab_size });
        }
        let special = tokenizer.special();
        let compile = |source| ChatTemplate::new(source, special.bos.as_deref(), special.eos.as_deref());
        let template = template.map(compile).transpose()?;
        let recommended = generation_config.as_ref().and_then(recommended);
        Ok(Self { model: Arc::new(model), tokenizer: Arc::new(tokenizer), template, recommended })
    }

    /// A generator over it.
    pub fn generator(&self) -> Generator<'_> {
        let generator = Generator::new(&self.model, &self.tokenizer);
        match &self.template {
            Some(template) => generator.with_template(template),
            None => generator,
        }
    }
}

/// Reads what transformers would sample with. Values without meaning are left out, all of them: they are only a
/// recommendation.
fn recommended(config: &Value) -> Option<Sampling> {
    let plain = Sampling::default();
    let number = |key: &str| config[key].as_f64().map(|x| x as f32);
    let some = Sampling {
        temperature: number("temperature").unwrap_or(plain.temperature),
        top_k: config["top_k"].as_u64().map_or(plain.top_k, |k| k as usize),
        top_p: number("top_p").unwrap_or(plain.top_p),
        min_p: number("min_p").unwrap_or(plain.min_p),
        repetition_penalty: number("repetition_penalty").unwrap_or(plain.repetition_penalty),
        ..plain.clone()
    };
    Some(some).filter(|some| *some != plain && some.validate().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn recommended_settings_are_read_and_senseless_ones_ignored() {
        let read = recommended(&json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95})).unwrap();
        assert_eq!((read.temperature, read.top_k, read.top_p), (0.6, 20, 0.95));
        assert_eq!(recommended(&json!({"temperature": -3.0})), None);
        assert_eq!(recommended(&json!({"eos_token_id": 3})), None);
    }
}
