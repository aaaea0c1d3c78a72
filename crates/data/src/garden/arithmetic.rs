//! Sums and differences with small numbers: as equations, worked step by step over the ten, and as word problems.

use super::rng::Draw;
use super::settings::{HELD_OUT_PAIRS, MAX_NUMBER};
use super::template::fill;
use super::words::Term;
use super::world::{Lang, World};
use crate::hash::hash_parts;

/// Addition or subtraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `+`
    Add,
    /// `-`
    Subtract,
}

/// Two numbers and what to do with them; the result is never negative nor above [`MAX_NUMBER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sum {
    /// What to do.
    pub operation: Operation,
    /// Left number.
    pub a: u32,
    /// Right number.
    pub b: u32,
}

/// A word problem.
pub struct Problem {
    /// The story with its question.
    pub question: String,
    /// The story with its solution, as a text.
    pub solution: String,
}

const COUNTED: [Term; 8] = [
    Term { en: "shells", zh: "贝壳" },
    Term { en: "coins", zh: "硬币" },
    Term { en: "stones", zh: "石头" },
    Term { en: "nuts", zh: "坚果" },
    Term { en: "flowers", zh: "花" },
    Term { en: "stamps", zh: "邮票" },
    Term { en: "marbles", zh: "弹珠" },
    Term { en: "cards", zh: "卡片" },
];

impl Sum {
    /// A random sum or difference; subtraction is as likely as addition.
    pub fn draw(draw: &mut Draw) -> Sum {
        let whole = draw.between(0, MAX_NUMBER);
        let part = draw.between(0, whole);
        if draw.chance(50) {
            Sum { operation: Operation::Add, a: part, b: whole - part }
        } else {
            Sum { operation: Operation::Subtract, a: whole, b: part }
        }
    }

    /// A random one that belongs to training.
    pub fn draw_trained(seed: u64, draw: &mut Draw) -> Sum {
        loop {
            let sum = Sum::draw(draw);
            if !sum.is_held_out(seed) {
                return sum;
            }
        }
    }

    /// The result.
    pub fn result(self) -> u32 {
        match self.operation {
            Operation::Add => self.a + self.b,
            Operation::Subtract => self.a - self.b,
        }
    }

    /// `8 + 7`
    pub fn left_side(self) -> String {
        let sign = if self.operation == Operation::Add { '+' } else { '-' };
        format!("{} {sign} {}", self.a, self.b)
    }

    /// `8 + 7 = 15`
    pub fn equation(self) -> String {
        format!("{} = {}", self.left_side(), self.result())
    }

    /// True if this pair, in this order, appears nowhere in training.
    ///
    /// Its twin does: `7 + 8` for `8 + 7`, `15 - 8` for `15 - 7`. Pairs with 0, 1, 10 or a sum of ten stay in training,
    /// because the worked steps are made of them.
    pub fn is_held_out(self, seed: u64) -> bool {
        let (whole, parts) = match self.operation {
            Operation::Add => (self.a + self.b, [self.a, self.b]),
            Operation::Subtract => (self.a, [self.b, self.a - self.b]),
        };
        if whole == 10 || parts[0] == parts[1] || parts.iter().any(|&n| n < 2 || n == 10) {
            return false;
        }
        let (low, high) = (parts[0].min(parts[1]), parts[0].max(parts[1]));
        let key = [self.operation as u8, low as u8, high as u8];
        let hash = hash_parts(&[&seed.to_le_bytes(), b"pair", &key]);
        // One unordered pair in half as many is chosen, and one of its two orders is held out.
        let chosen = hash.is_multiple_of(HELD_OUT_PAIRS / 2);
        chosen && (parts[0] == low) == (hash >> 32).is_multiple_of(2)
    }

    /// The way over the ten, if there is one: `8 + 7: 8 + 2 = 10, 10 + 5 = 15, so 8 + 7 = 15.`
    pub fn steps(self) -> Option<String> {
        let first = match self.operation {
            Operation::Add if self.a < 10 && self.b < 10 && self.a + self.b > 10 => 10 - self.a,
            Operation::Subtract if self.a > 10 && self.b < 10 && self.a - self.b < 10 => self.a - 10,
            _ => return None,
        };
        let to_ten = Sum { b: first, ..self };
        let onward = Sum { a: 10, b: self.b - first, ..self };
        Some(format!("{}: {}, {}, so {}.", self.left_side(), to_ten.equation(), onward.equation(), self.equation()))
    }

    /// A word problem about two friends.
    pub fn problem(self, world: &World, lang: Lang, draw: &mut Draw) -> Problem {
        let hero = &world.people[draw.below(world.people.len())];
        let friend = world.people[hero.friend].name.say(lang);
        let counted = draw.pick(&COUNTED).say(lang);
        let (stories, question, solution): ([&str; 2], &str, &str) = match (lang, self.operation) {
            (Lang::En, Operation::Add) => (
                ["{a} has {x} {c} and finds {y} more.", "{a} has {x} {c}. {b} brings {y} more."],
                "How many {c} does {a} have now?",
                "{e}, so {a} has {r} {c}.",
            ),
            (Lang::En, Operation::Subtract) => (
                ["{a} has {x} {c} and loses {y} of them.", "{a} has {x} {c}. {b} takes {y} of them."],
                "How many {c} does {a} have now?",
                "{e}, so {a} has {r} {c}.",
            ),
            (Lang::Zh, Operation::Add) => (
                ["{a}有 {x} 个{c}，又找到 {y} 个。", "{a}有 {x} 个{c}，{b}又给了 {y} 个。"],
                "{a}现在有几个{c}？",
                "{e}，所以{a}有 {r} 个{c}。",
            ),
            (Lang::Zh, Operation::Subtract) => (
                ["{a}有 {x} 个{c}，丢了 {y} 个。", "{a}有 {x} 个{c}，{b}拿走 {y} 个。"],
                "{a}现在有几个{c}？",
                "{e}，所以{a}有 {r} 个{c}。",
            ),
        };
        let value = |key: &str| {
            Some(match key {
                "a" => hero.name.say(lang).into(),
                "b" => friend.into(),
                "c" => counted.into(),
                "x" => self.a.to_string().into(),
                "y" => self.b.to_string().into(),
                "r" => self.result().to_string().into(),
                "e" => self.equation().into(),
                _ => return None,
            })
        };
        let story = fill(draw.wording(&stories), value);
        let space = if lang == Lang::En { " " } else { "" };
        Problem {
            question: format!("{story}{space}{}", fill(question, value)),
            solution: format!("{story}{space}{}", fill(solution, value)),
        }
    }
}

/// A text about numbers for training or validation, with no held-out pair in it.
pub fn document(seed: u64, world: &World, lang: Lang, draw: &mut Draw) -> String {
    match (lang, draw.below(5)) {
        (Lang::En, 0) => {
            let from = draw.between(0, 12);
            let to = from + draw.between(4, 10);
            let numbers: Vec<String> = (from..=to).map(|n| n.to_string()).collect();
            format!("{}.", numbers.join(" "))
        }
        (Lang::En, 1 | 2) => lines(3, || {
            loop {
                if let Some(steps) = Sum::draw_trained(seed, draw).steps() {
                    return steps;
                }
            }
        }),
        (Lang::En, 3) | (Lang::Zh, 0..=1) => lines(8, || Sum::draw_trained(seed, draw).equation()),
        _ => lines(3, || Sum::draw_trained(seed, draw).problem(world, lang, draw).solution),
    }
}

fn lines(count: usize, mut line: impl FnMut() -> String) -> String {
    let lines: Vec<String> = (0..count).map(|_| line()).collect();
    lines.join("\n")
}
