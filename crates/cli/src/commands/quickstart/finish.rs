//! The end of the road: a table, and someone to talk to.

use super::Stage;
use super::exam::{Score, replies};
use crate::commands::chat::Session;
use crate::commands::data::texts;
use crate::failure::Failure;
use crate::output::{self, Colour, paint_talk};
use crate::signals::Signals;
use crate::table::Table;
use loam_chat::{Message, Sampling};
use loam_data::garden::{Category, Question};
use loam_formats::atomic;
use loam_infer::OpenModel;
use loam_train::bars_svg;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// Questions that are answered where nobody is there to ask.
const DEMO_QUESTIONS: usize = 3;
/// What a model of the user's text is asked instead.
const SMALL_TALK: [&str; 3] = ["Hello!", "What is your name?", "What can you do?"];
/// Length of a continuation of the user's text, in tokens.
const DEMO_TOKENS: usize = 60;
/// Characters of the user's text that a continuation starts from.
const DEMO_PROMPT: usize = 60;

/// Prints what each stage came to.
pub fn table(stages: &[Stage]) -> Result<(), Failure> {
    let is_scored = stages.iter().any(|stage| stage.score.is_some());
    let is_aligned = stages.iter().any(|stage| stage.pairs.is_some());
    let categories: Vec<&str> = Category::ALL.iter().map(|category| category.name()).collect();
    let mut headings = vec!["stage", "held-out loss", "bits/byte"];
    if is_scored {
        headings.extend(["questions right", "quality"]);
        headings.extend(&categories);
    }
    if is_aligned {
        headings.extend(["pairs ranked", "second task"]);
    }
    let mut table = Table::new(&headings);
    for stage in stages {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
        let percent = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:.0} %", 100.0 * value));
        let mut row = vec![
            stage.name.to_owned(),
            number(stage.evaluation.as_ref().map(|row| row.eval_loss)),
            number(stage.evaluation.as_ref().and_then(|row| row.eval_bits_per_byte)),
        ];
        if is_scored {
            row.push(percent(stage.score.as_ref().map(|score| score.total())));
            row.push(stage.score.as_ref().map_or("-".into(), |score| format!("{:.2}", score.quality())));
            row.extend(
                Category::ALL.iter().map(|&category| percent(stage.score.as_ref().and_then(|s| s.of(category)))),
            );
        }
        if is_aligned {
            row.push(percent(stage.pairs));
            let points = |(before, after): (f64, f64)| format!("{:.0} > {:.0} %", 100.0 * before, 100.0 * after);
            row.push(stage.topics.map_or("-".into(), points));
        }
        table.row(row);
    }
    table.lines().iter().try_for_each(|line| output::line(line))
}

/// Draws what each stage came to into `road.svg` of a directory; nothing where nothing was scored.
pub fn picture(stages: &[Stage], dir: &Path) -> Result<Option<PathBuf>, Failure> {
    let mut bars: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for stage in stages {
        let score = stage.score.as_ref();
        let task = stage.topics.map(|(_, after)| after);
        bars.push((stage.name.into(), vec![score.map(Score::total), score.map(Score::quality), stage.pairs, task]));
    }
    if stages.iter().all(|stage| stage.score.is_none()) {
        return Ok(None);
    }
    let series = ["questions right", "answer quality", "pairs ranked right", "second task right"];
    let path = dir.join("road.svg");
    atomic::write_file(&path, bars_svg(&series, &bars).as_bytes())?;
    Ok(Some(path))
}

/// A chat where someone is there to talk, else a few questions with their answers. A model of the user's text shows
/// first how it goes on.
pub fn talk(model: &Path, questions: &[Question], text: Option<&Path>, signals: &Signals) -> Result<(), Failure> {
    let open = OpenModel::open(model)?;
    if let Some(text) = text {
        continue_text(&model.join("../../pretrain/model"), text)?;
    }
    let asked: Vec<&str> = match text {
        None => questions.iter().take(DEMO_QUESTIONS).map(|question| question.prompt.as_str()).collect(),
        // It has read nothing about the garden's people.
        Some(_) => SMALL_TALK.to_vec(),
    };
    if io::stdin().is_terminal() && output::stdout_is_terminal() {
        output::say(&paint_talk(Colour::Bold, "\nNow talk to it. /help shows what else you can type, /quit ends."));
        output::say(&paint_talk(Colour::Dim, &format!("For example: {}", asked[0])));
        signals.talk();
        let interrupt = signals.stop_flag();
        return Session::new(open.generator(), Sampling::greedy(), None, &interrupt).converse();
    }
    let generator = open.generator();
    let prompts = asked.iter().map(|text| generator.encode_messages(&[Message::user(*text)]));
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    for (question, reply) in asked.iter().zip(replies(&generator, &prompts)?) {
        let reply = if reply.is_empty() { "(nothing)".to_owned() } else { reply };
        output::line(&format!("Q: {question}\nA: {reply}"))?;
    }
    output::say(&format!("\nTalk to it: loam chat {}", model.display()));
    Ok(())
}

/// Shows how the pretrained model goes on from the beginning of the last part of the text, which it has not read.
fn continue_text(base: &Path, text: &Path) -> Result<(), Failure> {
    let Some(content) = texts(&[text.to_string_lossy().into_owned()], "text")?.last().transpose()? else {
        return Ok(());
    };
    let start = content.ceil_char_boundary(content.len() - content.len() / 40);
    let prompt: String = content[start..].chars().take(DEMO_PROMPT).collect();
    let open = OpenModel::open(base)?;
    let generator = open.generator();
    let sampling = Sampling { temperature: 0.8, max_tokens: DEMO_TOKENS, ..Sampling::default() };
    let written = generator.write(&generator.encode_prompt(&prompt)?, &sampling, &mut |_| {})?;
    output::line(&format!("\nThe text: {prompt}\nThe model goes on: {}", written.completion.text))
}
