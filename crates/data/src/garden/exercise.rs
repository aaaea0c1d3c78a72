//! Everything that can be asked in the garden, each with its one right answer and the split it belongs to.
//!
//! What is held out is decided by a hash of *what* is asked, never by chance at the time of asking: a fact keeps one of
//! its phrasings for the held-out split (and a few facts keep all of them), an arithmetic pair or a word list belongs
//! to one split in whatever form it appears. So no held-out question can leak into a training text.

use super::arithmetic::Sum;
use super::rng::Draw;
use super::settings::{CHINESE_PERCENT, HELD_OUT_TASKS, UNASKED_FACTS};
use super::template::{capitalise, fill, fill_fact};
use super::words::TASK_WORDS;
use super::world::{Fact, Lang, World};
use crate::hash::hash_parts;

/// What a question tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// A fact that training asks about in other words.
    Fact,
    /// A fact that training only states and never asks about.
    Recall,
    /// A plain sum or difference.
    Arithmetic,
    /// A sum or difference told as a little story.
    Problem,
    /// Counting from one number to another.
    Count,
    /// Repeating words.
    Copy,
    /// Saying words backwards.
    Reverse,
}

impl Category {
    /// Every category, in report order.
    pub const ALL: [Category; 7] = [
        Category::Fact,
        Category::Recall,
        Category::Arithmetic,
        Category::Problem,
        Category::Count,
        Category::Copy,
        Category::Reverse,
    ];

    /// The name used in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Category::Fact => "fact",
            Category::Recall => "recall",
            Category::Arithmetic => "arithmetic",
            Category::Problem => "problem",
            Category::Count => "count",
            Category::Copy => "copy",
            Category::Reverse => "reverse",
        }
    }
}

/// One question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exercise {
    /// What it tests.
    pub category: Category,
    /// Its language.
    pub lang: Lang,
    /// The question.
    pub prompt: String,
    /// The short reply of a good assistant.
    pub reply: String,
    /// The reply in a full sentence.
    pub sentence: String,
    /// The words that a right reply must contain.
    pub answer: String,
    /// Wrong answers of the same kind; a reply that contains one of them is wrong.
    pub rivals: Vec<String>,
    /// Belongs to the held-out split.
    pub held_out: bool,
}

/// Draws exercises of one world.
pub struct Exercises<'w> {
    /// The seed of the garden.
    pub seed: u64,
    /// The world asked about.
    pub world: &'w World,
}

impl Exercises<'_> {
    /// A random exercise of a category. `None` if the draw did not suit the category or the language; draw again.
    pub fn draw(&self, category: Category, lang: Lang, draw: &mut Draw) -> Option<Exercise> {
        match category {
            Category::Fact | Category::Recall => {
                let fact = draw.pick(&self.world.facts);
                let questions = fact.relation().questions(lang).len();
                if questions == 0 || (category == Category::Recall) != self.is_unasked(fact) {
                    return None;
                }
                Some(self.ask(fact, lang, draw.below(questions)))
            }
            Category::Arithmetic => {
                let sum = Sum::draw(draw);
                Some(self.calculate(sum, lang, draw))
            }
            Category::Problem => {
                let sum = Sum::draw(draw);
                Some(self.tell_problem(sum, lang, draw))
            }
            Category::Count => Some(self.count(lang, draw)),
            Category::Copy | Category::Reverse => (lang == Lang::En).then(|| self.words(category, draw)),
        }
    }

    /// True if training never asks about `fact`.
    pub fn is_unasked(&self, fact: &Fact) -> bool {
        let key = [fact.relation as u64, fact.subject as u64];
        self.one_in(UNASKED_FACTS, "unasked", &key)
    }

    /// The question about `fact` in its `phrasing`-th form.
    pub fn ask(&self, fact: &Fact, lang: Lang, phrasing: usize) -> Exercise {
        let relation = fact.relation();
        let questions = relation.questions(lang);
        let (name, answer) = (fact.name.say(lang), fact.answer(lang));
        let key = [fact.relation as u64, fact.subject as u64, lang as u64];
        let held_out_phrasing = (self.hash("phrasing", &key) % questions.len() as u64) as usize;
        let unasked = self.is_unasked(fact);
        let mut rivals: Vec<String> = self
            .world
            .facts
            .iter()
            .filter(|other| other.relation == fact.relation && other.answer(lang) != answer)
            .map(|other| other.answer(lang).to_string())
            .collect();
        rivals.sort();
        rivals.dedup();
        Exercise {
            category: if unasked { Category::Recall } else { Category::Fact },
            lang,
            prompt: fill_fact(questions[phrasing], name, answer),
            reply: fill_fact(relation.reply[lang as usize], name, answer),
            sentence: fill_fact(relation.statements(lang)[0], name, answer),
            answer: answer.to_string(),
            rivals,
            held_out: unasked || phrasing == held_out_phrasing,
        }
    }

    fn calculate(&self, sum: Sum, lang: Lang, draw: &mut Draw) -> Exercise {
        let left = sum.left_side();
        let prompts: &[&str] = match lang {
            Lang::En => &["What is {x}?", "How much is {x}?", "Calculate {x}.", "Tell me what {x} is."],
            Lang::Zh => &["请问 {x} 等于多少？", "请计算 {x} 。", "算一算 {x} 是多少？"],
        };
        let prompt = fill(draw.wording(prompts), |_| Some(left.as_str().into()));
        let reply = end(sum.result().to_string(), lang);
        let sentence = end(sum.equation(), lang);
        self.number(Category::Arithmetic, sum, lang, [prompt, reply, sentence])
    }

    fn tell_problem(&self, sum: Sum, lang: Lang, draw: &mut Draw) -> Exercise {
        let problem = sum.problem(self.world, lang, draw);
        let sentence = end(sum.equation(), lang);
        self.number(Category::Problem, sum, lang, [problem.question, sentence.clone(), sentence])
    }

    fn number(&self, category: Category, sum: Sum, lang: Lang, [prompt, reply, sentence]: [String; 3]) -> Exercise {
        let held_out = sum.is_held_out(self.seed);
        let answer = sum.result().to_string();
        Exercise { category, lang, prompt, reply, sentence, answer, rivals: Vec::new(), held_out }
    }

    fn count(&self, lang: Lang, draw: &mut Draw) -> Exercise {
        let from = draw.between(1, 15);
        let to = from + draw.between(2, 6);
        let (a, b) = (from.to_string(), to.to_string());
        let template = match lang {
            Lang::En => draw.wording(&["Count from {a} to {b}.", "Please count from {a} up to {b}."]),
            Lang::Zh => draw.wording(&["请从 {a} 数到 {b} 。", "从 {a} 开始，数到 {b} 。"]),
        };
        let prompt = fill(template, |key| Some(if key == "a" { a.as_str() } else { b.as_str() }.into()));
        let answer: Vec<String> = (from..=to).map(|n| n.to_string()).collect();
        let held_out = self.one_in(HELD_OUT_TASKS, "count", &[u64::from(from), u64::from(to)]);
        task(Category::Count, lang, prompt, answer.join(" "), held_out)
    }

    fn words(&self, category: Category, draw: &mut Draw) -> Exercise {
        let mut order: Vec<usize> = (0..TASK_WORDS.len()).collect();
        draw.shuffle(&mut order);
        order.truncate(2 + draw.below(2));
        let key: Vec<u64> = order.iter().map(|&i| i as u64).collect();
        let mut words: Vec<&str> = order.iter().map(|&i| TASK_WORDS[i]).collect();
        let said = words.join(" ");
        let templates: [&str; 2] = match category {
            Category::Copy => ["Repeat after me: {x}.", "Say these words: {x}."],
            _ => ["Say these words backwards: {x}.", "Reverse the order: {x}."],
        };
        let prompt = fill(draw.wording(&templates), |_| Some(said.as_str().into()));
        if category == Category::Reverse {
            words.reverse();
        }
        let held_out = self.one_in(HELD_OUT_TASKS, category.name(), &key);
        task(category, Lang::En, prompt, words.join(" "), held_out)
    }

    fn hash(&self, purpose: &str, key: &[u64]) -> u64 {
        let bytes: Vec<u8> = key.iter().flat_map(|n| n.to_le_bytes()).collect();
        hash_parts(&[&self.seed.to_le_bytes(), purpose.as_bytes(), &bytes])
    }

    fn one_in(&self, n: u64, purpose: &str, key: &[u64]) -> bool {
        self.hash(purpose, key).is_multiple_of(n)
    }
}

/// A language for the next thing to say.
pub fn draw_lang(draw: &mut Draw) -> Lang {
    if draw.chance(CHINESE_PERCENT) { Lang::Zh } else { Lang::En }
}

fn task(category: Category, lang: Lang, prompt: String, answer: String, held_out: bool) -> Exercise {
    let reply = end(capitalise(answer.clone()), lang);
    Exercise { category, lang, prompt, sentence: reply.clone(), reply, answer, rivals: Vec::new(), held_out }
}

fn end(text: String, lang: Lang) -> String {
    text + if lang == Lang::En { "." } else { "。" }
}
