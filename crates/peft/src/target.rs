//! Which modules a name means.

use loam_formats::nearest;
use loam_models::{LanguageModel, LinearSite};
use regex::Regex;

use crate::config::Targets;
use crate::error::{Error, Result};

/// What PEFT takes for a family: LoRA's and VeRA's targets, AdaLoRA's, IA3's, and those of IA3 whose input is scaled.
type Row = (&'static [&'static str], [&'static [&'static str]; 4]);

const QV: &[&str] = &["q_proj", "v_proj"];
const QVD: &[&str] = &["q_proj", "v_proj", "down_proj"];
const KVD: &[&str] = &["k_proj", "v_proj", "down_proj"];
const DOWN: &[&str] = &["down_proj"];
const ALL_SIX: &[&str] = &["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"];
const QUERY_VALUE: &[&str] = &["query", "value"];

const FAMILIES: &[Row] = &[
    (&["llama"], [QV, QV, KVD, DOWN]),
    (&["mistral"], [QV, QV, KVD, DOWN]),
    (&["gemma2", "gemma3_text", "qwen2", "qwen3", "qwen3_moe"], [QV, QV, QVD, DOWN]),
    (&["mixtral"], [QV, QV, &["k_proj", "v_proj", "w2"], &["w2"]]),
    (&["phi3"], [&["qkv_proj"], &["qkv_proj"], &["qkv_proj", "down_proj"], DOWN]),
    (&["gpt2"], [&["c_attn"], &["c_attn"], &["c_attn", "mlp.c_proj"], &["mlp.c_proj"]]),
    (
        &["gpt_neox"],
        [&["query_key_value"], &["query_key_value"], &["query_key_value", "dense_4h_to_h"], &["dense_4h_to_h"]],
    ),
    (&["opt"], [QV, ALL_SIX, &["q_proj", "k_proj", "fc2"], &["fc2"]]),
    (&["bart", "marian"], [QV, ALL_SIX, &["q_proj", "v_proj", "fc2"], &["fc2"]]),
    (&["t5"], [&["q", "v"], &["q", "k", "v", "o", "wi", "wo"], &["k", "v", "wo"], &["wo"]]),
    (&["bert"], [QUERY_VALUE, QUERY_VALUE, &["key", "value", "output.dense"], &["output.dense"]]),
    (
        &["roberta"],
        [QUERY_VALUE, &["query", "key", "value", "dense"], &["key", "value", "output.dense"], &["output.dense"]],
    ),
    (&["distilbert"], [&["q_lin", "v_lin"], &["q_lin", "v_lin"], &["k_lin", "v_lin", "lin2"], &["lin2"]]),
    (&["modernbert"], [&["Wqkv"], &["Wqkv"], &["Wqkv", "mlp.Wo"], &["mlp.Wo"]]),
];

/// Columns of the table.
#[derive(Clone, Copy)]
pub(crate) enum Column {
    Lora,
    AdaLora,
    Ia3,
    Ia3FeedForward,
}

/// PEFT's choice for a family.
pub(crate) fn defaults(family: &str, column: Column) -> Vec<String> {
    let row = FAMILIES.iter().find(|(names, _)| names.contains(&family));
    // A family that PEFT has no choice for is treated like Llama; names that do not match are then an error.
    row.map_or(QV, |(_, columns)| columns[column as usize]).iter().map(|&name| name.to_owned()).collect()
}

/// The names that stand for the targets, where they are names.
pub(crate) fn spelled_out(model: &LanguageModel, targets: &Targets, column: Column) -> Targets {
    match targets {
        Targets::Default => Targets::Names(defaults(model.spec().family, column)),
        other => other.clone(),
    }
}

/// Whether a module's name is `name` or ends with it after a dot.
pub(crate) fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

pub(crate) fn pattern(text: &str, setting: &'static str) -> Result<Regex> {
    Regex::new(text).map_err(|error| Error::Setting(format!("`{text}` ({setting}) is no regular expression: {error}")))
}

/// The linear layers that the targets name. Each name has to match one at least.
pub(crate) fn matching(model: &LanguageModel, targets: &Targets, column: Column) -> Result<Vec<LinearSite>> {
    let sites = model.linear_sites();
    let missing = |name: &str| {
        let mut ends: Vec<&str> = sites.iter().filter_map(|site| site.name.rsplit('.').next()).collect();
        ends.sort_unstable();
        ends.dedup();
        let close = nearest(name, ends.iter().copied().chain(sites.iter().map(|site| site.name.as_str())));
        let hint = close.map_or_else(
            || format!("linear layers here end with {}", ends.join(", ")),
            |close| format!("did you mean `{close}`?"),
        );
        let family = model.spec().family.to_owned();
        Error::NoTarget { name: name.into(), setting: "target_modules", what: "linear layer", family, hint }
    };
    match spelled_out(model, targets, column) {
        Targets::AllLinear | Targets::Default => Ok(sites),
        Targets::Names(names) => {
            if let Some(name) = names.iter().find(|name| !sites.iter().any(|site| ends_with(&site.name, name))) {
                return Err(missing(name));
            }
            let is_meant = |site: &LinearSite| names.iter().any(|name| ends_with(&site.name, name));
            Ok(sites.into_iter().filter(is_meant).collect())
        }
        Targets::Pattern(text) => {
            let whole = pattern(&format!("^(?:{text})$"), "target_modules")?;
            let found: Vec<LinearSite> = sites.iter().filter(|site| whole.is_match(&site.name)).cloned().collect();
            if found.is_empty() { Err(missing(&text)) } else { Ok(found) }
        }
    }
}

/// The value of the first pattern that the end of a name matches, as PEFT has it.
pub(crate) fn by_pattern<T: Clone>(
    patterns: &[(String, T)],
    name: &str,
    default: T,
    setting: &'static str,
) -> Result<T> {
    for (text, value) in patterns {
        if pattern(&format!(r"^(?:.*\.)?(?:{text})$"), setting)?.is_match(name) {
            return Ok(value.clone());
        }
    }
    Ok(default)
}

/// Refuses patterns that match none of the names: a rank that is set and never used.
pub(crate) fn check_patterns<T>(patterns: &[(String, T)], sites: &[LinearSite], setting: &'static str) -> Result<()> {
    for (text, _) in patterns {
        let end = pattern(&format!(r"^(?:.*\.)?(?:{text})$"), setting)?;
        if !sites.iter().any(|site| end.is_match(&site.name)) {
            let names = sites.iter().map(|site| site.name.as_str());
            let ends = sites.iter().filter_map(|site| site.name.rsplit('.').next());
            let hint = nearest(text, names.chain(ends)).map_or_else(
                || "patterns apply to the target modules only".into(),
                |close| format!("did you mean `{close}`?"),
            );
            let (name, family) = (text.clone(), "given".to_owned());
            return Err(Error::NoTarget { name, setting, what: "target module", family, hint });
        }
    }
    Ok(())
}
