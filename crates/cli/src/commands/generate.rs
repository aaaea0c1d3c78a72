//! `loam generate`: the continuation of a text.

use crate::Outcome;
use crate::args::GenerateArgs;
use crate::commands::merge::attach;
use crate::commands::sampling::{constraint, sampling};
use crate::commands::{quantise, set_precision};
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output;
use crate::setup::Environment;
use loam_chat::{Message, Sampling};
use loam_infer::{BeamSettings, Hypothesis, OpenModel, Written};
use serde_json::{Value, json};
use std::io::Read;

pub fn run(args: &GenerateArgs, environment: &Environment) -> Result<Outcome, Failure> {
    set_precision(args.compute.precision)?;
    let open = OpenModel::open(model_path(&args.model, environment)?)?;
    quantise(&open.model, args.quant)?;
    attach(&open.model, args.adapter.as_deref())?;
    let recommended = open.recommended.clone().unwrap_or_default();
    let sampling = Sampling { top_logprobs: args.top_logprobs, ..sampling(&args.sampling, &recommended) };
    sampling.validate()?;
    let constraint = constraint(&args.grammar, &open)?;
    let mut generator = open.generator();
    if let Some(constraint) = &constraint {
        generator = generator.with_constraint(constraint);
    }
    let text = if args.prompt == "-" { read_stdin()? } else { args.prompt.clone() };
    let prompt = match args.chat {
        true => generator.encode_messages(&[Message::user(text)])?,
        false => generator.encode_prompt(&text)?,
    };
    if let Some(num_beams) = args.beams {
        let settings = BeamSettings { num_beams, max_tokens: sampling.max_tokens, length_penalty: args.length_penalty };
        let found = generator.beam_search(&prompt, &settings)?;
        return show_beams(args, &open, &found);
    }
    if args.json {
        let written = generator.keep_logprobs(true).write(&prompt, &sampling, &mut |_| {})?;
        output::json(&report(&written, &open, args.top_logprobs > 0))?;
        return Ok(Outcome::Done);
    }
    let mut shown = Ok(());
    generator.write(&prompt, &sampling, &mut |piece| {
        if shown.is_ok() {
            shown = output::print(piece);
        }
    })?;
    shown?;
    output::line("")?;
    Ok(Outcome::Done)
}

/// What was written and how fast; with `alternatives` also the log-probability of each token
/// and the most likely ones in its place.
fn report(written: &Written, open: &OpenModel, alternatives: bool) -> Value {
    let (completion, timings) = (&written.completion, &written.timings);
    let mut all = json!({
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "prompt_tokens_per_s": rounded(timings.prompt_tokens_per_s()),
        "tokens_per_s": rounded(timings.tokens_per_s()),
    });
    if alternatives {
        let text = |id: u32| open.tokenizer.decode(&[id], false).unwrap_or_default();
        let one = |&(id, logprob): &(u32, f32)| json!({"token": id, "text": text(id), "logprob": logprob});
        all["logprobs"] = json!(completion.logprobs);
        let places = written.top_logprobs.iter();
        all["top_logprobs"] = places.map(|place| place.iter().map(one).collect::<Vec<_>>()).collect();
    }
    all
}

/// The best text; in JSON all of them, best first.
fn show_beams(args: &GenerateArgs, open: &OpenModel, found: &[Hypothesis]) -> Result<Outcome, Failure> {
    let texts = found.iter().map(|one| open.tokenizer.decode(&one.tokens, true)).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        let all = texts.iter().zip(found);
        let beams = all.map(|(text, one)| json!({"text": text, "tokens": one.tokens, "score": one.score}));
        let (text, tokens) = (texts.first(), found.first().map(|one| &one.tokens));
        output::json(&json!({"text": text, "tokens": tokens, "beams": beams.collect::<Vec<_>>()}))?;
    } else {
        output::line(texts.first().map_or("", String::as_str))?;
    }
    Ok(Outcome::Done)
}

/// One decimal is all that a clock is good for.
fn rounded(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| Failure::io("cannot read the prompt", &e))?;
    Ok(text)
}
