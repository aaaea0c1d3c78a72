//! `loam embed`: texts to vectors.

use crate::Outcome;
use crate::args::{EmbedArgs, PoolingArg};
use crate::commands::tokenizer::lines;
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output::{self, Colour, paint};
use crate::progress::Progress;
use crate::setup::Environment;
use crate::table::Table;
use loam_infer::{EmbedSettings, Embedder, Pooling};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Texts of a file that are held at a time.
const BLOCK: usize = 16384;
/// Most texts whose similarities fit on a screen.
const MOST_COMPARED: usize = 20;
/// Features that the table shows.
const SHOWN: usize = 5;
/// Characters of a text that the table shows.
const SHOWN_TEXT: usize = 32;

/// A line of `--json`.
#[derive(Serialize)]
struct Row<'a> {
    index: usize,
    embedding: &'a [f32],
}

pub fn run(args: &EmbedArgs, environment: &Environment) -> Result<Outcome, Failure> {
    let mut texts: Box<dyn Iterator<Item = Result<String, Failure>>> = match args.file.as_deref() {
        Some(file) => Box::new(lines(Some(file).filter(|file| *file != Path::new("-")))?),
        None => Box::new(args.texts.iter().cloned().map(Ok)),
    };
    let embedder = open(args, environment)?;
    let mut kept: Vec<(String, Vec<f32>)> = Vec::new();
    let (mut first, mut time) = (0, Duration::ZERO);
    loop {
        let block: Vec<String> = texts.by_ref().take(BLOCK).collect::<Result<_, _>>()?;
        if block.is_empty() {
            break;
        }
        let mut progress = Progress::new("embedding", block.len() as u64);
        let vectors = embedder.embed_watched(&block, &mut |done| progress.update(done as u64, "texts"))?;
        time += progress.finish();
        if args.json {
            for (index, embedding) in vectors.iter().enumerate() {
                output::json(&Row { index: first + index, embedding })?;
            }
        }
        first += block.len();
        if !args.json {
            kept.extend(block.into_iter().zip(vectors));
        }
    }
    if args.file.is_some() {
        let seconds = time.as_secs_f64();
        output::say(&format!("{first} texts in {seconds:.3} s ({:.0} per second)", first as f64 / seconds.max(1e-9)));
    }
    if !args.json {
        show(&kept)?;
    }
    Ok(Outcome::Done)
}

/// The model with the settings of the command line over those of its files.
fn open(args: &EmbedArgs, environment: &Environment) -> Result<Embedder, Failure> {
    let mut embedder = Embedder::open(model_path(&args.model, environment)?)?;
    let stated = embedder.settings().clone();
    let settings = EmbedSettings {
        pooling: if args.pooling.is_empty() { stated.pooling } else { args.pooling.iter().map(pooling).collect() },
        normalize: stated.normalize && !args.no_normalize,
        max_tokens: args.max_tokens.unwrap_or(stated.max_tokens),
    };
    embedder.set(settings)?;
    let settings = embedder.settings();
    if !embedder.is_described() {
        let how: Vec<_> = settings.pooling.iter().map(|pooling| pooling.name()).collect();
        let length = if settings.normalize { ", scaled to length 1" } else { "" };
        let text = format!("no modules.json says how {} embeds: pooling {}{length}", args.model, how.join(","));
        output::complain("note", &text);
    }
    let sees_all = |pooling: &Pooling| matches!(pooling, Pooling::LastToken | Pooling::WeightedMean);
    if embedder.model().spec().is_causal() && !settings.pooling.iter().all(sees_all) {
        let text = format!("{} is causal: its early tokens have not seen the rest of the text", args.model);
        output::complain("note", &text);
        output::complain("hint", "--pooling lasttoken takes the one that has");
    }
    Ok(embedder)
}

fn pooling(arg: &PoolingArg) -> Pooling {
    match arg {
        PoolingArg::Cls => Pooling::Cls,
        PoolingArg::Max => Pooling::Max,
        PoolingArg::Mean => Pooling::Mean,
        PoolingArg::MeanSqrtLen => Pooling::MeanSqrtLen,
        PoolingArg::Weightedmean => Pooling::WeightedMean,
        PoolingArg::Lasttoken => Pooling::LastToken,
    }
}

fn show(texts: &[(String, Vec<f32>)]) -> Result<(), Failure> {
    let Some((_, vector)) = texts.first() else { return Ok(()) };
    let mut table = Table::new(&["text", "norm", &format!("first of {} features", vector.len())]);
    for (index, (text, vector)) in texts.iter().enumerate() {
        let numbers: Vec<String> = vector.iter().take(SHOWN).map(|x| format!("{x:+.4}")).collect();
        table.row(vec![format!("{index}  {}", beginning(text)), format!("{:.4}", norm(vector)), numbers.join(" ")]);
    }
    table.lines().iter().try_for_each(|line| output::line(line))?;
    if !(2..=MOST_COMPARED).contains(&texts.len()) {
        return Ok(());
    }
    output::line("")?;
    output::line(&paint(Colour::Bold, "cosine similarity"))?;
    let numbers: Vec<String> = (0..texts.len()).map(|index| index.to_string()).collect();
    let headings: Vec<&str> = [""].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let mut table = Table::new(&headings);
    for (index, (_, a)) in texts.iter().enumerate() {
        let cells = texts.iter().map(|(_, b)| format!("{:.3}", cosine(a, b)));
        table.row([index.to_string()].into_iter().chain(cells).collect());
    }
    table.lines().iter().try_for_each(|line| output::line(line))
}

/// The first characters of a text, on one line.
fn beginning(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut shown: String = text.chars().take(SHOWN_TEXT).map(plain).collect();
    if text.chars().nth(SHOWN_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn norm(vector: &[f32]) -> f64 {
    dot(vector, vector).sqrt()
}

/// 0 for a vector without a direction.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let norms = norm(a) * norm(b);
    if norms == 0.0 { 0.0 } else { dot(a, b) / norms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_of_a_vector_with_itself_is_one_and_with_nothing_zero() {
        let a = [3.0, -4.0];
        assert_eq!((norm(&a), cosine(&a, &a), cosine(&a, &[0.0, 0.0])), (5.0, 1.0, 0.0));
        assert_eq!(cosine(&a, &[-3.0, 4.0]), -1.0);
    }

    #[test]
    fn the_beginning_of_a_text_is_one_line() {
        assert_eq!(beginning("a\tb\nc"), "a b c");
        assert_eq!(beginning(&"花".repeat(40)), format!("{}…", "花".repeat(SHOWN_TEXT)));
    }
}
