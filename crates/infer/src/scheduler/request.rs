//! What a scheduler is asked for, and what it answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loam_chat::{FinishReason, Sampling};

use crate::sampler::Choice;
use crate::sequence::Token;
use crate::{Constraint, Error};

/// Limits of a [`Scheduler`](super::Scheduler).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerSettings {
    /// Most texts written at the same time.
    pub max_running: usize,
    /// Most tokens whose keys and values are held: those that running texts may come to, and beginnings kept for later
    /// ones; whole pages of 128 that several texts begin with count once. A text that does not fit waits.
    pub kv_tokens: usize,
    /// Most tokens of one pass: longer prompts are read in pieces, between which the others go on.
    pub step_tokens: usize,
    /// Tokens of a block of a beginning that is kept for others, a power of two up to 128; 0 keeps none.
    pub prefix_block: usize,
    /// Most tokens that are guessed ahead of a text and checked together; 0 guesses none. No text changes by it.
    pub guess_tokens: usize,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self { max_running: 16, kv_tokens: 1 << 16, step_tokens: 256, prefix_block: 16, guess_tokens: 0 }
    }
}

/// A text to be written.
#[derive(Debug, Clone)]
pub struct Request {
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// How tokens are chosen, and where it ends.
    pub sampling: Sampling,
    /// What the text must obey.
    pub constraint: Option<Constraint>,
    /// End at these ids instead of the tokenizer's; with none go on to the limit.
    pub stop_ids: Option<Vec<u32>>,
    /// Whether to say how likely the prompt's own tokens are.
    pub prompt_logprobs: bool,
    /// The adapter that the text goes through, of those that were loaded.
    pub adapter: Option<AdapterId>,
    /// Whether beginnings may be taken from other requests, and kept for them. The text is the same.
    pub share_prefix: bool,
}

impl Request {
    /// Continues `prompt` as `sampling` says.
    pub fn new(prompt: Vec<u32>, sampling: Sampling) -> Self {
        let share_prefix = true;
        let (constraint, stop_ids, adapter) = (None, None, None);
        Self { prompt, sampling, constraint, stop_ids, prompt_logprobs: false, adapter, share_prefix }
    }
}

/// What becomes of a request, in this order: `Started`, `Prompt` where it was asked for, any number of `Token`, then
/// `Done`; `Failed` at any time ends it.
#[derive(Debug, Clone)]
pub enum Event {
    /// Its turn has come.
    Started {
        /// Tokens of the prompt whose keys and values were there already.
        cached_tokens: usize,
    },
    /// How likely each token of the prompt was, the first apart, which follows nothing.
    Prompt(Vec<Token>),
    /// A token was written.
    Token {
        /// The token.
        token: Token,
        /// The text that can be shown now; it may be empty. All pieces together are the text.
        text: String,
    },
    /// The end.
    Done {
        /// The last piece of text, which was held back.
        text: String,
        /// Why it ended.
        finish_reason: FinishReason,
        /// The end token, where that is why.
        end: Option<Choice>,
        /// The stop text that appeared, where one did.
        stop: Option<String>,
        /// How long it took.
        times: Times,
    },
    /// It cannot go on.
    Failed(Arc<Error>),
}

/// When a request came how far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// From its arrival to its turn.
    pub queued: Duration,
    /// From its turn to the first token.
    pub prompt: Duration,
    /// From the first token to the end.
    pub decode: Duration,
}

/// Who asked.
pub trait Listener: Send {
    /// Takes the news, without waiting for anything.
    fn hear(&mut self, event: Event);

    /// Whether nobody wants the answer any more: then the request ends without another word.
    fn is_gone(&self) -> bool {
        false
    }
}

impl<F: FnMut(Event) + Send> Listener for F {
    fn hear(&mut self, event: Event) {
        self(event);
    }
}

/// The name of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// The name of a loaded adapter; none is given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub(super) u64);

/// What a scheduler has done and is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Texts being written.
    pub running: usize,
    /// Requests whose turn has not come.
    pub waiting: usize,
    /// Tokens of the budget that are taken, by running texts and by kept beginnings.
    pub kv_tokens: usize,
    /// Those of kept beginnings.
    pub prefix_tokens: usize,
    /// Prompt tokens that might have been known already, and those that were.
    pub prefix_queries: u64,
    /// See `prefix_queries`.
    pub prefix_hits: u64,
    /// Tokens of prompts that were read.
    pub prompt_tokens: u64,
    /// Tokens that were written.
    pub written_tokens: u64,
    /// Tokens that were guessed ahead, and those of them that were right.
    pub guessed_tokens: u64,
    /// See `guessed_tokens`.
    pub accepted_tokens: u64,
    /// Passes.
    pub steps: u64,
}

/// Since when, until the first token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) arrived: Instant,
    pub(super) started: Instant,
    pub(super) first: Option<Instant>,
}

impl Clock {
    pub(super) fn times(&self) -> Times {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        Times { queued: self.started - self.arrived, prompt: first - self.started, decode: now - first }
    }
}
