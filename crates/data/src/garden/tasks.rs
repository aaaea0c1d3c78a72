//! Labelled examples about the world: passages with questions, topics of sentences, names in sentences, paraphrases.
//!
//! They are made of the same relations and plots as every other text. What is held out is decided by a hash of what an
//! example is about, as for the questions.

use std::collections::HashSet;

use super::exercise::{Exercises, draw_lang};
use super::facts;
use super::rng::Draw;
use super::settings::{HELD_OUT_TASKS, PASSAGE_FACTS};
use super::stories;
use super::template::{capitalise, fill_fact};
use super::world::{Fact, Lang, World};
use super::{Garden, Split};
use crate::hash::hash64;
use crate::labelled::contrastive::Triplet;
use crate::labelled::qa::{Answers, QaRow};
use crate::labelled::squad::is_cjk;
use crate::labelled::token_classify::TaggedWords;

/// A sentence and what it is about.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TopicSentence {
    /// The sentence.
    pub text: String,
    /// One of [`TOPICS`].
    pub label: String,
}

/// What a sentence may be about.
pub const TOPICS: [&str; 6] = ["animals", "colours", "food", "people", "places", "words"];

/// The topic of a relation by its name.
fn topic(relation: &str) -> &'static str {
    match relation {
        "pet-kind" => TOPICS[0],
        "colour" | "thing-colour" | "place-door" => TOPICS[1],
        "food" | "pet-food" => TOPICS[2],
        "home" | "thing-place" | "place-near" => TOPICS[4],
        "opposite" => TOPICS[5],
        _ => TOPICS[3],
    }
}

/// Worlds that passages tell of.
const WORLDS: u64 = 256;

impl Garden {
    /// Up to `n` different questions about passages that state the answer, in the layout of SQuAD. The question of a
    /// held-out one is asked nowhere in training.
    ///
    /// Passages tell of many worlds, in which the same people like other things: who remembers the answers of one knows
    /// nothing about the next, and has to read.
    pub fn readings(&self, split: Split, n: usize) -> Vec<QaRow> {
        let worlds: Vec<World> = (1..=WORLDS).map(|other| World::new(self.seed().wrapping_add(other))).collect();
        let key = |row: &QaRow| format!("{}\n{}", row.context, row.question);
        self.different("reading", split, n, key, |own, split, lang, draw| {
            let world = draw.pick(&worlds);
            reading(&Exercises { seed: own.seed, world }, split, lang, draw)
        })
    }

    /// Up to `n` different sentences with their topics.
    pub fn topics(&self, split: Split, n: usize) -> Vec<TopicSentence> {
        self.different("topic", split, n, |sentence| sentence.text.clone(), topic_sentence)
    }

    /// Up to `n` different sentences with a tag per word: people (`PER`), animals (`ANIMAL`), places (`LOC`) and things
    /// (`THING`). In Chinese each character is a word.
    pub fn tagged(&self, split: Split, n: usize) -> Vec<TaggedWords> {
        self.different("entity", split, n, |sentence| sentence.words.concat(), tagged)
    }

    /// Up to `n` different pairs of sentences that state the same fact, each with one that states another.
    pub fn paraphrases(&self, split: Split, n: usize) -> Vec<Triplet> {
        self.different("paraphrase", split, n, |row| format!("{}\n{}", row.anchor, row.positive), paraphrase)
    }

    /// The first `n` different examples of a split that `make` makes of successive draws.
    fn different<T>(
        &self,
        what: &str,
        split: Split,
        n: usize,
        key: impl Fn(&T) -> String,
        make: impl Fn(&Exercises, Split, Lang, &mut Draw) -> Option<T>,
    ) -> Vec<T> {
        let exercises = self.exercises();
        let (mut seen, mut examples) = (HashSet::new(), Vec::new());
        // Few draws belong to the held-out split, and a small world runs out of different sentences.
        for index in 0..100 * n as u64 {
            if examples.len() == n {
                break;
            }
            let mut draw = Draw::new(self.seed(), &split.purpose(what), index);
            let lang = draw_lang(&mut draw);
            let made = make(&exercises, split, lang, &mut draw);
            examples.extend(made.filter(|example| seen.insert(hash64(key(example).as_bytes()))));
        }
        examples
    }
}

fn reading(exercises: &Exercises, split: Split, lang: Lang, draw: &mut Draw) -> Option<QaRow> {
    let n = 1 + draw.below(PASSAGE_FACTS);
    let facts: Vec<&Fact> = (0..n).map(|_| facts::any_fact(exercises, lang, draw)).collect();
    let (context, places) = facts::state(&facts, lang, draw);
    let asked = draw.below(facts.len());
    let question = exercises.ask(facts[asked], lang, draw.below(facts[asked].relation().questions(lang).len()));
    if question.held_out != (split == Split::HeldOut) {
        return None;
    }
    let answer = places[asked].clone();
    let answers = Answers {
        answer_start: vec![context[..answer.start].chars().count()],
        text: vec![context[answer].to_string()],
    };
    Some(QaRow { context, question: question.prompt, answers })
}

fn topic_sentence(exercises: &Exercises, split: Split, lang: Lang, draw: &mut Draw) -> Option<TopicSentence> {
    let fact = facts::any_fact(exercises, lang, draw);
    let text = statement(fact, lang, draw);
    let label = topic(fact.relation().name).to_string();
    (split_of(&text) == split).then_some(TopicSentence { text, label })
}

fn paraphrase(exercises: &Exercises, split: Split, lang: Lang, draw: &mut Draw) -> Option<Triplet> {
    // The whole fact belongs to one split, in whatever words, and so does what it is set against.
    let of_split = |fact: &Fact| split_of(&format!("{} {}", fact.relation().name, fact.name.en)) == split;
    let fact = Some(facts::any_fact(exercises, lang, draw)).filter(|fact| of_split(fact))?;
    let is_other = |other: &&Fact| other.relation == fact.relation && other.subject != fact.subject && of_split(other);
    let others: Vec<&Fact> = exercises.world.facts.iter().filter(is_other).collect();
    let mut templates = fact.relation().statements(lang).to_vec();
    draw.shuffle(&mut templates);
    let say = |fact: &Fact, template: &str| fill_fact(template, fact.name.say(lang), fact.answer(lang));
    let other = (!others.is_empty()).then(|| *draw.pick(&others))?;
    Some(Triplet {
        anchor: say(fact, templates[0]),
        positive: say(fact, templates[1]),
        negative: Some(say(other, templates[0])),
    })
}

fn tagged(exercises: &Exercises, split: Split, lang: Lang, draw: &mut Draw) -> Option<TaggedWords> {
    let mut sentence = TaggedWords { words: Vec::new(), tags: Vec::new() };
    let scenes = stories::scenes(exercises.world, lang, draw);
    for (i, piece) in draw.pick(&scenes).iter().enumerate() {
        let kind = piece.key.and_then(kind);
        let text = if i == 0 { capitalise(piece.text.to_string()) } else { piece.text.to_string() };
        let words = words(&text);
        let tag = |word: usize| kind.map_or("O".into(), |kind| format!("{}-{kind}", if word == 0 { "B" } else { "I" }));
        sentence.tags.extend((0..words.len()).map(tag));
        sentence.words.extend(words);
    }
    (split_of(&sentence.words.concat()) == split).then_some(sentence)
}

/// What kind of entity a hole of a plot is filled with.
fn kind(key: &str) -> Option<&'static str> {
    match key {
        "a" | "b" => Some("PER"),
        "p" => Some("ANIMAL"),
        "t" => Some("THING"),
        _ => matches!(key.split_once('.')?.1, "home" | "place" | "near").then_some("LOC"),
    }
}

/// Words, punctuation marks and Chinese characters, each by itself.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for c in text.chars() {
        let letter = c.is_alphanumeric() && !is_cjk(c);
        match words.last_mut() {
            Some(word) if letter && open => word.push(c),
            _ if !c.is_whitespace() => words.push(c.to_string()),
            _ => {}
        }
        open = letter;
    }
    words
}

fn statement(fact: &Fact, lang: Lang, draw: &mut Draw) -> String {
    fill_fact(draw.wording(fact.relation().statements(lang)), fact.name.say(lang), fact.answer(lang))
}

/// The split of an example by what it is about.
fn split_of(what: &str) -> Split {
    if hash64(what.as_bytes()).is_multiple_of(HELD_OUT_TASKS) { Split::HeldOut } else { Split::Train }
}
