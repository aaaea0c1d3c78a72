//! `loam data prefer`: pairs of a model's own answers.

use super::{precision_of, set_precision};
use crate::Outcome;
use crate::args::{PreferArgs, RewardArg};
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output;
use crate::progress::Progress;
use crate::setup::Environment;
use crate::signals::Signals;
use crate::table::grouped;
use loam_chat::Message;
use loam_data::dialogue::{Layout, Table};
use loam_data::preference::{Encoder, Prompt, Turns, read_prompts};
use loam_formats::atomic;
use loam_infer::OpenModel;
use loam_train::recipe::{RewardKind, RewardSource};
use loam_train::{PairSettings, Prompted, RankedPair, ranked_pairs, reward};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

/// Prompts that are answered between two updates of the progress bar.
const AT_ONCE: usize = 64;

pub fn run(args: &PreferArgs, environment: &Environment) -> Result<Outcome, Failure> {
    set_precision(args.compute.precision)?;
    let precision = precision_of(args.compute.precision)?;
    check(args)?;
    let open = OpenModel::open(model_path(&args.model, environment)?)?;
    let source = reward_source(args, environment)?;
    let tables = args.files.iter().map(|file| Table::open(file.as_ref(), &Layout::default()));
    let mut prompts = read_prompts(&tables.collect::<Result<Vec<_>, _>>()?)?;
    prompts.truncate(args.limit.unwrap_or(usize::MAX));
    let room = open.model.spec().max_position_embeddings;
    let encoder = Encoder { tokenizer: &open.tokenizer, template: open.template.as_ref(), max_len: room };
    let encode = |prompt: &Prompt| -> Result<Prompted, Failure> {
        let (text, ids) = (prompt.prompt.last_text(), encoder.prompt(&prompt.prompt)?);
        Ok(Prompted { text, ids, row: prompt.row.clone(), answer_field: args.field.clone() })
    };
    let encoded = prompts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    check_lengths(&encoded, room)?;
    let mut reward = reward::open(&source, &open.tokenizer, precision)?;
    let settings = PairSettings {
        samples: args.samples,
        pairs: args.pairs,
        temperature: args.temperature,
        max_new_tokens: args.max_tokens,
        seed: args.seed,
        precision,
    };
    let signals = Signals::listen()?;
    let stop = signals.stop_flag();
    let mut progress = Progress::new("prompts", prompts.len() as u64);
    let (mut pairs, mut answered) = (Vec::new(), 0);
    for (number, some) in encoded.chunks(AT_ONCE).enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let first = number * AT_ONCE;
        pairs.extend(ranked_pairs((&open.model, &open.tokenizer), (first, some), &mut *reward, &settings)?);
        answered = first + some.len();
        progress.update(answered as u64, &format!("{} pairs", grouped(pairs.len())));
    }
    progress.finish();
    if answered < prompts.len() {
        if pairs.is_empty() {
            return Err(Failure::new("stopped before there was a pair: nothing is written"));
        }
        output::say(&format!("stopped after {answered} of {} prompts; their pairs are written", prompts.len()));
        write(args, &prompts[..answered], &pairs)?;
        return Ok(Outcome::Negative);
    }
    write(args, &prompts, &pairs)
}

fn check(args: &PreferArgs) -> Result<(), Failure> {
    let refuse = |what: &str, hint: &str| Err(Failure::with_hint(what.to_owned(), hint.to_owned()));
    if args.samples < 2 || args.pairs == 0 || args.max_tokens == 0 {
        return refuse(
            "there is nothing to compare",
            "--samples must be 2 or more, --pairs and --max-tokens 1 or more",
        );
    }
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return refuse("at this temperature all answers to a prompt are the same", "--temperature must be above 0");
    }
    Ok(())
}

/// Says what cannot be answered before anything is.
fn check_lengths(prompts: &[Prompted], room: usize) -> Result<(), Failure> {
    if prompts.is_empty() {
        return Err(Failure::with_hint("there are no prompts", "the files, or --limit, leave none"));
    }
    match prompts.iter().enumerate().find(|(_, prompt)| prompt.ids.is_empty() || prompt.ids.len() >= room) {
        None => Ok(()),
        Some((index, prompt)) => {
            let problem = format!("prompt {} has {} tokens in a context of {room}", index + 1, prompt.ids.len());
            Err(Failure::with_hint(problem, "there must be a prompt, and room for its answer: leave it out"))
        }
    }
}

/// The reward as a recipe would name it.
fn reward_source(args: &PreferArgs, environment: &Environment) -> Result<RewardSource, Failure> {
    let path = args.reward_model.as_deref().map(|name| model_path(name, environment)).transpose()?;
    let source = RewardSource {
        kind: match args.reward {
            RewardArg::Garden => RewardKind::Garden,
            RewardArg::Match => RewardKind::Match,
            RewardArg::Model => RewardKind::Model,
            RewardArg::Program => RewardKind::Program,
        },
        path: path.map(|path| path.display().to_string()),
        pattern: args.pattern.clone(),
        command: args.reward_program.as_ref().map(|line| line.split_whitespace().map(str::to_owned).collect()),
        timeout: None,
    };
    let options = [
        (RewardArg::Model, source.path.is_some(), "--reward-model"),
        (RewardArg::Program, source.command.is_some(), "--reward-program"),
        (RewardArg::Match, source.pattern.is_some(), "--pattern"),
    ];
    for (kind, is_set, name) in options {
        if is_set && kind != args.reward {
            let hint = format!("leave {name} out, or choose the reward that it belongs to");
            return Err(Failure::with_hint(format!("{name} says nothing to this --reward"), hint));
        }
        if !is_set && kind == args.reward && kind != RewardArg::Match {
            return Err(Failure::with_hint(
                format!("{name} is missing"),
                format!("--reward is asked for, so name it: {name}"),
            ));
        }
    }
    let mut problems = Vec::new();
    source.check(&mut problems);
    match problems.first() {
        Some(problem) => Err(Failure::with_hint(problem.clone(), "see `loam data prefer --help`".to_owned())),
        None => Ok(source),
    }
}

fn write(args: &PreferArgs, prompts: &[Prompt], pairs: &[RankedPair]) -> Result<Outcome, Failure> {
    if pairs.is_empty() {
        let hint = "draw more answers (--samples), at a higher temperature, or let them be longer (--max-tokens)";
        return Err(Failure::with_hint(
            "all answers to a prompt are equally good, everywhere".to_owned(),
            hint.to_owned(),
        ));
    }
    let asked = |pair: &RankedPair| &prompts[pair.prompt].prompt;
    let answer = |prompt: &Turns, text: &str| match prompt {
        Turns::Text(_) => json!(text),
        Turns::Messages(_) => json!([Message::assistant(text)]),
    };
    let row = |pair: &RankedPair| -> Value {
        let prompt = asked(pair);
        let said = match prompt {
            Turns::Text(text) => json!(text),
            Turns::Messages(messages) => json!(messages),
        };
        let (chosen, rejected) = (answer(prompt, &pair.chosen), answer(prompt, &pair.rejected));
        json!({
            "prompt": said, "chosen": chosen, "rejected": rejected,
            "score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected,
        })
    };
    atomic::write_with(&args.out, |file| pairs.iter().try_for_each(|pair| writeln!(file, "{}", row(pair))))?;
    let answered = pairs.chunk_by(|a, b| a.prompt == b.prompt).count();
    if args.json {
        output::json(
            &json!({"out": args.out, "prompts": prompts.len(), "with_pairs": answered, "pairs": pairs.len()}),
        )?;
    } else {
        let (pairs, some, all) = (grouped(pairs.len()), grouped(answered), grouped(prompts.len()));
        output::line(&format!("{}: {pairs} pairs of answers to {some} of {all} prompts", args.out.display()))?;
    }
    Ok(Outcome::Done)
}
