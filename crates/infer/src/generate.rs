//! The decoding loop: one pass over the prompt, then one token at a time with cached keys and values.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use loam_chat::{Completion, FinishReason, Message, Sampling};
use loam_models::{Forward, Input, KvCache, KvType, LanguageModel, Memory};
use loam_tensor::no_grad;
use loam_tokenizer::{ChatTemplate, Special, Tokenizer};

use crate::constrain::Constraint;
use crate::sampler::{Choice, Sampler};
use crate::sequence::{Sequence, Step, TextStream};
use crate::{Error, Timings};

/// Writes text with a model.
///
/// Borrowing model and tokenizer makes it as cheap as a reference: the trainer builds one whenever it wants a sample.
#[derive(Debug, Clone)]
pub struct Generator<'a> {
    model: &'a LanguageModel,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    stop_ids: Vec<u32>,
    pub(crate) keep_logprobs: bool,
    pub(crate) constraint: Option<&'a Constraint>,
    pub(crate) interrupt: Option<&'a AtomicBool>,
    kv_type: KvType,
}

/// What a text begins with, before its first token is written.
pub(crate) struct Prefix {
    /// The prompt; for a model with an encoder the token that its decoder starts from.
    pub(crate) start: Vec<u32>,
    /// What the encoder made of the source.
    pub(crate) memory: Option<Memory>,
}

/// Tokens that a model wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The ids, without an end token.
    pub tokens: Vec<u32>,
    /// Their natural log-probabilities under the model itself (before temperature and the other settings).
    pub logprobs: Vec<f32>,
    /// For each the most likely tokens and their log-probabilities, as many as [`Sampling::top_logprobs`] says.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// The end token, where that is why it ended.
    pub end: Option<Choice>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timings: Timings,
}

/// A generated text and how long it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The text and its tokens.
    pub completion: Completion,
    /// For each token the most likely ones, see [`Generated::top_logprobs`].
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// The end token, where that is why it ended.
    pub end: Option<Choice>,
    /// How long it took.
    pub timings: Timings,
}

impl<'a> Generator<'a> {
    /// A generator that ends where the tokenizer's end tokens appear. `generate` needs a chat template besides.
    pub fn new(model: &'a LanguageModel, tokenizer: &'a Tokenizer) -> Self {
        Self {
            model,
            tokenizer,
            template: None,
            stop_ids: tokenizer.stop_ids(),
            keep_logprobs: false,
            constraint: None,
            interrupt: None,
            kv_type: KvType::Full,
        }
    }

    /// Puts conversations into text with `template`.
    pub fn with_template(self, template: &'a ChatTemplate) -> Self {
        Self { template: Some(template), ..self }
    }

    /// Ends at these ids instead of the tokenizer's; with none it goes on to the limit.
    pub fn with_stop_ids(self, stop_ids: Vec<u32>) -> Self {
        Self { stop_ids, ..self }
    }

    /// Whether completions carry the log-probability of each token.
    pub fn keep_logprobs(self, keep_logprobs: bool) -> Self {
        Self { keep_logprobs, ..self }
    }

    /// Every text obeys `constraint`, which was compiled for the same tokenizer and the same stop ids.
    pub fn with_constraint(self, constraint: &'a Constraint) -> Self {
        Self { constraint: Some(constraint), ..self }
    }

    /// Ends a text early once the flag is up.
    pub fn with_interrupt(self, interrupt: &'a AtomicBool) -> Self {
        Self { interrupt: Some(interrupt), ..self }
    }

    /// Keeps keys and values as `kind` says. An error where the model's heads are no whole blocks of it.
    pub fn with_kv_type(self, kv_type: KvType) -> Result<Self, Error> {
        if !self.model.fits(kv_type) {
            let problem = "keeps blocks of 32 numbers: the model's heads have another width; take f16 or bf16";
            return Err(Error::Setting { key: "kv_type", problem });
        }
        Ok(Self { kv_type, ..self })
    }

    pub(crate) fn new_cache(&self) -> KvCache {
        self.model.new_cache_of(self.kv_type)
    }

    /// The model.
    pub fn model(&self) -> &'a LanguageModel {
        self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Most tokens, prompt and answer together.
    pub fn context(&self) -> usize {
        self.model.spec().max_position_embeddings
    }

    /// The ids of a plain prompt, with the start token where the tokenizer puts one. An empty prompt becomes the token
    /// that stands between texts.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.tokenizer.encode(prompt, Special::Add)?;
        // A source has an end, whether the tokenizer adds one or not.
        if let Some(eos) = self.tokenizer.eos_id().filter(|_| self.model.spec().encoder.is_some())
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        if !ids.is_empty() {
            return Ok(ids);
        }
        let start = self.tokenizer.bos_id().or(self.tokenizer.eos_id());
        Ok(vec![start.ok_or(Error::EmptyPrompt)?])
    }

    /// The ids of a conversation, up to where the assistant's next turn begins.
    pub fn encode_messages(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        let template = self.template.ok_or(Error::NoChatTemplate)?;
        let text = template.render(messages, &[], true)?;
        // The template writes the start token itself.
        Ok(self.tokenizer.encode(&text, Special::Parse)?)
    }

    /// Continues `prompt`, handing every token to `on_token` as it comes; `on_token` says whether to go on.
    ///
    /// Ends with [`FinishReason::Stop`] at an end token or where `on_token` says so, and with [`FinishReason::Length`]
    /// after `max_tokens` or where the context is full. A prompt that leaves no room in the context is an error.
    pub fn tokens(
        &self,
        prompt: &[u32],
        sampling: &Sampling,
        on_token: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Generated, Error> {
        let sampler = Sampler::new(sampling, self.tokenizer, &self.stop_ids, self.constraint)?;
        self.check(prompt)?;
        no_grad(|| self.decode(prompt, sampling, sampler, on_token))
    }

    fn decode(
        &self,
        prompt: &[u32],
        sampling: &Sampling,
        sampler: Sampler,
        on_token: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Generated, Error> {
        let mut cache = self.new_cache();
        let (mut tokens, mut logprobs, mut alternatives) = (Vec::new(), Vec::new(), Vec::new());
        let begin = Instant::now();
        let Prefix { start, memory } = self.prefix(prompt)?;
        let mut logits = self.next_logits(&start, memory.as_ref(), &mut cache)?;
        let mut sequence = Sequence::new(sampler, sampling, &self.stop_ids, start, self.context());
        let prompt_time = begin.elapsed();
        let begin = Instant::now();
        let mut end = None;
        let finish_reason = loop {
            let (token, last) = match sequence.advance(&logits)? {
                Step::Token(token, last) => (token, last),
                Step::Ended(choice) => {
                    end = Some(choice);
                    break FinishReason::Stop;
                }
            };
            tokens.push(token.id);
            logprobs.push(token.logprob);
            alternatives.push(token.top_logprobs);
            let is_interrupted = self.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed));
            if !on_token(token.id) || is_interrupted {
                break FinishReason::Stop;
            }
            if let Some(last) = last {
                break last;
            }
            logits = self.next_logits(&[token.id], memory.as_ref(), &mut cache)?;
        };
        let timings = Timings {
            prompt_tokens: prompt.len(),
            prompt: prompt_time,
            // The first token comes out of the pass over the prompt, the others out of a pass of their own.
            steps: tokens.len().saturating_sub(usize::from(finish_reason == FinishReason::Length)),
            decode: begin.elapsed(),
        };
        Ok(Generated { tokens, logprobs, top_logprobs: alternatives, end, finish_reason, timings })
    }

    fn next_logits(&self, tokens: &[u32], memory: Option<&Memory>, cache: &mut KvCache) -> Result<Vec<f32>, Error> {
        let forward = Forward { cache: Some(cache), ..Forward::default() };
        Ok(self.model.last_logits(&Input { memory, ..Input::rows(tokens, 1) }, forward)?.to_vec())
    }

    /// Reads the source, where the model has an encoder.
    pub(crate) fn prefix(&self, prompt: &[u32]) -> Result<Prefix, Error> {
        if self.model.spec().encoder.is_none() {
            return Ok(Prefix { start: prompt.to_vec(), memory: None });
        }
        let memory = self.model.encode(&Input::rows(prompt, 1), Forward::default())?;
        let start = self.model.config()["decoder_start_token_id"].as_u64().map(|id| id as u32);
        let start = start.or(self.tokenizer.eos_id()).ok_or(Error::NoStart)?;
        Ok(Prefix { start: vec![start], memory: Some(memory) })
    }

    /// The tokens that end a text.
    pub(crate) fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Refuses a prompt that is empty, too long, or of another vocabulary.
    pub(crate) fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        let (limit, vocab_size) = (self.context(), self.model.spec().vocab_size);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= limit {
            return Err(loam_chat::Error::TooLong { found: prompt.len(), limit }.into());
        }
        match prompt.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(Error::VocabularyMismatch { token, vocab_size }),
            None => Ok(()),
        }
    }

    /// Continues `prompt` as text. `on_text` receives whole characters as soon as it is certain that no stop text begins
    /// with them; the pieces together are the completion's text. The completion's tokens are all that were drawn, those
    /// of a stop text included.
    pub fn write(&self, prompt: &[u32], sampling: &Sampling, on_text: &mut dyn FnMut(&str)) -> Result<Written, Error> {
        let mut stream = TextStream::new(self.tokenizer, sampling);
        let mut text = String::new();
        let mut show = |piece: &str| {
            if !piece.is_empty() {
                text.push_str(piece);
                on_text(piece);
            }
        };
        let generated = self.tokens(prompt, sampling, &mut |token| {
            show(&stream.push(token));
            !stream.is_stopped()
        })?;
        show(&stream.finish());
        // The last bytes may complete a stop text after the limit was reached.
        let finish_reason = if stream.is_stopped() { FinishReason::Stop } else { generated.finish_reason };
        let logprobs = self.keep_logprobs.then_some(generated.logprobs);
        let completion = Completion { text, tokens: generated.tokens, finish_reason, logprobs };
        let Generated { top_logprobs, end, timings, .. } = generated;
        Ok(Written { completion, top_logprobs, end, timings })
    }
}

impl loam_chat::Generate for Generator<'_> {
    fn generate(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion, loam_chat::Error> {
        let prompt = self.encode_messages(messages)?;
        Ok(self.write(&prompt, sampling, on_text)?.completion)
    }

    fn complete(
        &self,
        prompt: &str,
        sampling: &Sampling,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion, loam_chat::Error> {
        let prompt = self.encode_prompt(prompt)?;
        Ok(self.write(&prompt, sampling, on_text)?.completion)
    }
}
