//! Texts that state facts: portraits of one subject, mixed lists, and questions with their answers.

use std::ops::Range;

use super::exercise::Exercises;
use super::relations::Subject;
use super::rng::Draw;
use super::settings::ASKED_FACT_PERCENT;
use super::template::{fact_pieces, join};
use super::world::{Fact, Lang};

/// How many facts a mixed list states and how many questions a questionnaire asks.
const LIST_LENGTH: usize = 6;

/// A text of facts that asks no held-out question.
pub fn document(exercises: &Exercises, lang: Lang, draw: &mut Draw) -> String {
    if draw.chance(ASKED_FACT_PERCENT) {
        questionnaire(exercises, lang, draw)
    } else if draw.chance(60) {
        portrait(exercises, lang, draw)
    } else {
        let facts: Vec<&Fact> = (0..LIST_LENGTH).map(|_| any_fact(exercises, lang, draw)).collect();
        state(&facts, lang, draw).0
    }
}

/// Everything about one person, thing, animal or building, in random order and words.
fn portrait(exercises: &Exercises, lang: Lang, draw: &mut Draw) -> String {
    let fact = any_fact(exercises, lang, draw);
    let world = exercises.world;
    let kind = fact.relation().subject;
    let mut facts: Vec<&Fact> = world.about(kind, fact.subject).collect();
    if kind == Subject::Person {
        let owned_by = |owner: usize| owner == fact.subject;
        for (index, _) in world.things.iter().enumerate().filter(|(_, thing)| owned_by(thing.owner)) {
            facts.extend(world.about(Subject::Thing, index));
        }
        for (index, _) in world.pets.iter().enumerate().filter(|(_, pet)| owned_by(pet.owner)) {
            facts.extend(world.about(Subject::Pet, index));
        }
    }
    facts.retain(|fact| !fact.relation().statements(lang).is_empty());
    while facts.len() < 3 {
        facts.push(any_fact(exercises, lang, draw));
    }
    draw.shuffle(&mut facts);
    state(&facts, lang, draw).0
}

/// Questions and short answers, from training's share of the questions.
fn questionnaire(exercises: &Exercises, lang: Lang, draw: &mut Draw) -> String {
    let (ask, answer) = if lang == Lang::En { ("Question: ", "Answer: ") } else { ("问：", "答：") };
    let mut lines = Vec::new();
    while lines.len() < LIST_LENGTH {
        let fact = any_fact(exercises, lang, draw);
        let exercise = exercises.ask(fact, lang, draw.below(fact.relation().questions(lang).len()));
        if !exercise.held_out {
            lines.push(format!("{ask}{}\n{answer}{}", exercise.prompt, exercise.reply));
        }
    }
    lines.join("\n")
}

/// A fact that can be stated in `lang`.
pub fn any_fact<'w>(exercises: &Exercises<'w>, lang: Lang, draw: &mut Draw) -> &'w Fact {
    loop {
        let fact = draw.pick(&exercises.world.facts);
        if !fact.relation().statements(lang).is_empty() {
            return fact;
        }
    }
}

/// A statement of each fact, and where in the text its answer stands.
pub fn state(facts: &[&Fact], lang: Lang, draw: &mut Draw) -> (String, Vec<Range<usize>>) {
    let (mut text, mut answers) = (String::new(), Vec::new());
    for fact in facts {
        if !text.is_empty() && lang == Lang::En {
            text.push(' ');
        }
        let template = draw.wording(fact.relation().statements(lang));
        let pieces = fact_pieces(template, fact.name.say(lang), fact.answer(lang));
        let before: usize =
            pieces.iter().take_while(|piece| piece.key != Some("o")).map(|piece| piece.text.len()).sum();
        let start = text.len() + before;
        answers.push(start..start + fact.answer(lang).len());
        text.push_str(&join(&pieces));
    }
    (text, answers)
}
