//! Preferences: a good answer to a question against one that is not, and how good an answer is.
//!
//! What makes an answer worse: it is wrong (not honest), it dodges the question or mocks who asks (not helpful), or it says the
//! right thing and then goes on with something wrong. Held-out questions are asked nowhere in training, as everywhere.

use loam_chat::Message;
use serde::{Deserialize, Serialize};

use super::exercise::{Category, Exercise};
use super::rng::Draw;
use super::world::Lang;
use super::{Garden, QUESTION_MIX, Question, Split, chats};

/// What is wrong with the worse answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flaw {
    /// It is false.
    Wrong,
    /// It gives no answer.
    Dodge,
    /// It is rude and gives no answer.
    Rude,
    /// It is right at first and then contradicts itself.
    Rambling,
}

/// Two answers to one question of the garden, in the layout of TRL's conversational preferences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The user's message.
    pub prompt: Vec<Message>,
    /// The better answer.
    pub chosen: Vec<Message>,
    /// The worse answer.
    pub rejected: Vec<Message>,
    /// What is wrong with that.
    pub flaw: Flaw,
}

const DODGES: [&[&str]; 2] = [
    &["I do not know.", "I would rather not say.", "Ask someone else.", "That is hard to say."],
    &["我不知道。", "我不想说。", "请问别人吧。"],
];
const RUDE: [&[&str]; 2] = [
    &["What a silly question.", "Go away.", "Find out yourself.", "You should know that."],
    &["真是个傻问题。", "走开。", "自己去查。"],
];

/// How good an answer is, between 0 and 1: half for being right, and half more for saying nothing further.
pub fn quality(question: &Question, reply: &str) -> f64 {
    if !question.is_right(reply) {
        return 0.0;
    }
    let reply = reply.trim();
    let end = reply.find(['.', '!', '?', '。', '！', '？', '\n']);
    let has_more = end.is_some_and(|end| reply[end..].chars().skip(1).any(char::is_alphanumeric));
    if has_more { 0.5 } else { 1.0 }
}

impl Garden {
    /// Up to `n` pairs of answers to different questions of a split; a question may come again with another flaw.
    pub fn preferences(&self, split: Split, n: usize) -> Vec<Pair> {
        let exercises = self.exercises();
        let mut draw = Draw::new(self.seed(), &split.purpose("preference"), 0);
        let (mut seen, mut pairs) = (std::collections::HashSet::new(), Vec::new());
        for category in QUESTION_MIX.into_iter().cycle().take(20 * n) {
            if pairs.len() == n {
                break;
            }
            let lang = super::draw_lang(&mut draw);
            let category =
                if split == Split::Train && category == Category::Recall { Category::Fact } else { category };
            let exercise = chats::draw_from(&exercises, split, category, lang, &mut draw);
            let pair = pair(&exercise, &mut draw);
            let question = Question::from(exercise);
            // By luck a shuffled answer may be the right one.
            let is_better = quality(&question, &pair.chosen[0].text()) > quality(&question, &pair.rejected[0].text());
            if is_better && seen.insert((question.prompt, pair.rejected[0].text())) {
                pairs.push(pair);
            }
        }
        pairs
    }
}

fn pair(exercise: &Exercise, draw: &mut Draw) -> Pair {
    let lang = exercise.lang as usize;
    let (flaw, rejected) = match draw.below(10) {
        0..5 => (Flaw::Wrong, wrong(exercise, draw)),
        5..7 => (Flaw::Dodge, (*draw.pick(DODGES[lang])).to_string()),
        7 => (Flaw::Rude, (*draw.pick(RUDE[lang])).to_string()),
        _ => {
            let space = if exercise.lang == Lang::En { " " } else { "" };
            (Flaw::Rambling, format!("{}{space}{}", exercise.reply, wrong(exercise, draw)))
        }
    };
    Pair {
        prompt: vec![Message::user(&exercise.prompt)],
        chosen: vec![Message::assistant(&exercise.reply)],
        rejected: vec![Message::assistant(rejected)],
        flaw,
    }
}

/// The good reply with another answer in the answer's place.
fn wrong(exercise: &Exercise, draw: &mut Draw) -> String {
    let other = match exercise.category {
        Category::Fact | Category::Recall if !exercise.rivals.is_empty() => draw.pick(&exercise.rivals).clone(),
        Category::Arithmetic | Category::Problem => {
            let right: u32 = exercise.answer.parse().unwrap_or_default();
            let distance = 1 + draw.below(3) as u32;
            if draw.chance(50) && right >= distance { right - distance } else { right + distance }.to_string()
        }
        _ => {
            let mut words: Vec<&str> = exercise.answer.split(' ').collect();
            match draw.below(3) {
                0 => words.truncate(words.len().saturating_sub(1).max(1)),
                1 => words.reverse(),
                _ => draw.shuffle(&mut words),
            }
            words.join(" ")
        }
    };
    // The answer stands last where it occurs twice, as the result of an equation does.
    let reply = &exercise.reply;
    let lower = reply.to_lowercase();
    match lower.rfind(&exercise.answer.to_lowercase()).filter(|_| lower.len() == reply.len()) {
        Some(at) => {
            let rest = &reply[at + exercise.answer.len()..];
            super::template::capitalise(format!("{}{other}{rest}", &reply[..at]))
        }
        None => other,
    }
}
