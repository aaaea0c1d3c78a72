//! From a request's fields to the settings of the sampler, and to what the text must obey.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use loam_chat::{SamplerPreset, Sampling};
use loam_infer::Grammar;
use serde::Deserialize;
use serde_json::Value;

use crate::body::Fields;
use crate::error::ApiError;

/// Most texts that may end an answer.
const MOST_STOPS: usize = 16;

/// A text, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Sets what a field says.
fn set<T: for<'de> Deserialize<'de>>(fields: &mut Fields, names: &[&str], slot: &mut T) -> Result<(), ApiError> {
    for name in names {
        if let Some(value) = fields.take(name)? {
            *slot = value;
        }
    }
    Ok(())
}

/// The settings of a request over those that the model recommends. Without `max_tokens`, `most` is the limit; without a
/// seed the answer is another one every time.
pub(crate) fn sampling(fields: &mut Fields, recommended: Option<&Sampling>, most: usize) -> Result<Sampling, ApiError> {
    // Who chooses the steps does without a recommendation, which is for other steps.
    let has_own_steps = fields.has("samplers") || fields.has("mirostat");
    let base = recommended.filter(|_| !has_own_steps).cloned().unwrap_or_default();
    let mut s = Sampling { preset: SamplerPreset::OpenAi, max_tokens: most, ..base };
    let mut top_k = s.top_k as i64;
    set(fields, &["temperature"], &mut s.temperature)?;
    set(fields, &["top_p"], &mut s.top_p)?;
    set(fields, &["top_k"], &mut top_k)?;
    s.top_k = top_k.max(0) as usize;
    set(fields, &["min_p"], &mut s.min_p)?;
    set(fields, &["typical_p"], &mut s.typical_p)?;
    set(fields, &["top_n_sigma"], &mut s.top_n_sigma)?;
    set(fields, &["xtc_probability"], &mut s.xtc_probability)?;
    set(fields, &["xtc_threshold"], &mut s.xtc_threshold)?;
    set(fields, &["dry_multiplier"], &mut s.dry_multiplier)?;
    set(fields, &["dry_base"], &mut s.dry_base)?;
    set(fields, &["dry_allowed_length"], &mut s.dry_allowed_length)?;
    set(fields, &["dry_penalty_last_n"], &mut s.dry_penalty_last_n)?;
    set(fields, &["dry_sequence_breakers"], &mut s.dry_sequence_breakers)?;
    set(fields, &["dynatemp_range"], &mut s.dynatemp_range)?;
    set(fields, &["dynatemp_exponent"], &mut s.dynatemp_exponent)?;
    set(fields, &["mirostat"], &mut s.mirostat)?;
    set(fields, &["mirostat_tau"], &mut s.mirostat_tau)?;
    set(fields, &["mirostat_eta"], &mut s.mirostat_eta)?;
    set(fields, &["repetition_penalty", "repeat_penalty"], &mut s.repetition_penalty)?;
    set(fields, &["frequency_penalty"], &mut s.frequency_penalty)?;
    set(fields, &["presence_penalty"], &mut s.presence_penalty)?;
    s.penalty_last_n = fields.take("repeat_last_n")?.or(fields.take("penalty_last_n")?);
    s.samplers = fields.take("samplers")?;
    set(fields, &["sampler_preset"], &mut s.preset)?;
    set(fields, &["min_tokens"], &mut s.min_tokens)?;
    set(fields, &["max_tokens", "max_completion_tokens"], &mut s.max_tokens)?;
    if let Some(stop) = fields.take::<OneOrMany<String>>("stop")? {
        s.stop = stop.into_vec();
        if s.stop.len() > MOST_STOPS {
            return Err(ApiError::bad("stop", format!("at most {MOST_STOPS} texts may end an answer")));
        }
    }
    if let Some(bias) = fields.take::<BTreeMap<String, f32>>("logit_bias")? {
        for (id, bias) in bias {
            let id = id.parse().map_err(|_| ApiError::bad("logit_bias", format!("`{id}` is no id of a token")))?;
            s.logit_bias.insert(id, bias);
        }
    }
    s.seed = match fields.take::<i64>("seed")? {
        Some(seed) => seed as u64,
        None => random_seed(),
    };
    Ok(s)
}

/// Another number every time: the standard library keys its hash maps so.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().hash_one(std::time::SystemTime::now())
}

/// What the text must obey, and the field that says so.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub grammar: Grammar,
    pub param: String,
}

#[derive(Deserialize)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<JsonSchema>,
    /// Where some clients put the schema.
    schema: Option<Value>,
}

#[derive(Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

/// OpenAI's `response_format`, and the fields of llama.cpp and vLLM.
pub(crate) fn wanted(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let mut found = Vec::new();
    let mut add = |param: &str, grammar: Grammar| found.push(Wanted { grammar, param: param.into() });
    if let Some(format) = fields.take::<ResponseFormat>("response_format")? {
        match (format.r#type.as_str(), format.json_schema) {
            ("text", _) => {}
            ("json_object", _) => match format.schema {
                Some(schema) => add("response_format.schema", Grammar::JsonSchema(schema)),
                None => add("response_format", Grammar::JsonObject),
            },
            ("json_schema", inner) => match inner.and_then(|inner| inner.schema).or(format.schema) {
                Some(schema) => add("response_format.json_schema.schema", Grammar::JsonSchema(schema)),
                None => {
                    let param = "response_format.json_schema.schema";
                    return Err(ApiError::bad(param, format!("`{param}` is missing")));
                }
            },
            (other, _) => {
                let message = format!("`{other}` is no response format: text, json_object and json_schema are");
                return Err(ApiError::bad("response_format.type", message));
            }
        }
    }
    let mut own = |fields: &mut Fields, prefix: &str, names: [&str; 5]| -> Result<(), ApiError> {
        let place = |name: &str| format!("{prefix}{name}");
        if let Some(schema) = fields.take::<Value>(names[0])? {
            // Some clients send the schema as text.
            let schema = match schema {
                Value::String(text) => serde_json::from_str(&text)
                    .map_err(|error| ApiError::bad(place(names[0]), format!("the schema is not JSON: {error}")))?,
                schema => schema,
            };
            add(&place(names[0]), Grammar::JsonSchema(schema));
        }
        if let Some(regex) = fields.take(names[1])? {
            add(&place(names[1]), Grammar::Regex(regex));
        }
        if let Some(choices) = fields.take::<Vec<String>>(names[2])? {
            let choices: Vec<String> = choices.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            add(&place(names[2]), Grammar::Lark(format!("start: {}", choices.join(" | "))));
        }
        if let Some(gbnf) = fields.take(names[3])? {
            add(&place(names[3]), Grammar::Gbnf(gbnf));
        }
        if let Some(lark) = fields.take(names[4])? {
            add(&place(names[4]), Grammar::Lark(lark));
        }
        Ok(())
    };
    own(fields, "", ["guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_lark"])?;
    own(fields, "", ["json_schema", "regex", "choice", "grammar", "lark"])?;
    let mut inner = fields.inner("structured_outputs")?;
    own(&mut inner, "structured_outputs.", ["json", "regex", "choice", "grammar", "lark"])?;
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(ApiError::bad(found[1].param.as_str(), format!("`{}` beside `{}`", found[1].param, found[0].param))),
    }
}
