//! `loam eval --answers`: how often the last number (or whatever a pattern finds) of a model's reply is the right one.

use crate::Outcome;
use crate::args::EvalArgs;
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use loam_chat::{Message, Sampling};
use loam_data::dialogue::{Layout, Table};
use loam_data::preference::{Turns, read_prompts};
use loam_infer::{Generator, OpenModel};
use loam_train::recipe::DEFAULT_PATTERN;
use loam_train::reward::Matcher;
use serde_json::{Value, json};
use std::path::Path;

/// Questions put between two updates of the progress bar.
const AT_ONCE: usize = 16;

/// Puts the questions of a table and compares the replies with its field `answer`.
pub fn run(args: &EvalArgs, path: &Path, open: &OpenModel) -> Result<Outcome, Failure> {
    let table = Table::open(path, &Layout::default())?;
    let mut prompts = read_prompts(&[table])?;
    prompts.truncate(args.limit.unwrap_or(usize::MAX));
    let matcher = Matcher::new(args.pattern.as_deref().unwrap_or(DEFAULT_PATTERN))?;
    let generator = open.generator();
    let sampling = Sampling { max_tokens: args.max_tokens, ..Sampling::greedy() };
    let mut progress = Progress::new("questions", prompts.len() as u64);
    let (mut right, mut ended, mut done) = (0, 0, 0);
    for some in prompts.chunks(AT_ONCE) {
        let asked = some.iter().map(|prompt| encoded(&generator, &prompt.prompt, open.template.is_some()));
        let replies = generator.write_batch(&asked.collect::<Result<Vec<_>, _>>()?, &sampling)?;
        for (prompt, reply) in some.iter().zip(&replies) {
            let expected = match prompt.row.get(&args.field) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => {
                    let hint =
                        format!("name the field with the right answer: --field NAME (there are {})", names(prompt));
                    return Err(Failure::with_hint(
                        format!("{}: a row has no field `{}`", path.display(), args.field),
                        hint,
                    ));
                }
            };
            right += usize::from(matcher.is_right(&reply.text, &expected));
            ended += usize::from(reply.finish_reason != loam_chat::FinishReason::Length);
        }
        done += some.len();
        progress.update(done as u64, &format!("{:.1} % right", 100.0 * share(right, done)));
    }
    progress.finish();
    let (count, right, ended) = (prompts.len(), share(right, done), share(ended, done));
    if args.json {
        output::json(&json!({"questions": count, "right": right, "ended": ended}))?;
    } else {
        output::line(&format!(
            "{:.1} % of {count} questions are answered right; {:.0} % of the replies end by themselves",
            100.0 * right,
            100.0 * ended
        ))?;
    }
    Ok(Outcome::Done)
}

fn encoded(generator: &Generator<'_>, prompt: &Turns, talks: bool) -> Result<Vec<u32>, Failure> {
    Ok(match prompt {
        Turns::Text(text) if !talks => generator.encode_prompt(text)?,
        Turns::Text(text) => generator.encode_messages(&[Message::user(text)])?,
        Turns::Messages(messages) => generator.encode_messages(messages)?,
    })
}

fn names(prompt: &loam_data::preference::Prompt) -> String {
    prompt.row.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn share(part: usize, all: usize) -> f64 {
    part as f64 / all.max(1) as f64
}
