//! Many texts at the same time: continuous batching.
//!
//! Every [`Scheduler::step`] is one pass of the model over the next token of each running text and a piece of the prompts
//! that are still being read, end to end in one row. Requests come and go between any two steps.
//!
//! A text is the same, to the bit, as alone: a row of a matrix product does not depend on the others, each text attends to
//! its own cache, and tokens are drawn by (seed, step). So it does not matter who else runs, in which pieces a prompt is
//! read, whether its beginning was known already, or how many threads compute.
//!
//! Where [`SchedulerSettings::guess_tokens`] says so, several tokens of a text are guessed and checked in one pass.
//! Each text goes through an adapter of its own, or through none.
//!
//! A text is admitted once the keys and values of all that it may come to fit into the budget: none is ever thrown out
//! half-way. Keys and values lie in pages, and texts with a common beginning hold its whole pages together. Beginnings of
//! earlier texts are kept in what is left and give way to new texts.

mod adapters;
mod guess;
mod pass;
mod prefix;
mod request;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use loam_chat::FinishReason;
use loam_kernels::with_team;
use loam_models::{KV_PAGE, KvCache, LanguageModel, Memory};
use loam_peft::Adapter;
use loam_tensor::no_grad;

use crate::generate::Prefix;
use crate::sampler::{Choice, Sampler};
use crate::sequence::{Sequence, Step, TextStream, Token};
use crate::{Error, Generator};
use adapters::Adapters;
use guess::Guesses;
use pass::{Part, advance, guess, hidden, rate};
use prefix::{Known, PrefixStore};
use request::Clock;
pub use request::{AdapterId, Event, Listener, Request, RequestId, SchedulerSettings, SchedulerStats, Times};

/// Positions of a prompt whose logits exist together.
const RATED_AT_ONCE: usize = 64;

/// Writes many texts with one model.
pub struct Scheduler<'a> {
    generator: Generator<'a>,
    settings: SchedulerSettings,
    /// Whether texts can share a pass: not where one has a source of its own, or a bias that counts from its own start.
    is_batchable: bool,
    waiting: VecDeque<Waiting<'a>>,
    running: Vec<Running<'a>>,
    prefixes: PrefixStore,
    adapters: Adapters,
    /// Adapters that go as soon as no text needs them.
    leaving: Vec<AdapterId>,
    /// A smaller model that guesses.
    draft: Option<&'a LanguageModel>,
    last_id: u64,
    stats: SchedulerStats,
}

struct Waiting<'a> {
    id: RequestId,
    listener: Box<dyn Listener + 'a>,
    request: Request,
    sampler: Sampler,
    /// Positions that it may come to.
    needed: usize,
    arrived: Instant,
}

struct Running<'a> {
    id: RequestId,
    listener: Box<dyn Listener + 'a>,
    sequence: Sequence,
    text: TextStream<'a>,
    memory: Option<Memory>,
    cache: KvCache,
    /// Tokens whose keys and values are cached.
    done: usize,
    /// Tokens whose keys and values it may come to hold alone.
    reserved: usize,
    /// What it began with.
    known: Known,
    share_prefix: bool,
    adapter: Option<AdapterId>,
    guesses: Guesses,
    /// How likely the prompt's tokens are, as far as that is known, where it was asked for.
    rated: Option<Vec<Token>>,
    clock: Clock,
    /// Set where it is over.
    end: Option<End>,
}

enum End {
    Finished(FinishReason, Option<Choice>),
    Failed(Arc<Error>),
    Cancelled,
}

impl std::fmt::Debug for Scheduler<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("settings", &self.settings).field("stats", &self.stats()).finish()
    }
}

impl<'a> Scheduler<'a> {
    /// A scheduler over the model of `generator`, whose constraint, if any, is not used: requests bring their own.
    pub fn new(generator: Generator<'a>, settings: SchedulerSettings) -> Result<Self, Error> {
        let problem = "must be at least 1";
        for (key, value) in [
            ("max_running", settings.max_running),
            ("kv_tokens", settings.kv_tokens),
            ("step_tokens", settings.step_tokens),
        ] {
            if value == 0 {
                return Err(Error::Setting { key, problem });
            }
        }
        if settings.prefix_block > 0 && !KV_PAGE.is_multiple_of(settings.prefix_block) {
            return Err(Error::Setting { key: "prefix_block", problem: "must be 0, or a power of two up to 128" });
        }
        let spec = generator.model().spec();
        let is_batchable = spec.encoder.is_none() && spec.stack.relative_bias.is_none();
        Ok(Self {
            is_batchable,
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: PrefixStore::new(settings.prefix_block.max(1)),
            adapters: Adapters::default(),
            leaving: Vec::new(),
            draft: None,
            last_id: 0,
            stats: SchedulerStats::default(),
            generator,
            settings,
        })
    }

    /// Lets a smaller model of the same vocabulary guess, instead of looking for what followed earlier.
    pub fn with_draft(self, draft: &'a LanguageModel) -> Result<Self, Error> {
        let (key, spec) = ("draft", draft.spec());
        if spec.vocab_size != self.generator.model().spec().vocab_size {
            return Err(Error::Setting { key, problem: "must be a model of the same vocabulary" });
        }
        if spec.encoder.is_some() || spec.stack.relative_bias.is_some() || !spec.is_causal() {
            return Err(Error::Setting { key, problem: "must be a causal language model of one stack" });
        }
        Ok(Self { draft: Some(draft), ..self })
    }

    /// Adds an adapter that requests may name from now on.
    pub fn load_adapter(&mut self, adapter: Arc<Adapter>) -> Result<AdapterId, Error> {
        self.adapters.add(self.generator.model(), adapter)
    }

    /// Takes an adapter out: no new request may name it; those that do come to their end first.
    pub fn unload_adapter(&mut self, id: AdapterId) -> Result<(), Error> {
        if !self.has_adapter(id) {
            return Err(Error::NoAdapter);
        }
        self.leaving.push(id);
        self.drop_adapters();
        Ok(())
    }

    fn has_adapter(&self, id: AdapterId) -> bool {
        self.adapters.has(id) && !self.leaving.contains(&id)
    }

    fn drop_adapters(&mut self) {
        let Self { waiting, running, adapters, leaving, generator, .. } = self;
        leaving.retain(|id| {
            let is_needed = waiting.iter().any(|waiting| waiting.request.adapter == Some(*id))
                || running.iter().any(|running| running.adapter == Some(*id));
            if !is_needed {
                adapters.remove(generator.model(), *id);
            }
            is_needed
        });
    }

    /// Takes a request on. What is wrong with it is an error at once; what goes wrong later, an event.
    pub fn submit(&mut self, request: Request, listener: Box<dyn Listener + 'a>) -> Result<RequestId, Error> {
        let stop_ids = request.stop_ids.as_deref().unwrap_or(self.generator.stop_ids());
        let sampler =
            Sampler::new(&request.sampling, self.generator.tokenizer(), stop_ids, request.constraint.as_ref())?;
        self.generator.check(&request.prompt)?;
        if request.adapter.is_some_and(|id| !self.has_adapter(id)) {
            return Err(Error::NoAdapter);
        }
        if request.prompt_logprobs && self.generator.model().spec().encoder.is_some() {
            let problem = "asks for the log-probabilities of a source, which has none";
            return Err(Error::Setting { key: "prompt_logprobs", problem });
        }
        let needed = self.needed(&request);
        if needed > self.settings.kv_tokens {
            return Err(Error::BudgetTooSmall { needed, budget: self.settings.kv_tokens });
        }
        self.last_id += 1;
        let id = RequestId(self.last_id);
        self.waiting.push_back(Waiting { id, listener, request, sampler, needed, arrived: Instant::now() });
        Ok(id)
    }

    /// Positions that a request may come to. Of a source only one token begins the text.
    fn needed(&self, request: &Request) -> usize {
        let has_source = self.generator.model().spec().encoder.is_some();
        let start = if has_source { 1 } else { request.prompt.len() };
        start + request.sampling.max_tokens.min(self.generator.context().saturating_sub(start)).max(1) - 1
    }

    /// Ends a request without another word. Returns whether it was still there.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.id != id);
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.end = Some(End::Cancelled);
            self.retire();
            return true;
        }
        self.waiting.len() < before
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// What it does and did.
    pub fn stats(&self) -> SchedulerStats {
        let (prefix_tokens, reserved) = (self.prefixes.tokens(), self.reserved());
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_tokens: reserved + prefix_tokens,
            prefix_tokens,
            ..self.stats
        }
    }

    /// Forgets the kept beginnings.
    pub fn forget_prefixes(&mut self) {
        self.prefixes.tick();
        self.prefixes.shrink(0);
    }

    /// One pass of the model. Errors of a request are its own events.
    pub fn step(&mut self) {
        self.drop_gone();
        self.admit();
        if self.running.is_empty() {
            return;
        }
        self.stats.steps += 1;
        with_team(|| no_grad(|| self.pass()));
        self.keep_prompts();
        self.retire();
        self.drop_adapters();
    }

    fn drop_gone(&mut self) {
        self.waiting.retain(|waiting| !waiting.listener.is_gone());
        for running in &mut self.running {
            if running.listener.is_gone() {
                running.end = Some(End::Cancelled);
            }
        }
        self.retire();
    }

    /// Lets requests begin in the order of their arrival as long as they fit; but one whose beginning is just being read
    /// for another waits for that.
    fn admit(&mut self) {
        let mut place = 0;
        while self.running.len() < self.settings.max_running && place < self.waiting.len() {
            if self.will_be_known(&self.waiting[place].request) {
                place += 1;
                continue;
            }
            let Waiting { request, needed, .. } = &self.waiting[place];
            let room = self.settings.kv_tokens.saturating_sub(self.reserved() + self.prefixes.held_tokens());
            if needed.saturating_sub(request.prompt.len()) > room {
                return;
            }
            let known = self.known(request);
            let own = needed - known.shared_tokens();
            if own + self.prefixes.newly_held(&known) > room {
                return;
            }
            let Some(waiting) = self.waiting.remove(place) else { return };
            self.begin(waiting, known, own);
        }
    }

    /// Tokens that running texts may come to hold, what they share apart.
    fn reserved(&self) -> usize {
        self.running.iter().map(|running| running.reserved).sum()
    }

    /// What a request may begin with. Whoever wants to know how likely the prompt is needs all of it read.
    fn known(&self, request: &Request) -> Known {
        match self.is_sharing(request.share_prefix) && !request.prompt_logprobs {
            true => self.prefixes.known(origin(request.adapter), &request.prompt, &self.generator.new_cache()),
            false => Known::nothing(),
        }
    }

    /// Whether a running text is about to leave more of this prompt behind than is known of it by now.
    fn will_be_known(&self, request: &Request) -> bool {
        if !self.is_sharing(request.share_prefix && !request.prompt_logprobs) {
            return false;
        }
        let blocks = |n: usize| n / self.settings.prefix_block;
        let is_reading = |r: &&Running<'_>| r.share_prefix && r.done < r.sequence.start();
        let reading = self.running.iter().filter(|r| is_reading(r) && r.adapter == request.adapter);
        let common = reading.map(|r| {
            let prompt = &r.sequence.seen()[..r.sequence.start()];
            prompt.iter().zip(&request.prompt[..request.prompt.len() - 1]).take_while(|(a, b)| a == b).count()
        });
        blocks(common.max().unwrap_or(0)) > blocks(self.prefixes.known_tokens(origin(request.adapter), &request.prompt))
    }

    fn is_sharing(&self, wanted: bool) -> bool {
        wanted && self.settings.prefix_block > 0 && self.is_batchable
    }

    fn begin(&mut self, waiting: Waiting<'a>, known: Known, reserved: usize) {
        let Waiting { id, mut listener, request, sampler, needed, arrived } = waiting;
        let prefix = match no_grad(|| self.generator.prefix(&request.prompt)) {
            Ok(prefix) => prefix,
            Err(error) => return listener.hear(Event::Failed(Arc::new(error))),
        };
        let Prefix { start, memory } = prefix;
        let share_prefix = self.is_sharing(request.share_prefix);
        let mut cache = self.generator.new_cache();
        cache.limit(needed);
        self.prefixes.begin((origin(request.adapter), &start), &known, &mut cache);
        self.prefixes.tick();
        self.prefixes.shrink(self.settings.kv_tokens - self.reserved() - reserved);
        self.stats.prefix_queries += start.len() as u64;
        self.stats.prefix_hits += known.tokens() as u64;
        let stop_ids = request.stop_ids.as_deref().unwrap_or(self.generator.stop_ids());
        let context = self.generator.context();
        let sequence = Sequence::new(sampler, &request.sampling, stop_ids, start, context);
        listener.hear(Event::Started { cached_tokens: known.tokens() });
        self.running.push(Running {
            id,
            listener,
            sequence,
            text: TextStream::new(self.generator.tokenizer(), &request.sampling),
            memory,
            cache,
            done: known.tokens(),
            reserved,
            known: known.into_whole(),
            share_prefix,
            adapter: request.adapter,
            guesses: Guesses::new(
                self.settings.guess_tokens,
                self.draft.map_or_else(KvCache::default, LanguageModel::new_cache),
            ),
            rated: request.prompt_logprobs.then(Vec::new),
            clock: Clock { arrived, started: Instant::now(), first: None },
            end: None,
        });
    }

    fn pass(&mut self) {
        let (mut writing, reading): (Vec<_>, Vec<_>) =
            self.running.iter_mut().partition(|running| running.sequence.seen().len() - running.done == 1);
        // A long prompt keeps nobody waiting: each text that is being written gets its token.
        let mut left = self.settings.step_tokens.saturating_sub(writing.len());
        if self.settings.guess_tokens > 0 && self.is_batchable {
            left = guess(&mut writing, self.draft, &self.settings, left);
        }
        left = left.max(1);
        let mut parts: Vec<_> = writing.into_iter().map(|running| Part { running, count: 1 }).collect();
        for running in reading {
            let count = (running.sequence.seen().len() - running.done).min(left);
            left -= count;
            if count > 0 {
                parts.push(Part { running, count });
            }
        }
        for part in &parts {
            let prompt = part.running.sequence.start().saturating_sub(part.running.done).min(part.count);
            self.stats.prompt_tokens += prompt as u64;
        }
        let together = if self.is_batchable { parts.len() } else { 1 };
        let generator = &self.generator;
        for parts in parts.chunks_mut(together) {
            let result = hidden(generator, parts, &self.adapters).and_then(|hidden| {
                rate(generator, parts, &hidden)?;
                advance(generator, parts, &hidden, self.settings.guess_tokens)
            });
            match result {
                Ok(made) => {
                    self.stats.written_tokens += made.written;
                    self.stats.guessed_tokens += made.guessed;
                    self.stats.accepted_tokens += made.accepted;
                }
                Err(error) => {
                    let error = Arc::new(error);
                    parts.iter_mut().for_each(|part| part.running.end = Some(End::Failed(Arc::clone(&error))));
                }
            }
        }
    }

    /// Keeps what was just read to its end, for those that wait for it.
    fn keep_prompts(&mut self) {
        let kv_tokens = self.settings.kv_tokens;
        let mut reserved = self.reserved();
        for running in self.running.iter_mut().filter(|r| r.share_prefix && r.sequence.written() <= 1) {
            let start = running.sequence.start();
            if running.done != start {
                continue;
            }
            let (origin, seen) = (origin(running.adapter), &running.sequence.seen()[..start]);
            // From now on the text shares what it leaves there, so that its whole pages need no room beside its own.
            let own_pages = start / KV_PAGE * KV_PAGE - running.known.shared_tokens();
            self.prefixes.keep(origin, seen, &running.cache, kv_tokens - reserved + own_pages);
            let kept = self.prefixes.kept_of(origin, seen, &running.cache);
            if kept.shared_tokens() > running.known.shared_tokens() {
                let shared = kept.shared_tokens() - running.known.shared_tokens();
                self.prefixes.hold(&kept);
                self.prefixes.release(&running.known);
                running.known = kept;
                running.reserved -= shared;
                reserved -= shared;
            }
            self.prefixes.tick();
            self.prefixes.shrink(kv_tokens - reserved);
        }
    }

    /// Says goodbye to what is over.
    fn retire(&mut self) {
        if self.running.iter().all(|running| running.end.is_none()) {
            return;
        }
        let (over, running): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().partition(|running| running.end.is_some());
        self.running = running;
        let room = self.settings.kv_tokens - self.reserved();
        for mut one in over {
            self.prefixes.release(&one.known);
            if one.share_prefix && !matches!(one.end, Some(End::Failed(_))) {
                let seen = &one.sequence.seen()[..one.done];
                self.prefixes.keep(origin(one.adapter), seen, &one.cache, room);
            }
            match one.end.take() {
                Some(End::Finished(finish_reason, end)) => {
                    let text = one.text.finish();
                    // The last bytes may complete a stop text after the limit was reached.
                    let finish_reason = if one.text.is_stopped() { FinishReason::Stop } else { finish_reason };
                    let times = one.clock.times();
                    let stop = one.text.found().map(str::to_owned);
                    one.listener.hear(Event::Done { text, finish_reason, end, stop, times });
                }
                Some(End::Failed(error)) => one.listener.hear(Event::Failed(error)),
                Some(End::Cancelled) | None => {}
            }
        }
    }
}

/// Where the beginnings of texts of an adapter lie: keys and values are its own.
fn origin(adapter: Option<AdapterId>) -> u64 {
    adapter.map_or(0, |AdapterId(id)| u64::MAX - id)
}

impl Running<'_> {
    /// Goes on by a token, and by more as long as it is the one that was guessed; `logits` are those of the last token and
    /// of each guess. Returns how many there were, and how many guesses were right.
    fn take_all(&mut self, logits: &[f32], width: usize, most_guesses: usize) -> (u64, u64) {
        let (mut written, mut right) = (0, 0);
        for row in logits.chunks_exact(width) {
            written += u64::from(self.take(row));
            let is_right = self.guesses.tokens.get(right) == self.sequence.seen().last();
            if self.end.is_some() || !is_right {
                break;
            }
            right += 1;
            self.done += 1;
        }
        if !self.guesses.tokens.is_empty() {
            // The rest was computed in vain.
            self.cache.truncate(self.done);
            self.guesses.learn(right, most_guesses);
        }
        (written, right as u64)
    }

    /// Goes on by a token; returns whether there was one.
    fn take(&mut self, logits: &[f32]) -> bool {
        if let Some(rated) = self.rated.take() {
            self.listener.hear(Event::Prompt(rated));
        }
        self.clock.first.get_or_insert_with(Instant::now);
        match self.sequence.advance(logits) {
            Ok(Step::Ended(choice)) => self.end = Some(End::Finished(FinishReason::Stop, Some(choice))),
            Err(error) => self.end = Some(End::Failed(Arc::new(error))),
            Ok(Step::Token(token, end)) => {
                let text = self.text.push(token.id);
                self.listener.hear(Event::Token { token, text });
                let end = if self.text.is_stopped() { Some(FinishReason::Stop) } else { end };
                self.end = end.map(|reason| End::Finished(reason, None));
                return true;
            }
        }
        false
    }
}
