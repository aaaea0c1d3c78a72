//! Text for tests: seeded, varied, and nasty where it should be.
#![allow(dead_code, reason = "each test file uses a part of this module")]

/// A small deterministic generator (xorshift).
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

const SYLLABLES: [&str; 12] = ["ka", "lo", "mi", "ren", "tas", "vor", "el", "un", "ing", "ed", "s", "ly"];
const SENTENCES: [&str; 4] =
    ["The fox doesn't see the boat.", "Mia has 12 apples and 3 pears.", "小猫在花园里睡觉。", "Où est l'été, Zoë?"];

/// Lines of made-up words, sentences, numbers and Chinese, with some empty lines.
pub fn prose(seed: u64, lines: usize) -> String {
    let mut rng = Rng(seed);
    let mut text = String::new();
    for _ in 0..lines {
        for i in 0..1 + rng.below(9) {
            text.push_str(if i > 0 { " " } else { "" });
            match rng.below(10) {
                0 => text.push_str(SENTENCES[rng.below(SENTENCES.len())]),
                1 => text.push_str(&rng.below(100_000).to_string()),
                _ => (0..1 + rng.below(3)).for_each(|_| text.push_str(SYLLABLES[rng.below(SYLLABLES.len())])),
            }
        }
        text.push_str(if rng.below(8) == 0 { ".\n\n" } else { "\n" });
    }
    text
}

const NASTY: [&str; 44] = [
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{2028}",
    "\u{85}",
    "a",
    "Z",
    "word",
    "été",
    "e\u{301}",
    "ſ",
    "K",
    "'s",
    "'S",
    "'ll",
    "'Re",
    "'ſ",
    "'",
    "\"",
    "0",
    "7",
    "123",
    "４",
    "½",
    "Ⅷ",
    "你",
    "好吗",
    "。",
    "!",
    "...",
    "<|",
    "|>",
    "😀",
    "👨‍👩‍👧",
    "\u{200d}",
    "_",
    "\u{0}",
];

/// Random pieces that exercise every corner of a split.
pub fn nasty(rng: &mut Rng, pieces: usize) -> String {
    (0..pieces).map(|_| NASTY[rng.below(NASTY.len())]).collect()
}
