//! How well models answer the garden's held-out questions, and which of two answers they find likelier:
//! `cargo run -p loam-train --example garden_score -- MODEL...`. For `scripts/align_garden.sh`.

#![allow(clippy::print_stdout, reason = "the table is this program's output")]

use loam_chat::{Message, Sampling, Score};
use loam_data::Garden;
use loam_data::garden::preferences::{Pair, quality};
use loam_data::garden::{Category, Question, Split};
use loam_infer::{Generator, OpenModel};
use rayon::prelude::*;

const QUESTIONS: usize = 400;
const PAIRS: usize = 200;
const SEED: u64 = 42;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let garden = Garden::new(SEED);
    let questions = garden.questions(Split::HeldOut, QUESTIONS);
    let pairs = garden.preferences(Split::HeldOut, PAIRS);
    println!(
        "{:24} {:>8} {:>8} {:>11} {:>9} {:>8}",
        "model", "quality", "right %", "arithmetic %", "pairs %", "letters"
    );
    for path in std::env::args().skip(1) {
        let open = OpenModel::open(&path)?;
        let generator = open.generator();
        let (mut score, mut right, mut letters, mut sums, mut right_sums) = (0.0, 0, 0, 0, 0);
        let prompts: Result<Vec<_>, _> =
            questions.iter().map(|q| generator.encode_messages(&[Message::user(&q.prompt)])).collect();
        let sampling = Sampling { max_tokens: 32, ..Sampling::greedy() };
        for (question, reply) in questions.iter().zip(generator.write_batch(&prompts?, &sampling)?) {
            score += quality(question, &reply.text);
            let is_right = question.is_right(&reply.text);
            right += usize::from(is_right);
            letters += reply.text.chars().count();
            if is_sum(question) {
                (sums, right_sums) = (sums + 1, right_sums + usize::from(is_right));
            }
        }
        let count = questions.len() as f64;
        println!(
            "{:24} {:8.3} {:8.1} {:11.1} {:9.1} {:8.1}",
            short(&path),
            score / count,
            100.0 * right as f64 / count,
            100.0 * right_sums as f64 / f64::max(f64::from(sums), 1.0),
            100.0 * won(&generator, &pairs)?,
            letters as f64 / count
        );
    }
    Ok(())
}

fn is_sum(question: &Question) -> bool {
    matches!(question.category, Category::Arithmetic | Category::Problem)
}

/// Share of the pairs whose better answer is likelier per token.
fn won(generator: &Generator<'_>, pairs: &[Pair]) -> Result<f64, loam_chat::Error> {
    let likelihood = |pair: &Pair, answer: &Message| -> Result<f64, loam_chat::Error> {
        let before = format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", pair.prompt[0].text());
        let scored = generator.log_likelihood(&before, &format!("{}<|im_end|>", answer.text()))?;
        Ok(scored.log_likelihood / scored.tokens.max(1) as f64)
    };
    let better = |pair: &Pair| -> Result<bool, loam_chat::Error> {
        Ok(likelihood(pair, &pair.chosen[0])? > likelihood(pair, &pair.rejected[0])?)
    };
    let found: Result<Vec<bool>, _> = pairs.par_iter().map(better).collect();
    Ok(found?.iter().filter(|won| **won).count() as f64 / pairs.len().max(1) as f64)
}

/// The run's name.
fn short(path: &str) -> String {
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').filter(|part| *part != "model").collect();
    parts.last().copied().unwrap_or(path).to_owned()
}
