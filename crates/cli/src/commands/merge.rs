//! `loam model merge` and `loam model combine`: adapters become part of a model, or one adapter.

use crate::args::{CombineArgs, MergeArgs, Way};
use crate::commands::convert::{destination, write};
use crate::failure::Failure;
use crate::locate::{adapter_dir, model_path};
use crate::output;
use crate::setup::Environment;
use crate::table::Table;
use loam_formats::atomic;
use loam_kernels::rng::Rng;
use loam_models::{Hooks, LanguageModel, Mix};
use loam_peft::{Adapter, AdapterSet, Combination, Difference, combine, difference, merge, merge_with_report, probe};
use loam_tokenizer::{Special, Tokenizer};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Texts that stand in for a probe set, of random tokens each.
const PROBES: usize = 8;
/// Most tokens of a text that are looked at.
const PROBE_TOKENS: usize = 64;

/// Puts an adapter into a model, if there is one.
pub fn attach(model: &LanguageModel, adapter: Option<&Path>) -> Result<(), Failure> {
    if let Some(path) = adapter {
        let adapter = Adapter::open(model, &adapter_dir(path)?)?;
        // Nothing takes it out again: the model lives as long as the command.
        AdapterSet::attach(model, vec![Arc::new(adapter)]);
    }
    Ok(())
}

/// `loam model merge`.
pub fn merge_model(args: &MergeArgs, environment: &Environment) -> Result<(), Failure> {
    let source = model_path(&args.base, environment)?;
    let out = destination(&args.out, args.force, &source)?;
    let path = adapter_dir(&args.adapter)?;
    let model = LanguageModel::open(&source)?;
    let adapter = Arc::new(Adapter::open(&model, &path)?);
    let texts = probe_texts(args.probe.as_deref(), &model, &source)?;
    let (_merged, report) = merge_with_report(&model, &adapter, &texts)?;
    let quantised = args.quant.map(|mix| quantised(&source, &path, &texts, mix)).transpose()?;
    write(&model, &source, &out, None)?;
    if args.json {
        let orders = quantised.map(|(beside, inside)| json!({"adapter_beside": beside, "merged_first": inside}));
        return output::json(&json!({"path": args.out, "report": report, "quantised": orders}));
    }
    let mut table = Table::new(&["logits of", "beside those of", "largest difference", "mean", "same top token"]);
    let mut row = |what: &str, beside: &str, d: &Difference| {
        let numbers = [format!("{:.2e}", d.max), format!("{:.2e}", d.mean), format!("{:.1} %", 100.0 * d.same_top)];
        table.row([what.to_owned(), beside.to_owned()].into_iter().chain(numbers).collect());
    };
    row("the merged model", "the model with the adapter", &report.merged);
    row("the merged model", "the model alone", &report.adapter);
    if let (Some((beside, inside)), Some(mix)) = (&quantised, args.quant) {
        row(&format!("the model in {} with the adapter", mix.name()), "the merged model", beside);
        row(&format!("the merged model in {}", mix.name()), "the merged model", inside);
    }
    output::line(&format!("{}  merged, compared on {} texts", args.out.display(), texts.len()))?;
    table.lines().iter().try_for_each(|line| output::line(line))
}

/// Both orders of rounding and merging, beside the merged model in full.
fn quantised(source: &Path, path: &Path, texts: &[Vec<u32>], mix: Mix) -> Result<(Difference, Difference), Failure> {
    let full = LanguageModel::open(source)?;
    let vocab = full.spec().vocab_size;
    merge(&full, &Adapter::open(&full, path)?)?;
    let expected = probe(&full, texts, &Hooks::Off)?;
    full.quantise(&full.plan(mix), None)?;
    let inside = difference(&expected, &probe(&full, texts, &Hooks::Off)?, vocab);
    let base = LanguageModel::open(source)?;
    base.quantise(&base.plan(mix), None)?;
    AdapterSet::attach(&base, vec![Arc::new(Adapter::open(&base, path)?)]);
    let beside = difference(&expected, &probe(&base, texts, &Hooks::On)?, vocab);
    Ok((beside, inside))
}

/// Lines of a file, or random tokens: the same ones for the same vocabulary.
fn probe_texts(file: Option<&Path>, model: &LanguageModel, source: &Path) -> Result<Vec<Vec<u32>>, Failure> {
    let Some(file) = file else {
        let (rng, vocab) = (Rng::new(0, "probe", 0), model.spec().vocab_size as u64);
        let len = PROBE_TOKENS.min(model.spec().max_position_embeddings / 2).max(1);
        let text = |row: usize| (0..len).map(|at| rng.below((row * len + at) as u64, vocab) as u32).collect();
        return Ok((0..PROBES).map(text).collect());
    };
    let text =
        std::fs::read_to_string(file).map_err(|e| Failure::io(&format!("cannot read {}", file.display()), &e))?;
    let tokenizer = Tokenizer::open(source)?;
    let mut texts = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut ids = tokenizer.encode(line, Special::Add)?;
        ids.truncate(PROBE_TOKENS.min(model.spec().max_position_embeddings));
        texts.push(ids);
    }
    texts.retain(|ids| !ids.is_empty());
    if texts.is_empty() {
        return Err(Failure::new(format!("{} has no text to compare on", file.display())));
    }
    Ok(texts)
}

/// `loam model combine`.
pub fn combine_adapters(args: &CombineArgs, environment: &Environment) -> Result<(), Failure> {
    let model = LanguageModel::open(model_path(&args.base, environment)?)?;
    let is_gguf = args.out.extension().is_some_and(|extension| extension == "gguf");
    let is_adapter = if is_gguf { args.out.is_file() } else { args.out.join("adapter_config.json").is_file() };
    if args.out.exists() && !(args.force && is_adapter) {
        let hint = "write somewhere else; --force replaces an adapter";
        return Err(Failure::with_hint(format!("{} is there already", args.out.display()), hint));
    }
    let mut opened = Vec::new();
    for weighted in &args.adapters {
        let (path, weight) = weighted.split_once('=').unwrap_or((weighted, "1"));
        let weight: f64 = weight.parse().map_err(|_| {
            Failure::with_hint(
                format!("`{weighted}`: `{weight}` is no number"),
                "write DIR or DIR=WEIGHT, such as a=0.7",
            )
        })?;
        opened.push((Adapter::open(&model, &adapter_dir(Path::new(path))?)?, weight));
    }
    let parts: Vec<(&Adapter, f64)> = opened.iter().map(|(adapter, weight)| (adapter, *weight)).collect();
    let (density, seed) = (args.density, args.seed);
    let how = match args.how {
        Way::Linear => Combination::Linear,
        Way::Cat => Combination::Cat,
        Way::Svd => Combination::Svd { rank: args.rank },
        Way::Ties => Combination::Ties { density },
        Way::DareLinear => Combination::DareLinear { density, seed },
        Way::DareTies => Combination::DareTies { density, seed },
        Way::MagnitudePrune => Combination::MagnitudePrune { density },
    };
    let combined = combine(&model, &parts, how)?;
    if let Some(parent) = args.out.parent() {
        atomic::clean_leftovers(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    match is_gguf {
        true => combined.save_gguf(&model, &args.out)?,
        false => combined.save(&model, &args.out)?,
    }
    output::line(&format!("{}  {combined:?}", args.out.display()))
}
