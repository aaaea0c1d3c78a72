//! How hard the garden is: every number that makes the questions easier or harder to learn is here.
//!
//! The defaults are chosen so that a byte-level BPE model of about one million parameters, trained for two to three
//! minutes on two CPU cores, answers most held-out questions after instruction tuning and few before it.

/// Bytes of training text that [`super::Garden::write`] writes and `quickstart` trains on.
pub const TRAIN_BYTES: usize = 3_000_000;
/// Bytes of held-out text written beside it.
pub const VALID_BYTES: usize = 150_000;
/// Training conversations.
pub const TRAIN_CHATS: usize = 12_000;
/// Training examples of each labelled task.
pub const TASK_EXAMPLES: usize = 2_000;
/// Held-out examples of each labelled task.
pub const TASK_HELD_OUT: usize = 200;
/// Most facts that a passage to be asked about states. Some state one alone: from those a model learns what a question
/// asks for, and from the others to find it.
pub const PASSAGE_FACTS: usize = 5;
/// Held-out questions.
pub const QUESTIONS: usize = 400;

/// One document in this many goes to the held-out split.
pub const HELD_OUT_DOCUMENTS: u64 = 20;
/// One word task (copy, reverse, count) in this many goes to the held-out split.
pub const HELD_OUT_TASKS: u64 = 8;
/// One arithmetic pair in this many (of those that may be held out at all) goes to the held-out split.
pub const HELD_OUT_PAIRS: u64 = 8;
/// One fact in this many is never asked about in training: it is only stated in running text.
pub const UNASKED_FACTS: u64 = 12;

/// Sums and minuends go up to this number.
pub const MAX_NUMBER: u32 = 20;

/// Of a hundred documents, how many are in Chinese.
pub const CHINESE_PERCENT: u64 = 20;
/// Of a hundred documents, how many are stories; after them come facts, and the rest is arithmetic.
pub const STORY_PERCENT: u64 = 35;
/// Of a hundred documents, how many are facts.
pub const FACT_PERCENT: u64 = 45;
/// Of a hundred fact documents, how many are questions with answers rather than statements.
pub const ASKED_FACT_PERCENT: u64 = 10;

/// Of a hundred chat turns: questions about facts, arithmetic, word tasks; the rest is small talk.
pub const CHAT_FACT_PERCENT: u64 = 42;
/// Of a hundred chat turns, how many are arithmetic.
pub const CHAT_ARITHMETIC_PERCENT: u64 = 27;
/// Of a hundred chat turns, how many are word tasks.
pub const CHAT_TASK_PERCENT: u64 = 24;
/// Of a hundred conversations, how many start with a system message.
pub const SYSTEM_PERCENT: u64 = 20;
/// The most user turns in one conversation.
pub const MAX_TURNS: u64 = 3;
