//! One text while it is written: what happens between the logits of a position and the next token's, and between a token
//! and its text. The decoding loop and the scheduler both go through here, so that they cannot disagree.

use loam_chat::{FinishReason, Sampling};
use loam_tokenizer::{DecodeStream, Tokenizer};

use crate::Error;
use crate::sampler::{Choice, Sampler, top_logprobs};
use crate::stop::StopMatcher;

/// A token and how likely it was under the model itself, before any setting changed the distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The most likely tokens in its place and their log-probabilities, as many as [`Sampling::top_logprobs`] says.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// What a step of a sequence gave.
#[derive(Debug)]
pub(crate) enum Step {
    /// A token, and why it was the last one if it was.
    Token(Token, Option<FinishReason>),
    /// An end token, which is not part of the text.
    Ended(Choice),
}

/// The tokens of one text.
#[derive(Debug)]
pub(crate) struct Sequence {
    sampler: Sampler,
    stop_ids: Vec<u32>,
    top_logprobs: usize,
    /// Most tokens after the start.
    limit: usize,
    start: usize,
    /// The start, and what was chosen since.
    seen: Vec<u32>,
}

impl Sequence {
    /// A text that begins with `start`, in a context of so many tokens.
    pub(crate) fn new(
        sampler: Sampler,
        sampling: &Sampling,
        stop_ids: &[u32],
        start: Vec<u32>,
        context: usize,
    ) -> Self {
        Self {
            sampler,
            stop_ids: stop_ids.to_vec(),
            top_logprobs: sampling.top_logprobs,
            limit: sampling.max_tokens.min(context.saturating_sub(start.len())),
            start: start.len(),
            seen: start,
        }
    }

    /// All tokens so far.
    pub(crate) fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// How many of them the text began with.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// How many were chosen since.
    pub(crate) fn written(&self) -> usize {
        self.seen.len() - self.start
    }

    /// How many may follow at most.
    pub(crate) fn left(&self) -> usize {
        self.limit.saturating_sub(self.written())
    }

    /// What would choose the next tokens, for trying out what another model says: it draws the same numbers.
    pub(crate) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Whether a token ends the text.
    pub(crate) fn is_end(&self, token: u32) -> bool {
        self.stop_ids.contains(&token)
    }

    /// Chooses the next token from the logits of the last one.
    pub(crate) fn advance(&mut self, logits: &[f32]) -> Result<Step, Error> {
        let Choice { token, logprob } = self.sampler.choose(logits, &self.seen, self.written() as u64)?;
        if self.is_end(token) {
            return Ok(Step::Ended(Choice { token, logprob }));
        }
        self.seen.push(token);
        let end = if self.sampler.is_finished() {
            Some(FinishReason::Stop)
        } else {
            (self.written() >= self.limit).then_some(FinishReason::Length)
        };
        Ok(Step::Token(self.rated(logits, token, logprob), end))
    }

    /// A token of the start, given the logits of the one before it.
    pub(crate) fn given(&self, logits: &[f32], token: u32) -> Token {
        self.rated(logits, token, crate::sampler::logprob(logits, token) as f32)
    }

    fn rated(&self, logits: &[f32], id: u32, logprob: f32) -> Token {
        Token { id, logprob, top_logprobs: top_logprobs(logits, self.top_logprobs) }
    }
}

/// The text of tokens as they come, up to a stop text.
#[derive(Debug)]
pub(crate) struct TextStream<'a> {
    stream: Option<DecodeStream<'a>>,
    stop: StopMatcher,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, sampling: &Sampling) -> Self {
        Self { stream: Some(tokenizer.decode_stream(true)), stop: StopMatcher::new(&sampling.stop) }
    }

    /// What can be shown once `token` is there: whole characters that no stop text begins with.
    pub(crate) fn push(&mut self, token: u32) -> String {
        let new = self.stream.as_mut().and_then(|stream| stream.step(token));
        new.map_or_else(String::new, |new| self.stop.push(&new))
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> String {
        let rest = self.stream.take().and_then(DecodeStream::finish).unwrap_or_default();
        let mut shown = self.stop.push(&rest);
        shown.push_str(&self.stop.finish());
        shown
    }

    /// The stop text that appeared.
    pub(crate) fn found(&self) -> Option<&str> {
        self.stop.found()
    }

    /// Whether a stop text appeared.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }
}
