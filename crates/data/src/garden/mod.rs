//! The garden: a built-in corpus about a small world, made from a seed.
//!
//! A few people, animals, things and buildings with fixed properties are drawn from the seed ([`world`]). Stories,
//! statements, questions, sums and conversations are then generated about them in English and Chinese, all consistent
//! with each other. No text is taken from anywhere. Each part has a held-out split, and every question an exact scorer,
//! so that a small model's progress can be measured within minutes: language modelling by the loss on held-out texts,
//! instruction following by the share of held-out questions answered right.

pub mod arithmetic;
mod chats;
pub mod exercise;
mod facts;
pub mod preferences;
pub mod relations;
mod rng;
pub mod score;
pub mod settings;
mod stories;
mod tasks;
mod template;
pub mod words;
pub mod world;
mod write;

use std::collections::HashSet;

use loam_chat::Message;
use serde::{Deserialize, Serialize};

use crate::hash::hash64;
pub use exercise::Category;
use exercise::{Exercise, Exercises, draw_lang};
use rng::Draw;
use settings::{FACT_PERCENT, HELD_OUT_DOCUMENTS, STORY_PERCENT};
pub use tasks::{TOPICS, TopicSentence};
pub use world::Lang;
use world::World;
pub use write::{Sizes, Written};

/// Which half of the garden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For measuring only; nothing of it occurs in training.
    HeldOut,
}

impl Split {
    fn purpose(self, what: &str) -> String {
        let name = if self == Split::Train { "train" } else { "held-out" };
        format!("{what}-{name}")
    }
}

/// The kind of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A short story.
    Story,
    /// Statements, or questions with answers.
    Fact,
    /// Numbers.
    Arithmetic,
}

/// One text for pretraining. It contains line feeds but no empty line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its kind.
    pub part: Part,
    /// Its language.
    pub lang: Lang,
    /// Its text.
    pub text: String,
}

/// One question to put to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What the user says.
    pub prompt: String,
    /// What a right reply must contain.
    pub answer: String,
    /// What it tests.
    pub category: Category,
    /// Its language.
    pub lang: Lang,
    /// Wrong answers of the same kind.
    #[serde(default)]
    pub rivals: Vec<String>,
}

impl Question {
    /// Is this reply right? See [`score::is_right`].
    pub fn is_right(&self, reply: &str) -> bool {
        score::is_right(self, reply)
    }
}

impl From<Exercise> for Question {
    fn from(exercise: Exercise) -> Question {
        let Exercise { prompt, answer, category, lang, rivals, .. } = exercise;
        Question { prompt, answer, category, lang, rivals }
    }
}

/// The corpus of one seed.
#[derive(Debug, Clone)]
pub struct Garden {
    seed: u64,
    world: World,
}

impl Garden {
    /// The garden of a seed. Equal seeds give equal bytes.
    pub fn new(seed: u64) -> Garden {
        Garden { seed, world: World::new(seed) }
    }

    /// What is true in it.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Its seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Everything that can be asked about it.
    pub fn exercises(&self) -> Exercises<'_> {
        Exercises { seed: self.seed, world: &self.world }
    }

    /// Documents of a split until their texts sum up to `budget_bytes` or just beyond.
    pub fn documents(&self, split: Split, budget_bytes: usize) -> impl Iterator<Item = Document> + '_ {
        let mut bytes = 0;
        (0..).map(|index| self.document(index)).filter(move |document| split_of(&document.text) == split).take_while(
            move |document| {
                let wanted = bytes < budget_bytes;
                bytes += document.text.len();
                wanted
            },
        )
    }

    /// The first `n` conversations of a split.
    pub fn chats(&self, split: Split, n: usize) -> Vec<Vec<Message>> {
        let exercises = self.exercises();
        (0..n as u64).map(|index| chats::chat(&exercises, split, index)).collect()
    }

    /// Up to `n` different questions of a split, all categories mixed; fewer if there are no more.
    pub fn questions(&self, split: Split, n: usize) -> Vec<Question> {
        let exercises = self.exercises();
        let mut draw = Draw::new(self.seed, &split.purpose("question"), 0);
        let (mut seen, mut questions) = (HashSet::new(), Vec::new());
        // A category with few questions runs out first; the others then make up for it.
        for category in QUESTION_MIX.into_iter().cycle().take(20 * n) {
            if questions.len() == n {
                break;
            }
            let lang = draw_lang(&mut draw);
            let category =
                if split == Split::Train && category == Category::Recall { Category::Fact } else { category };
            let exercise = chats::draw_from(&exercises, split, category, lang, &mut draw);
            if seen.insert(hash64(exercise.prompt.as_bytes())) {
                questions.push(exercise.into());
            }
        }
        questions
    }

    /// Document `index` of the endless row of documents of both splits.
    fn document(&self, index: u64) -> Document {
        let mut draw = Draw::new(self.seed, "document", index);
        let lang = draw_lang(&mut draw);
        let roll = draw.below(100) as u64;
        let (part, text) = if roll < STORY_PERCENT {
            (Part::Story, stories::tell(&self.world, lang, &mut draw))
        } else if roll < STORY_PERCENT + FACT_PERCENT {
            (Part::Fact, facts::document(&self.exercises(), lang, &mut draw))
        } else {
            (Part::Arithmetic, arithmetic::document(self.seed, &self.world, lang, &mut draw))
        };
        Document { part, lang, text }
    }
}

/// The categories of the questions, repeated as often as asked for.
const QUESTION_MIX: [Category; 12] = [
    Category::Fact,
    Category::Arithmetic,
    Category::Fact,
    Category::Recall,
    Category::Fact,
    Category::Count,
    Category::Fact,
    Category::Problem,
    Category::Fact,
    Category::Copy,
    Category::Fact,
    Category::Reverse,
];

/// The split a document belongs to, by its content, so that no text is in both.
fn split_of(text: &str) -> Split {
    if hash64(text.as_bytes()).is_multiple_of(HELD_OUT_DOCUMENTS) { Split::HeldOut } else { Split::Train }
}
