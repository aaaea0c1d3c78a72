//! Conversations: questions of every category and small talk, sometimes after a system message that asks for whole
//! sentences.

use loam_chat::Message;

use super::Split;
use super::exercise::{Category, Exercise, Exercises, draw_lang};
use super::rng::Draw;
use super::settings::{CHAT_ARITHMETIC_PERCENT, CHAT_FACT_PERCENT, CHAT_TASK_PERCENT, MAX_TURNS, SYSTEM_PERCENT};
use super::world::Lang;

const SMALL_TALK: [&[(&str, &str)]; 2] = [
    &[
        ("Hello!", "Hello! How can I help you?"),
        ("Hi there.", "Hello! How can I help you?"),
        ("Good morning.", "Good morning! What would you like to know?"),
        ("Good night.", "Good night! Sleep well."),
        ("How are you?", "I am fine, thank you. And you?"),
        ("Who are you?", "I am a small language model from the garden."),
        ("What is your name?", "My name is Loam."),
        ("What can you do?", "I can answer questions, count and calculate."),
        ("Thank you.", "You are welcome."),
        ("Thanks a lot!", "You are welcome."),
        ("Goodbye.", "Goodbye! See you soon."),
        ("Can you help me?", "Yes. What would you like to know?"),
        ("I am sad.", "I am sorry to hear that. Shall we count together?"),
        ("I am happy today.", "I am glad to hear that."),
        ("Do you like stories?", "Yes, I grew up on stories."),
    ],
    &[
        ("你好！", "你好！有什么可以帮你？"),
        ("早上好。", "早上好！你想知道什么？"),
        ("晚安。", "晚安！好好睡。"),
        ("你是谁？", "我是花园里的一个小语言模型。"),
        ("你叫什么名字？", "我叫Loam。"),
        ("你会做什么？", "我会回答问题，会数数，也会计算。"),
        ("谢谢！", "不客气。"),
        ("再见。", "再见！"),
    ],
];

const PLAIN_SYSTEM: [&str; 2] = ["You are a helpful assistant.", "你是一个乐于助人的助手。"];
const SENTENCE_SYSTEM: [&str; 2] = ["Answer in a full sentence.", "请用完整的句子回答。"];

/// Conversation `index` of a split.
pub fn chat(exercises: &Exercises, split: Split, index: u64) -> Vec<Message> {
    let mut draw = Draw::new(exercises.seed, &split.purpose("chat"), index);
    let lang = draw_lang(&mut draw);
    let mut messages = Vec::new();
    let mut sentences = false;
    if draw.chance(SYSTEM_PERCENT) {
        sentences = draw.chance(50);
        let system = if sentences { SENTENCE_SYSTEM } else { PLAIN_SYSTEM };
        messages.push(Message::system(system[lang as usize]));
    }
    for _ in 0..1 + draw.below(MAX_TURNS as usize) {
        match turn_category(&mut draw) {
            Some(category) => {
                let exercise = draw_from(exercises, split, category, lang, &mut draw);
                let reply = if sentences { exercise.sentence } else { exercise.reply };
                messages.push(Message::user(exercise.prompt));
                messages.push(Message::assistant(reply));
            }
            None => {
                let (said, reply) = *draw.pick(SMALL_TALK[lang as usize]);
                messages.push(Message::user(said));
                messages.push(Message::assistant(reply));
            }
        }
    }
    messages
}

/// The category of a turn; `None` is small talk.
fn turn_category(draw: &mut Draw) -> Option<Category> {
    let roll = draw.below(100) as u64;
    let arithmetic = CHAT_FACT_PERCENT + CHAT_ARITHMETIC_PERCENT;
    if roll < CHAT_FACT_PERCENT {
        Some(Category::Fact)
    } else if roll < arithmetic {
        Some(if draw.chance(60) { Category::Arithmetic } else { Category::Problem })
    } else if roll < arithmetic + CHAT_TASK_PERCENT {
        Some(*draw.pick(&[Category::Count, Category::Copy, Category::Reverse]))
    } else {
        None
    }
}

/// An exercise that belongs to `split`. A category that does not exist in `lang` gives counting instead.
pub fn draw_from(exercises: &Exercises, split: Split, category: Category, lang: Lang, draw: &mut Draw) -> Exercise {
    let words = matches!(category, Category::Copy | Category::Reverse);
    let category = if words && lang == Lang::Zh { Category::Count } else { category };
    loop {
        if let Some(exercise) = exercises.draw(category, lang, draw)
            && exercise.held_out == (split == Split::HeldOut)
        {
            return exercise;
        }
    }
}
