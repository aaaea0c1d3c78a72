//! How well models answer the garden's held-out questions, which of two answers they find likelier, and which of two answers a
//! reward model finds better, one JSON line per model: `cargo run -p loam-train --example garden_score -- [--wrong]
//! MODEL...`. With `--wrong` the pairs that a reward model ranks wrong come before its line. For `scripts/align_garden.sh`.

#![allow(clippy::print_stdout, reason = "the lines are this program's output")]

use std::collections::BTreeMap;
use std::path::Path;

use loam_chat::{Message, Sampling, Score};
use loam_data::Garden;
use loam_data::garden::preferences::{Pair, quality};
use loam_data::garden::{Category, Question, Split};
use loam_data::preference::{Encoder, Turns};
use loam_infer::{Generator, OpenModel};
use loam_models::Task;
use loam_tensor::Precision;
use loam_train::Prompted;
use loam_train::reward::{Answered, ModelReward, Reward};
use rayon::prelude::*;
use serde_json::{Value, json};

const QUESTIONS: usize = 400;
/// Questions with numbers, asked for the accuracy in arithmetic; as many of any kind as it takes to find them.
const SUMS: usize = 240;
const PAIRS: usize = 500;
/// Answers drawn to each question.
const DRAWS: u64 = 4;
const SEED: u64 = 42;
const MAX_TOKENS: usize = 32;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let garden = Garden::new(SEED);
    let questions = garden.questions(Split::HeldOut, QUESTIONS);
    let sums: Vec<Question> =
        garden.questions(Split::HeldOut, 10 * SUMS).into_iter().filter(is_sum).take(SUMS).collect();
    let pairs = garden.preferences(Split::HeldOut, PAIRS);
    let (flags, paths): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let shows = flags.iter().any(|flag| flag == "--wrong");
    for path in paths {
        let open = OpenModel::open(&path)?;
        let mut row = match open.model.spec().head.task {
            Task::SequenceClassification => judge(&path, &open, &pairs, shows)?,
            _ => talk(&open, &questions, &sums, &pairs)?,
        };
        row["model"] = json!(short(&path));
        println!("{row}");
    }
    Ok(())
}

fn is_sum(question: &Question) -> bool {
    matches!(question.category, Category::Arithmetic | Category::Problem)
}

/// Shares of right answers, by category, with the mean quality and length of drawn answers and of the likeliest.
fn talk(open: &OpenModel, questions: &[Question], sums: &[Question], pairs: &[Pair]) -> Result<Value, AnyError> {
    let generator = open.generator();
    let (greedy, drawn) = (Sampling::greedy(), Sampling::default());
    let likeliest = ask(&generator, questions, &Sampling { max_tokens: MAX_TOKENS, ..greedy.clone() })?;
    let mut categories: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (question, reply) in questions.iter().zip(&likeliest) {
        let right = f64::from(u8::from(question.is_right(reply)));
        categories.entry(question.category.name()).or_default().push(100.0 * right);
        categories.entry("right").or_default().push(100.0 * right);
    }
    let mut preference = Vec::new();
    for seed in 0..DRAWS {
        let sampling = Sampling { max_tokens: MAX_TOKENS, temperature: 1.0, seed, ..drawn.clone() };
        let replies = ask(&generator, questions, &sampling)?;
        preference.extend(questions.iter().zip(&replies).map(|(question, reply)| quality(question, reply)));
    }
    let numbers = ask(&generator, sums, &Sampling { max_tokens: MAX_TOKENS, ..greedy })?;
    let right_sums = sums.iter().zip(&numbers).map(|(sum, reply)| if sum.is_right(reply) { 100.0 } else { 0.0 });
    let qualities = questions.iter().zip(&likeliest).map(|(question, reply)| quality(question, reply));
    let letters = likeliest.iter().map(|reply| reply.chars().count() as f64);
    let mut row = json!({
        "preference": mean(preference),
        "quality": mean(qualities),
        "sums": mean(right_sums),
        "pairs": 100.0 * won(&generator, pairs)?,
        "letters": mean(letters),
    });
    for (name, right) in categories {
        row[name] = json!(mean(right));
    }
    Ok(row)
}

fn ask(generator: &Generator<'_>, questions: &[Question], sampling: &Sampling) -> Result<Vec<String>, AnyError> {
    let prompts: Result<Vec<_>, _> =
        questions.iter().map(|question| generator.encode_messages(&[Message::user(&question.prompt)])).collect();
    let replies = generator.write_batch(&prompts?, sampling)?;
    Ok(replies.into_iter().map(|reply| reply.text).collect())
}

/// Share of the pairs whose better answer is likelier per token.
fn won(generator: &Generator<'_>, pairs: &[Pair]) -> Result<f64, loam_chat::Error> {
    let likelihood = |pair: &Pair, answer: &Message| -> Result<f64, loam_chat::Error> {
        let before = format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", pair.prompt[0].text());
        let scored = generator.log_likelihood(&before, &format!("{}<|im_end|>", answer.text()))?;
        Ok(scored.log_likelihood / scored.tokens.max(1) as f64)
    };
    let better = |pair: &Pair| -> Result<f64, loam_chat::Error> {
        Ok(f64::from(u8::from(likelihood(pair, &pair.chosen[0])? > likelihood(pair, &pair.rejected[0])?)))
    };
    let found: Result<Vec<f64>, _> = pairs.par_iter().map(better).collect();
    Ok(mean(found?))
}

/// Share of the pairs that a reward model ranks right, in all and by what is wrong with the worse answer.
fn judge(path: &str, open: &OpenModel, pairs: &[Pair], shows: bool) -> Result<Value, AnyError> {
    let encoder = Encoder { tokenizer: &open.tokenizer, template: open.template.as_ref(), max_len: usize::MAX };
    let mut model = ModelReward::open(Path::new(path), &open.tokenizer, Precision::F32)?;
    let nothing = Prompted::default();
    let mut scores = |answer: fn(&Pair) -> &Vec<Message>| -> Result<Vec<f64>, AnyError> {
        let texts = pairs.iter().map(|pair| {
            encoder.answer(&Turns::Messages(pair.prompt.clone()), &Turns::Messages(answer(pair).clone()), 0)
        });
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let answered: Vec<_> =
            texts.iter().map(|text| Answered { prompt: &nothing, tokens: &text.ids, text: "" }).collect();
        Ok(model.rewards(&answered)?)
    };
    let (chosen, rejected) = (scores(|pair| &pair.chosen)?, scores(|pair| &pair.rejected)?);
    let mut kinds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ((pair, chosen), rejected) in pairs.iter().zip(chosen).zip(rejected) {
        let right = if chosen > rejected { 100.0 } else { 0.0 };
        kinds.entry("judged".into()).or_default().push(right);
        kinds.entry(format!("{:?}", pair.flaw).to_lowercase()).or_default().push(right);
        if shows && right == 0.0 {
            let [asked, good, bad] = [&pair.prompt[0], &pair.chosen[0], &pair.rejected[0]].map(Message::text);
            println!("{:?}: {asked} | {good} {chosen:.2} | {bad} {rejected:.2}", pair.flaw);
        }
    }
    Ok(json!(kinds.into_iter().map(|(name, right)| (name, mean(right))).collect::<BTreeMap<_, _>>()))
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

/// The run's name.
fn short(path: &str) -> String {
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').filter(|part| *part != "model").collect();
    parts.last().copied().unwrap_or(path).to_owned()
}
