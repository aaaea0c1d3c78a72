//! A tokenizer inside of a model directory, in the layout of `transformers`.

use crate::{ChatTemplate, Result, SpecialTokens, Tokenizer};
use loam_formats::HfWriter;
use loam_formats::hf_dir::{CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a saved tokenizer says beside its vocabulary.
#[derive(Debug, Clone, Copy, Default)]
pub struct DirectoryOptions<'a> {
    /// The chat template to save with it.
    pub template: Option<&'a ChatTemplate>,
    /// The longest input that the model takes, in tokens.
    pub model_max_length: Option<usize>,
}

/// Opens the tokenizer of a model directory, with the roles that the directory's other files state.
pub(crate) fn open(dir: &Path) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_file(dir.join(TOKENIZER))?;
    let mut special = tokenizer.special().clone();
    for file in ["special_tokens_map.json", TOKENIZER_CONFIG] {
        let Some(config) = object(dir, file)? else { continue };
        let roles = [
            ("bos_token", &mut special.bos),
            ("eos_token", &mut special.eos),
            ("pad_token", &mut special.pad),
            ("unk_token", &mut special.unk),
        ];
        for (key, role) in roles {
            match config.get(key) {
                // A role may be taken away, too: `"bos_token": null`.
                Some(Value::Null) => *role = None,
                Some(value) => *role = content(value).filter(|t| tokenizer.token_to_id(t).is_some()),
                None => {}
            }
        }
    }
    for file in [GENERATION_CONFIG, CONFIG] {
        let ids = object(dir, file)?.map(|config| ids(&config["eos_token_id"])).unwrap_or_default();
        if !ids.is_empty() {
            special.also_stop = ids;
            break;
        }
    }
    tokenizer.with_special(special)
}

/// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and, with a template,
/// `chat_template.jinja`, such that `transformers.AutoTokenizer` opens the directory.
pub fn save_directory(dir: impl AsRef<Path>, tokenizer: &Tokenizer, options: DirectoryOptions<'_>) -> Result<()> {
    let writer = HfWriter::create(dir.as_ref())?;
    tokenizer.save(writer.path().join(TOKENIZER))?;
    let mut map = Map::new();
    let SpecialTokens { bos, eos, pad, unk, .. } = tokenizer.special();
    for (key, token) in [("bos_token", bos), ("eos_token", eos), ("pad_token", pad), ("unk_token", unk)] {
        if let Some(token) = token {
            map.insert(key.into(), token.as_str().into());
        }
    }
    writer.json("special_tokens_map.json", &Value::Object(map.clone()))?;
    let mut config = Map::new();
    config.insert("added_tokens_decoder".into(), added_tokens(tokenizer));
    config.append(&mut map);
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    if let Some(length) = options.model_max_length {
        config.insert("model_max_length".into(), json!(length));
    }
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    if let Some(template) = options.template {
        config.insert("chat_template".into(), json!(template.source()));
        writer.text(CHAT_TEMPLATE, template.source())?;
    }
    writer.json(TOKENIZER_CONFIG, &Value::Object(config))?;
    Ok(())
}

fn added_tokens(tokenizer: &Tokenizer) -> Value {
    let decoder = tokenizer.inner.get_added_vocabulary().get_added_tokens_decoder();
    let mut tokens: Vec<_> = decoder.iter().collect();
    tokens.sort_by_key(|(id, _)| **id);
    let entry = |(id, t): (&u32, &tokenizers::AddedToken)| {
        let fields = json!({
            "content": t.content, "lstrip": t.lstrip, "normalized": t.normalized, "rstrip": t.rstrip,
            "single_word": t.single_word, "special": t.special
        });
        (id.to_string(), fields)
    };
    tokens.into_iter().map(entry).collect::<Map<_, _>>().into()
}

/// A JSON object in a file of the directory, if the file exists.
fn object(dir: &Path, name: &str) -> Result<Option<Value>> {
    let path = dir.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let json = |reason: String| loam_formats::Error::Json { path: path.clone(), reason };
    let text = loam_formats::Mapped::open(&path)?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| json(e.to_string()))?;
    if value.is_object() { Ok(Some(value)) } else { Err(json("expected an object { … } at the top".into()).into()) }
}

/// A token given as text or as an object with its text.
fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// One id or a list of ids.
fn ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}
