//! `loam eval`: how well a model does a task.

use crate::Outcome;
use crate::args::EvalArgs;
use crate::commands::merge::attach;
use crate::commands::quickstart::exam::{Form, sit_with};
use crate::commands::{quantise, set_precision};
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output;
use crate::setup::Environment;
use crate::table::Table;
use loam_data::garden::Question;
use loam_data::labelled::squad;
use loam_data::seq2seq::{self, PairFields};
use loam_data::source::Source;
use loam_infer::{BeamSettings, OpenModel};
use rayon::prelude::*;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

pub fn run(args: &EvalArgs, environment: &Environment) -> Result<Outcome, Failure> {
    set_precision(args.compute.precision)?;
    let open = OpenModel::open(model_path(&args.model, environment)?)?;
    quantise(&open.model, args.quant)?;
    attach(&open.model, args.adapter.as_deref())?;
    if let Some(path) = &args.answers {
        return super::eval_answers::run(args, path, &open);
    }
    let Some(path) = &args.pairs else {
        return ask(args, args.questions.as_deref().unwrap_or(Path::new("")), &open);
    };
    let fields = PairFields { source: args.source.clone(), target: args.target.clone() };
    let mut pairs = seq2seq::read(&[Source::open(path)?], &fields)?;
    pairs.truncate(args.limit.unwrap_or(usize::MAX));
    let generator = open.generator();
    let settings =
        BeamSettings { num_beams: args.beams, max_tokens: args.max_tokens, length_penalty: args.length_penalty };
    let start = Instant::now();
    // A text does not depend on the others, so they may share the threads.
    let written: Result<Vec<String>, Failure> = pairs
        .par_iter()
        .map(|(source, _)| {
            let found = generator.beam_search(&generator.encode_prompt(source)?, &settings)?;
            let best = found.first().map(|best| open.tokenizer.decode(&best.tokens, true)).transpose()?;
            Ok(best.unwrap_or_default().trim().to_owned())
        })
        .collect();
    let (written, seconds) = (written?, start.elapsed().as_secs_f64());
    let mean = |score: &dyn Fn(&str, &str) -> f64| {
        let scores = pairs.iter().zip(&written).map(|((_, target), text)| score(text, target.trim()));
        scores.sum::<f64>() / pairs.len().max(1) as f64
    };
    let exact_match = mean(&|text, target| f64::from(u8::from(text == target)));
    let f1 = mean(&|text, target| squad::f1(text, &[target]));
    let rate = pairs.len() as f64 / seconds.max(1e-9);
    if args.json {
        output::json(&json!({
            "pairs": pairs.len(), "beams": args.beams, "exact_match": exact_match, "f1": f1, "texts_per_s": rate,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&["measure", "value"]);
    let rows = [
        ("pairs", pairs.len().to_string()),
        ("beams", args.beams.to_string()),
        ("exact match", format!("{:.1} %", 100.0 * exact_match)),
        ("F1 of words", format!("{:.1} %", 100.0 * f1)),
        ("texts per second", format!("{rate:.1}")),
    ];
    rows.into_iter().for_each(|(name, value)| table.row(vec![name.into(), value]));
    for line in table.lines() {
        output::line(&line)?;
    }
    Ok(Outcome::Done)
}

/// Puts the garden's questions: as a user's messages where the model has a chat template, else as text.
fn ask(args: &EvalArgs, path: &Path, open: &OpenModel) -> Result<Outcome, Failure> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Failure::io(&format!("cannot read {}", path.display()), &e))?;
    let mut questions: Vec<Question> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        questions.push(serde_json::from_str(line).map_err(|error| {
            let hint = "each line is a question of the garden, as `loam data garden` writes them";
            Failure::with_hint(format!("{} line {}: {error}", path.display(), number + 1), hint)
        })?);
    }
    questions.truncate(args.limit.unwrap_or(usize::MAX));
    let form = if open.template.is_some() { Form::Chat } else { Form::Text };
    let score = sit_with(open, &questions, form, "questions")?;
    if args.json {
        output::json(&json!({"questions": questions.len(), "right": score.total()}))?;
    } else {
        output::line(&format!("{:.1} % of {} questions are answered right", 100.0 * score.total(), questions.len()))?;
    }
    Ok(Outcome::Done)
}
