//! Recommended settings of sampling: `generation_config.json` to `general.sampling.*`, and back.

use loam_formats::{Gguf, GgufValue};
use serde_json::{Map, Value, json};

use crate::error::Error;

/// The key of `generation_config.json`, that of GGUF, and whether it is a whole number.
const SETTINGS: [(&str, &str, bool); 5] = [
    ("temperature", "temp", false),
    ("top_k", "top_k", true),
    ("top_p", "top_p", false),
    ("min_p", "min_p", false),
    ("repetition_penalty", "penalty_repeat", false),
];

/// The keys that say what a `generation_config.json` recommends.
pub fn sampling_keys(config: &Value) -> Vec<(String, GgufValue)> {
    let value = |&(own, name, is_whole): &(&str, &str, bool)| {
        let value = match is_whole {
            true => GgufValue::I32(i32::try_from(config[own].as_i64()?).ok()?),
            false => GgufValue::F32(config[own].as_f64()? as f32),
        };
        Some((format!("general.sampling.{name}"), value))
    };
    SETTINGS.iter().filter_map(value).collect()
}

/// The `generation_config.json` of what a file recommends; `None` where it recommends nothing.
pub fn generation_config(gguf: &Gguf) -> Result<Option<Value>, Error> {
    let mut config = Map::new();
    for (own, name, is_whole) in SETTINGS {
        let key = format!("general.sampling.{name}");
        let value = match is_whole {
            true => gguf.size(&key)?.map(|x| json!(x)),
            false => gguf.number(&key)?.map(|x| json!(x)),
        };
        config.extend(value.map(|value| (own.to_owned(), value)));
    }
    if config.is_empty() {
        return Ok(None);
    }
    config.insert("do_sample".into(), json!(true));
    Ok(Some(config.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back() {
        let config =
            json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1});
        let gguf = Gguf::from_metadata(sampling_keys(&config));
        assert_eq!(generation_config(&gguf).unwrap(), Some(config));
        assert_eq!(generation_config(&Gguf::from_metadata(sampling_keys(&json!({"eos_token_id": 2})))).unwrap(), None);
    }
}
