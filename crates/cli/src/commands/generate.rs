//! `loam generate`: the continuation of a text.

use crate::Outcome;
use crate::args::{GenerateArgs, SamplingArgs};
use crate::commands::quantise;
use crate::failure::Failure;
use crate::locate::model_dir;
use crate::output;
use crate::setup::Environment;
use loam_chat::{Message, Sampling};
use loam_infer::{BeamSettings, Hypothesis, OpenModel};
use serde_json::json;
use std::io::Read;

pub fn run(args: &GenerateArgs, environment: &Environment) -> Result<Outcome, Failure> {
    let open = OpenModel::open(model_dir(&args.model, environment)?)?;
    quantise(&open.model, args.quant)?;
    let sampling = sampling(&args.sampling, &open.recommended.clone().unwrap_or_default());
    sampling.validate()?;
    let generator = open.generator();
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
        let written = generator.write(&prompt, &sampling, &mut |_| {})?;
        let (completion, timings) = (written.completion, written.timings);
        output::json(&json!({
            "text": completion.text,
            "tokens": completion.tokens,
            "finish_reason": completion.finish_reason,
            "prompt_tokens_per_s": rounded(timings.prompt_tokens_per_s()),
            "tokens_per_s": rounded(timings.tokens_per_s()),
        }))?;
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

/// The settings of the command line over those that the model's directory recommends.
pub fn sampling(args: &SamplingArgs, recommended: &Sampling) -> Sampling {
    Sampling {
        temperature: args.temperature.unwrap_or(recommended.temperature),
        top_k: args.top_k.unwrap_or(recommended.top_k),
        top_p: args.top_p.unwrap_or(recommended.top_p),
        min_p: args.min_p.unwrap_or(recommended.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(recommended.repetition_penalty),
        max_tokens: args.max_tokens.unwrap_or(recommended.max_tokens),
        stop: args.stop.clone(),
        seed: args.seed.unwrap_or(recommended.seed),
    }
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
