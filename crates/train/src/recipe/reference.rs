//! The JSON schema of a recipe and its reference page, both from the types.

use serde_json::Value;

use super::{Recipe, Stage};

/// The JSON schema of a recipe.
pub fn schema() -> Value {
    schemars::schema_for!(Recipe).to_value()
}

/// Dotted names of every key of the schema, sections included.
pub(crate) fn schema_keys() -> Vec<String> {
    let schema = schema();
    let mut keys = Vec::new();
    walk(&schema, &schema, "", &mut |name, _, _| keys.push(name.to_string()));
    keys
}

/// Calls `visit(dotted name, property, definition it refers to)` for every property, in the order of the types.
fn walk(root: &Value, object: &Value, prefix: &str, visit: &mut dyn FnMut(&str, &Value, Option<&Value>)) {
    for (key, property) in object["properties"].as_object().into_iter().flatten() {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let definition = definition(root, property);
        visit(&name, property, definition);
        if let Some(inner) = definition {
            walk(root, inner, &name, visit);
        }
    }
}

/// The named type that a property refers to, directly or as an option.
fn definition<'a>(root: &'a Value, property: &Value) -> Option<&'a Value> {
    let options = property["anyOf"].as_array().into_iter().flatten();
    let mut candidates = std::iter::once(property).chain(options);
    let reference = candidates.find_map(|value| value["$ref"].as_str())?;
    root.pointer(reference.strip_prefix('#')?)
}

/// The reference page, in Markdown.
pub fn reference_page() -> String {
    let root = schema();
    let mut page = String::from(
        "# Recipe reference\n\nGenerated from the types of `loam-train` by `cargo run -p loam-train --example reference`; \
         do not edit.\n\nA recipe is a TOML file: `loam train RECIPE.toml`. Any key can be changed on the command line \
         with `--set section.key=value`. A key that is not listed here is an error.\n\n",
    );
    let mut sections = Vec::new();
    let mut rows = String::new();
    for (key, property) in root["properties"].as_object().into_iter().flatten() {
        match definition(&root, property) {
            Some(section) if section["properties"].is_object() => sections.push((key.clone(), property, section)),
            other => rows.push_str(&row(key, property, other, &root)),
        }
    }
    page.push_str(&table(&rows));
    for (key, property, section) in sections {
        page.push_str(&format!("\n## [{key}]\n\n{}\n\n", text(property, "description")));
        let mut rows = String::new();
        walk(&root, section, "", &mut |name, property, definition| {
            rows.push_str(&row(name, property, definition, section));
        });
        page.push_str(&table(&rows));
    }
    page.push_str("\n## The depth dial\n\n");
    let rule = include_str!("depth.rs").lines().filter_map(|line| line.strip_prefix("//!"));
    page.extend(rule.map(|line| format!("{}\n", line.trim())));
    page
}

/// The default recipe of a stage as TOML, every key with its meaning; keys whose default follows from others are
/// commented out.
pub fn annotated(stage: Stage) -> String {
    let root = schema();
    let values = Recipe::default_of(stage).to_table();
    let (mut head, mut body) = (String::new(), String::new());
    for (key, property) in root["properties"].as_object().into_iter().flatten() {
        match definition(&root, property) {
            Some(section) if section["properties"].is_object() => {
                let inside = values.get(key).and_then(toml::Value::as_table);
                // A section that may be left out, and is.
                let mark = if inside.is_none() && !property["anyOf"].is_null() { "# " } else { "" };
                body.push_str(&format!("\n# {}\n{mark}[{key}]\n", text(property, "description")));
                for (name, inner) in section["properties"].as_object().into_iter().flatten() {
                    body.push_str(&annotated_key(name, inner, inside.and_then(|table| table.get(name))));
                }
            }
            _ => head.push_str(&annotated_key(key, property, values.get(key))),
        }
    }
    head + &body
}

fn annotated_key(name: &str, property: &Value, value: Option<&toml::Value>) -> String {
    let comment = format!("# {}\n", text(property, "description"));
    match value {
        Some(value) => format!("{comment}{name} = {value}\n"),
        None => format!("{comment}# {name} =\n"),
    }
}

fn table(rows: &str) -> String {
    format!("| key | type | default | meaning |\n|---|---|---|---|\n{rows}")
}

/// A property's description, on one line.
fn text(property: &Value, key: &str) -> String {
    property[key].as_str().unwrap_or("").replace('\n', " ")
}

fn row(name: &str, property: &Value, definition: Option<&Value>, owner: &Value) -> String {
    let (mut meaning, stated) = match text(property, "description").split_once(" Default: ") {
        Some((meaning, default)) => (meaning.to_string(), Some(default.to_string())),
        None => (text(property, "description"), None),
    };
    let choices = definition.map(choices).unwrap_or_default();
    if !choices.is_empty() {
        meaning = format!("{meaning} {choices}");
    }
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let required = owner["required"].as_array().is_some_and(|keys| keys.iter().any(|key| key == leaf));
    let default = match (stated, &property["default"]) {
        (Some(text), _) => text.trim_end_matches('.').to_string(),
        (None, Value::Null) if required => "required".into(),
        (None, Value::Null) => String::new(),
        (None, value) => format!("`{value}`"),
    };
    format!("| `{name}` | {} | {} | {} |\n", kind(property, definition), cell(&default), cell(&meaning))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The values of an enumeration with their meanings.
fn choices(definition: &Value) -> String {
    let each = definition["oneOf"].as_array().into_iter().flatten();
    let list: Vec<String> = each
        .filter_map(|choice| {
            let meaning = text(choice, "description");
            Some(format!("`{}`: {}", choice["const"].as_str()?, meaning.trim_end_matches('.')))
        })
        .collect();
    list.join("; ")
}

/// A reader's name of a property's type.
fn kind(property: &Value, definition: Option<&Value>) -> String {
    let named = match &property["type"] {
        Value::String(name) => name.as_str(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or(""),
        _ if definition.is_some_and(|d| d["oneOf"].is_array()) => "choice",
        _ => "section",
    };
    let plain = match named {
        "integer" => "whole number",
        "string" => "text",
        "array" => "list of texts",
        other => other,
    };
    plain.to_string()
}
