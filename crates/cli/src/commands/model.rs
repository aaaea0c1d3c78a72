//! `loam model`: what a model is made of, and what it computes.

use crate::Outcome;
use crate::args::{LogitsArgs, ModelVerb, ShowArgs};
use crate::commands::convert;
use crate::commands::merge;
use crate::commands::plan;
use crate::commands::quantise;
use crate::commands::store;
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output::{self, Colour, paint};
use crate::setup::Environment;
use crate::table::{Table, bytes, grouped, short};
use loam_formats::{Gguf, HfDir};
use loam_models::{Footprint, Forward, Input, LanguageModel, Memory, footprint};
use loam_tensor::no_grad;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

pub fn run(verb: ModelVerb, environment: &Environment) -> Result<Outcome, Failure> {
    match verb {
        ModelVerb::Show(args) => show(&args, environment)?,
        ModelVerb::Logits(args) => logits(&args, environment)?,
        ModelVerb::Convert(args) => convert::run(&args, environment)?,
        ModelVerb::Merge(args) => merge::merge_model(&args, environment)?,
        ModelVerb::Combine(args) => merge::combine_adapters(&args, environment)?,
        ModelVerb::Plan(args) => return plan::run(&args, environment),
        ModelVerb::Pull(args) => store::pull(&args, environment)?,
        ModelVerb::List(args) => store::list(&args, environment)?,
        ModelVerb::Rm(args) => store::remove(&args, environment)?,
    }
    Ok(Outcome::Done)
}

fn show(args: &ShowArgs, environment: &Environment) -> Result<(), Failure> {
    let path = model_path(&args.model, environment)?;
    let model = LanguageModel::open(&path)?;
    let counts = footprint(model.spec());
    let parameters: Vec<(String, Vec<usize>)> =
        model.parameters().iter().map(|(name, p)| (name.clone(), p.shape().to_vec())).collect();
    let tensors = stored_tensors(&model, &path)?;
    if args.json {
        let list: Vec<Value> = parameters.iter().map(|(name, shape)| json!({"name": name, "shape": shape})).collect();
        let stored = |(name, shape, dtype): &Stored| json!({"name": name, "shape": shape, "dtype": dtype});
        return output::json(&json!({
            "path": path, "config": model.config(), "footprint": counts, "parameters": list,
            "tensors": tensors.iter().map(stored).collect::<Vec<_>>(),
        }));
    }
    output::line(&paint(Colour::Bold, &model.spec().summary()))?;
    output::line(&format!("{}", path.display()))?;
    if args.tree {
        output::line("")?;
        for line in tree(&tensors) {
            output::line(&line)?;
        }
    }
    output::line("")?;
    footprint_table(&counts, model.spec().max_position_embeddings)
        .lines()
        .iter()
        .try_for_each(|line| output::line(line))
}

/// A tensor of a model's files: name, shape, element type.
type Stored = (String, Vec<usize>, &'static str);

fn stored_tensors(model: &LanguageModel, path: &Path) -> Result<Vec<Stored>, Failure> {
    if path.is_file() {
        let tensors = LanguageModel::gguf_tensors(&Gguf::open(path)?);
        return Ok(tensors.into_iter().map(|(name, shape, ty)| (name, shape, ty.name())).collect());
    }
    let tensors = model.stored_tensors(&HfDir::open(path)?)?;
    Ok(tensors.into_iter().map(|(name, shape, dtype)| (name, shape, dtype.name())).collect())
}

fn footprint_table(counts: &Footprint, context: usize) -> Table {
    let mut table = Table::new(&["footprint", ""]);
    let mut row = |name: &str, value: String| table.row(vec![name.into(), value]);
    row("parameters", grouped(counts.parameters));
    row("of them in matrix products", grouped(counts.matmul_parameters));
    row("weights in f32", bytes(counts.weight_bytes_f32));
    row("weights in bf16", bytes(counts.weight_bytes_bf16));
    row("keys and values per token (f32)", bytes(counts.kv_bytes_per_token_f32));
    row(&format!("keys and values of a full context of {context}"), bytes(counts.kv_bytes_per_token_f32 * context));
    row("weights, gradients and AdamW state in training", bytes(counts.training_state_bytes));
    row("operations per token, forward", short(counts.forward_flop_per_token as f64, "FLOP"));
    table
}

/// Names that share a beginning under one another, each with the number of parameters that lie below it.
fn tree(tensors: &[Stored]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for (name, shape, dtype) in grouped_by_module(tensors) {
        let parts: Vec<&str> = name.split('.').collect();
        let (leaf, path) = parts.split_last().expect("a name has at least one part");
        let shared = open.iter().zip(path).take_while(|(a, b)| a == b).count();
        for depth in shared..path.len() {
            let prefix = format!("{}.", path[..=depth].join("."));
            let below = tensors.iter().filter(|(other, ..)| other.starts_with(&prefix));
            let count: usize = below.map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
            lines.push(format!("{}{}  {}", "  ".repeat(depth), path[depth], paint(Colour::Dim, &grouped(count))));
        }
        let size: usize = shape.iter().product();
        let detail = paint(Colour::Dim, &format!("{shape:?} {dtype} {}", grouped(size)));
        lines.push(format!("{}{leaf}  {detail}", "  ".repeat(path.len())));
        open = path.to_vec();
    }
    lines
}

/// The tensors with those of one module next to each other, otherwise in their order.
fn grouped_by_module(tensors: &[Stored]) -> Vec<&Stored> {
    let prefixes = |name: &str| -> Vec<String> {
        let ends = name.match_indices('.').map(|(dot, _)| dot).chain([name.len()]);
        ends.map(|end| name[..end].to_owned()).collect()
    };
    let mut first = HashMap::new();
    for (index, (name, ..)) in tensors.iter().enumerate() {
        for prefix in prefixes(name) {
            first.entry(prefix).or_insert(index);
        }
    }
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_cached_key(|(name, ..)| prefixes(name).iter().map(|prefix| first[prefix]).collect::<Vec<_>>());
    sorted
}

fn logits(args: &LogitsArgs, environment: &Environment) -> Result<(), Failure> {
    let model = LanguageModel::open(model_path(&args.model, environment)?)?;
    quantise(&model, args.quant)?;
    merge::attach(&model, args.adapter.as_deref())?;
    let read = |tokens: &[u32], memory: Option<&Memory>| {
        let input = Input { memory, ..Input::rows(tokens, 1) };
        match args.last {
            true => model.last_logits(&input, Forward::default()),
            false => model.logits(&input, Forward::default()),
        }
    };
    let has_encoder = model.spec().encoder.is_some();
    let positions = if has_encoder { &args.decoder_tokens } else { &args.tokens };
    let values = no_grad(|| {
        let source = Input::rows(&args.tokens, 1);
        let memory = has_encoder.then(|| model.encode(&source, Forward::default())).transpose()?;
        read(positions, memory.as_ref())
    })?;
    let vocab = model.spec().vocab_size;
    let values = values.to_vec();
    let rows: Vec<&[f32]> = values.chunks_exact(vocab).collect();
    if args.json {
        return output::json(&json!({"shape": [rows.len(), vocab], "logits": rows}));
    }
    // For eyes: the most likely tokens of each position.
    let first = positions.len() - rows.len();
    for (index, row) in rows.iter().enumerate() {
        let mut ranked: Vec<usize> = (0..vocab).collect();
        ranked.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        let best: Vec<String> = ranked.iter().take(8).map(|&id| format!("{id}: {:.3}", row[id])).collect();
        output::line(&format!("position {}  {}", first + index, best.join("  ")))?;
    }
    Ok(())
}
