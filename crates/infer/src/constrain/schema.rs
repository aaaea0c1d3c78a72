//! Schemas: how JSON is laid out, and where in a schema an error lies.

use serde_json::{Map, Value, json};

use super::Constraint;
use crate::Error;

/// White space between tokens of JSON, of limited length: a model cannot go on with nothing but spaces.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";
/// The library's settings, inside of the schema.
const SETTINGS: &str = "x-guidance";
/// Annotations that the library takes for restrictions.
const ANNOTATIONS: [&str; 1] = ["deprecated"];
/// Schemas below these keywords stand alone, or each under a name, or each in a list.
const ONE: [&str; 3] = ["items", "additionalProperties", "additionalItems"];
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
const LISTED: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
/// How many parts of a refused schema are tried by themselves to find the one at fault.
const MOST_TRIES: usize = 200;

/// Numbers beyond these bounds are not written exactly by everyone, and the library, which counts in 64 bits, would turn
/// the least of them around without end.
const MOST_NUMBER: f64 = 9_007_199_254_740_992.0;

/// Builds a constraint from a schema with the library's settings in it.
type Build<'a> = dyn Fn(Value) -> Result<Constraint, Error> + 'a;

/// Compiles a schema; an error names the place of the innermost part that is at fault.
pub(super) fn compile(schema: &Value, build: &Build<'_>) -> Result<Constraint, Error> {
    let refuse = |path: &str, reason: &str| Error::Schema { path: path.into(), reason: reason.into() };
    match schema {
        Value::Object(map) if map.contains_key(SETTINGS) => {
            return Err(refuse("", &format!("the keyword {SETTINGS:?} is not supported")));
        }
        Value::Object(_) | Value::Bool(_) => {}
        _ => return Err(refuse("", "a schema is an object, true or false")),
    }
    if let Some(path) = vast_number(schema) {
        return Err(refuse(&path, "numbers beyond 2^53 are not supported"));
    }
    let error = match attempt(schema, schema, build) {
        Ok(constraint) => return Ok(constraint),
        Err(error) => error,
    };
    let mut found = Fault { path: String::new(), reason: reason(&error) };
    let mut tries = MOST_TRIES;
    locate(schema, schema, &mut found, &mut tries, build);
    Err(refuse(&found.path, &found.reason))
}

/// The place of a number that is too large to count with, if there is one.
fn vast_number(schema: &Value) -> Option<String> {
    let below = |name: String, part: &Value| vast_number(part).map(|path| format!("/{name}{path}"));
    match schema {
        Value::Number(number) => number.as_f64().is_none_or(|x| x.abs() > MOST_NUMBER).then(String::new),
        Value::Array(list) => list.iter().enumerate().find_map(|(at, part)| below(at.to_string(), part)),
        Value::Object(map) => map.iter().find_map(|(key, part)| below(escape(key), part)),
        _ => None,
    }
}

struct Fault {
    path: String,
    reason: String,
}

fn reason(error: &Error) -> String {
    match error {
        Error::Grammar { reason } => reason.clone(),
        other => other.to_string(),
    }
}

/// A schema as the library is given it.
pub(super) fn prepared(schema: &Value) -> Value {
    with_settings(schema, schema)
}

/// Builds a part of a schema together with the definitions of the whole.
fn attempt(root: &Value, part: &Value, build: &Build<'_>) -> Result<Constraint, Error> {
    build(with_settings(root, part))
}

fn with_settings(root: &Value, part: &Value) -> Value {
    let mut map = match part {
        Value::Object(map) => map.clone(),
        Value::Bool(false) => Map::from_iter([("not".to_owned(), json!({}))]),
        _ => Map::new(),
    };
    for key in ["$defs", "definitions", "$schema"] {
        if let Some(definitions) = root.get(key) {
            map.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    let mut schema = Value::Object(map);
    drop_annotations(&mut schema);
    schema[SETTINGS] = json!({"whitespace_pattern": WHITE_SPACE});
    schema
}

/// Goes into the first part that is refused by itself, as long as there is one.
fn locate(root: &Value, schema: &Value, found: &mut Fault, tries: &mut usize, build: &Build<'_>) {
    for (path, part) in parts(schema) {
        if *tries == 0 {
            return;
        }
        *tries -= 1;
        if let Err(error) = attempt(root, part, build) {
            // A part may be refused only for what it refers to: that is no nearer to the fault.
            found.path.push_str(&path);
            found.reason = reason(&error);
            return locate(root, part, found, tries, build);
        }
    }
}

/// The schemas right below a schema and their places, as JSON pointers.
fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    for key in ONE {
        all.extend(schema.get(key).filter(|part| part.is_object()).map(|part| (format!("/{key}"), part)));
    }
    for key in NAMED {
        let map = schema.get(key).and_then(Value::as_object).into_iter().flatten();
        all.extend(map.map(|(name, part)| (format!("/{key}/{}", escape(name)), part)));
    }
    for key in LISTED.into_iter().chain(["items"]) {
        let list = schema.get(key).and_then(Value::as_array).into_iter().flatten();
        all.extend(list.enumerate().map(|(at, part)| (format!("/{key}/{at}"), part)));
    }
    all
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn drop_annotations(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    map.retain(|key, _| !ANNOTATIONS.contains(&key.as_str()));
    for (key, value) in map.iter_mut() {
        let key = key.as_str();
        if ONE.contains(&key) && value.is_object() {
            drop_annotations(value);
        } else if NAMED.contains(&key) {
            value.as_object_mut().into_iter().flatten().for_each(|(_, part)| drop_annotations(part));
        } else if LISTED.contains(&key) || key == "items" {
            value.as_array_mut().into_iter().flatten().for_each(drop_annotations);
        }
    }
}
