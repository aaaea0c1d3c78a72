//! Whether an answer is what OpenAI's own document says. `openai_schema.json` is made by `scripts/openai_schema.py`.

use serde_json::{Map, Value};

/// Words of a schema that say nothing about a value.
const SILENT: [&str; 2] = ["$comment", "$defs"];

fn document() -> Value {
    serde_json::from_str(include_str!("../openai_schema.json")).unwrap()
}

/// What is wrong with a value, if anything is, and where.
pub fn problem(name: &str, value: &Value) -> Option<String> {
    let document = document();
    let schema = document["$defs"].get(name).unwrap_or_else(|| panic!("there is no schema {name}"));
    check(&document, schema, value, name).err()
}

/// Demands that a value is what the document calls `name`.
pub fn assert_is(name: &str, value: &Value) {
    if let Some(problem) = problem(name, value) {
        panic!("{problem}\n{value:#}");
    }
}

fn check(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let schema = match schema {
        Value::Object(schema) => schema,
        Value::Bool(true) => return Ok(()),
        other => return Err(format!("{place}: the schema {other} allows nothing")),
    };
    for (word, rule) in schema {
        word_of(document, schema, (word.as_str(), rule), value, place)?;
    }
    Ok(())
}

fn word_of(
    document: &Value,
    schema: &Map<String, Value>,
    (word, rule): (&str, &Value),
    value: &Value,
    place: &str,
) -> Result<(), String> {
    let list = || rule.as_array().unwrap().iter();
    let fits = |part: &&Value| check(document, part, value, place).is_ok();
    match word {
        "$ref" => {
            let to = document.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap();
            check(document, to, value, place)
        }
        "type" if !has_type(rule.as_str().unwrap(), value) => Err(format!("{place}: no {rule}: {value}")),
        "enum" if !list().any(|one| one == value) => Err(format!("{place}: {value} is none of {rule}")),
        "const" if rule != value => Err(format!("{place}: {value} is not {rule}")),
        "allOf" => list().try_for_each(|part| check(document, part, value, place)),
        "anyOf" if !list().any(|part| fits(&part)) => {
            let reasons: Vec<String> = list().filter_map(|part| check(document, part, value, place).err()).collect();
            Err(format!("{place}: none of these: {}", reasons.join("; ")))
        }
        "oneOf" if list().filter(fits).count() != 1 => {
            let reasons: Vec<String> = list().filter_map(|part| check(document, part, value, place).err()).collect();
            Err(format!("{place}: not one of these: {}", reasons.join("; ")))
        }
        "required" => match list().find(|name| value.is_object() && value.get(name.as_str().unwrap()).is_none()) {
            Some(name) => Err(format!("{place}: {name} is missing")),
            None => Ok(()),
        },
        "properties" => rule.as_object().unwrap().iter().try_for_each(|(name, part)| match value.get(name) {
            Some(value) => check(document, part, value, &format!("{place}.{name}")),
            None => Ok(()),
        }),
        "additionalProperties" => {
            let known = schema.get("properties").and_then(Value::as_object);
            let mut others = value.as_object().into_iter().flatten();
            others
                .by_ref()
                .filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)))
                .try_for_each(|(name, value)| check(document, rule, value, &format!("{place}.{name}")))
        }
        "items" => value
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .try_for_each(|(at, value)| check(document, rule, value, &format!("{place}[{at}]"))),
        "minimum" if value.as_f64().is_some_and(|x| x < rule.as_f64().unwrap()) => {
            Err(format!("{place}: {value} is below {rule}"))
        }
        "maximum" if value.as_f64().is_some_and(|x| x > rule.as_f64().unwrap()) => {
            Err(format!("{place}: {value} is above {rule}"))
        }
        "type" | "enum" | "const" | "anyOf" | "oneOf" | "minimum" | "maximum" => Ok(()),
        word if SILENT.contains(&word) => Ok(()),
        // Whatever is not understood is not taken for fulfilled.
        other => Err(format!("{place}: the word {other} of the schema is not understood")),
    }
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("the type {other} is not known"),
    }
}
