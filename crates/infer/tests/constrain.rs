//! Whatever a model wants to say, under a JSON schema it says what the schema allows.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use loam_chat::{FinishReason, Sampling};
use loam_infer::{ConstraintCompiler, Error, Generator, Grammar};
use loam_models::LanguageModel;
use loam_testkit::Random;
use loam_tokenizer::{Tokenizer, TrainConfig, TrainKind, train};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

const TEXT: &str =
    "the fox and the goose ate a pear. 狐狸和鹅吃了一个梨。é {\"name\": 1.5, \"on\": true, \"list\": [null, false]}";
const CONTEXT: usize = 8192;

fn tokenizer() -> Tokenizer {
    let config = TrainConfig { vocab_size: 320, ..TrainConfig::new(TrainKind::ByteBpe) };
    train([Ok::<_, std::io::Error>(TEXT.to_owned())], &config, &mut |_| {}).unwrap()
}

fn model(tokenizer: &Tokenizer) -> LanguageModel {
    let config = json!({
        "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT, "initializer_range": 0.6,
    });
    LanguageModel::new(&config, 11).unwrap()
}

/// A schema of limited size, so that a model without sense comes to an end.
fn schema(random: &mut Random, depth: usize) -> Value {
    let kinds = if depth == 0 { 8 } else { 12 };
    match random.range(0, kinds) {
        0 => json!({"type": "string", "maxLength": random.range(1, 12)}),
        1 => json!({"type": "string", "minLength": 2, "maxLength": random.range(2, 9)}),
        2 => {
            json!({"type": "string", "pattern": *random.pick(&["^[a-f]{2,5}$", "^(fox|goose)-[0-9]{1,3}$", "^x+y?$"])})
        }
        3 => {
            let low = random.range(0, 200) as i64 - 100;
            json!({"type": "integer", "minimum": low, "maximum": low + random.range(0, 500) as i64})
        }
        4 => json!({"type": "number", "minimum": -2.5, "maximum": random.range(0, 9)}),
        5 => {
            let all = [json!("fox"), json!(7), json!(true), json!(null), json!("狐狸")];
            json!({"enum": all[..random.range(1, 6)]})
        }
        6 => json!({"const": *random.pick(&["pear", "a \"b\" \\ c", ""])}),
        7 => json!({"type": *random.pick(&["boolean", "null"])}),
        8 => {
            let (least, more) = (random.range(0, 3), random.range(0, 3));
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": least, "maxItems": least + more})
        }
        9 => json!({"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]}),
        _ => object(random, depth - 1),
    }
}

fn object(random: &mut Random, depth: usize) -> Value {
    let names = ["name", "on", "list", "größe", "a b", "x1"];
    let mut properties = Map::new();
    for name in &names[..random.range(1, names.len())] {
        properties.insert((*name).to_owned(), schema(random, depth));
    }
    let required: Vec<&String> = properties.keys().filter(|_| random.range(0, 3) > 0).collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

/// Whether a value is one of a schema, by the rules of the words that [`schema`] uses.
fn is_valid(schema: &Value, value: &Value) -> bool {
    let number = |key: &str| schema[key].as_f64();
    let count = |key: &str| schema[key].as_u64().map(|n| n as usize);
    if let Some(constant) = schema.get("const") {
        return constant == value;
    }
    if let Some(list) = schema["enum"].as_array() {
        return list.contains(value);
    }
    if let Some(list) = schema["anyOf"].as_array() {
        return list.iter().any(|schema| is_valid(schema, value));
    }
    let within = |length: usize, least: &str, most: &str| {
        count(least).is_none_or(|n| length >= n) && count(most).is_none_or(|n| length <= n)
    };
    match (schema["type"].as_str().unwrap(), value) {
        ("null", Value::Null) | ("boolean", Value::Bool(_)) => true,
        ("string", Value::String(text)) => {
            within(text.chars().count(), "minLength", "maxLength")
                && schema["pattern"].as_str().is_none_or(|pattern| matches(pattern, text))
        }
        ("integer" | "number", Value::Number(n)) => {
            let x = n.as_f64().unwrap();
            (schema["type"] == "number" || x.fract() == 0.0)
                && number("minimum").is_none_or(|low| x >= low)
                && number("maximum").is_none_or(|high| x <= high)
        }
        ("array", Value::Array(list)) => {
            within(list.len(), "minItems", "maxItems") && list.iter().all(|value| is_valid(&schema["items"], value))
        }
        ("object", Value::Object(map)) => {
            let properties = schema["properties"].as_object().unwrap();
            map.iter().all(|(name, value)| properties.get(name).is_some_and(|schema| is_valid(schema, value)))
                && schema["required"].as_array().unwrap().iter().all(|name| map.contains_key(name.as_str().unwrap()))
        }
        _ => false,
    }
}

/// The three patterns of [`schema`], by hand.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        "^[a-f]{2,5}$" => (2..=5).contains(&text.len()) && text.bytes().all(|b| (b'a'..=b'f').contains(&b)),
        "^x+y?$" => {
            let xs = text.strip_suffix('y').unwrap_or(text);
            !xs.is_empty() && xs.bytes().all(|b| b == b'x')
        }
        _ => text.split_once('-').is_some_and(|(word, digits)| {
            ["fox", "goose"].contains(&word)
                && (1..=3).contains(&digits.len())
                && digits.bytes().all(|b| b.is_ascii_digit())
        }),
    }
}

/// Writes a text under each of `count` schemas; returns the schemas and texts, and the mean time of a mask.
fn write_all(tokenizer: &Tokenizer, count: usize) -> (Vec<(Value, String)>, Duration) {
    let model = model(tokenizer);
    let stop_ids = tokenizer.stop_ids();
    let compiler = ConstraintCompiler::new(tokenizer, &stop_ids).unwrap();
    let mut random = Random::new(2026);
    let (mut written, mut masks, mut time) = (Vec::new(), 0, Duration::ZERO);
    for seed in 0..count as u64 {
        let schema = object(&mut random, 2);
        let constraint =
            compiler.compile(&Grammar::JsonSchema(schema.clone())).unwrap_or_else(|e| panic!("{e}: {schema}"));
        let generator = Generator::new(&model, tokenizer).with_constraint(&constraint);
        let sampling = Sampling { max_tokens: CONTEXT, seed, ..Sampling::default() };
        let found = generator.write(&[1], &sampling, &mut |_| {}).unwrap_or_else(|e| panic!("{e}: {schema}"));
        assert_eq!(found.completion.finish_reason, FinishReason::Stop, "{schema}: {}", found.completion.text);
        // The masks of that text once more, and by themselves.
        let mut matcher = constraint.start();
        for &token in &found.completion.tokens {
            let begin = Instant::now();
            let allowed = matcher.allowed().unwrap();
            time += begin.elapsed();
            masks += 1;
            assert!(allowed.contains(token));
            matcher.accept(token).unwrap();
        }
        written.push((schema, found.completion.text));
    }
    (written, time / masks)
}

fn assert_valid(written: &[(Value, String)]) {
    for (schema, text) in written {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}\n{schema}"));
        assert!(is_valid(schema, &value), "{text}\n{schema}");
    }
}

#[test]
fn the_rules_by_hand_see_what_is_wrong() {
    let schema = json!({"type": "object", "required": ["a"], "additionalProperties": false, "properties": {
        "a": {"type": "string", "maxLength": 2}, "b": {"type": "array", "items": {"type": "integer", "minimum": 3},
        "minItems": 1, "maxItems": 2}, "c": {"anyOf": [{"const": 1}, {"enum": ["x"]}]}, "d": {"type": "string", "pattern": "^x+y?$"}}});
    assert!(is_valid(&schema, &json!({"a": "狐狸", "b": [3, 4], "c": "x", "d": "xxy"})));
    let wrong = [
        json!({}),
        json!({"a": "abc"}),
        json!({"a": "", "z": 1}),
        json!({"a": "", "b": []}),
        json!({"a": "", "b": [2]}),
        json!({"a": "", "b": [3.5]}),
        json!({"a": "", "c": 2}),
        json!({"a": "", "d": "y"}),
        json!([]),
    ];
    for value in wrong {
        assert!(!is_valid(&schema, &value), "{value}");
    }
}

/// With `--nocapture` it says the mean time of a mask, too. `LOAM_TOKENIZER` names a directory with another tokenizer;
/// `LOAM_CONSTRAINED` a file for schemas and texts, which `scripts/check_constrained.py` judges by another library.
#[test]
#[allow(clippy::print_stderr, reason = "a figure for those who look")]
fn texts_under_three_hundred_schemas_are_valid_whatever_the_model_would_say() {
    let tokenizer = std::env::var("LOAM_TOKENIZER").map_or_else(|_| tokenizer(), |path| Tokenizer::open(path).unwrap());
    let (written, mask) = write_all(&tokenizer, 300);
    assert_valid(&written);
    eprintln!("{} of 300 texts are valid; {mask:?} a mask of {} tokens", written.len(), tokenizer.vocab_size());
    if let Ok(path) = std::env::var("LOAM_CONSTRAINED") {
        let lines: String =
            written.iter().map(|(schema, text)| format!("{}\n", json!({"schema": schema, "text": text}))).collect();
        std::fs::write(path, lines).unwrap();
    }
}

#[test]
fn schemas_that_cannot_be_counted_or_allow_nothing_are_refused_by_place() {
    let tokenizer = tokenizer();
    let compiler = ConstraintCompiler::new(&tokenizer, &tokenizer.stop_ids()).unwrap();
    let place = |schema: Value| match compiler.compile(&Grammar::JsonSchema(schema.clone())) {
        Err(Error::Schema { path, .. }) => path,
        other => panic!("{schema}: {other:?}"),
    };
    assert_eq!(place(json!({"enum": [1, i64::MIN]})), "/enum/1");
    assert_eq!(place(json!({"properties": {"a": {"minimum": i64::MIN}}})), "/properties/a/minimum");
    assert_eq!(place(json!({"maximum": 1e300})), "/maximum");
    assert_eq!(place(json!({"$ref": "#"})), "");
    compiler.compile(&Grammar::JsonSchema(json!({"type": "integer", "maximum": 9_007_199_254_740_991_i64}))).unwrap();
}
