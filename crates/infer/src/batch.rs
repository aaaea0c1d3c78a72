//! Many prompts at once, by the scheduler: the weights are read once for all texts, and what prompts begin with in common
//! is read once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loam_chat::{Completion, FinishReason, Sampling};
use loam_models::footprint;

use crate::generate::{Generator, Written};
use crate::sampler::Choice;
use crate::scheduler::{Event, Listener, Request, Scheduler, SchedulerSettings, Times};
use crate::{Error, Timings};

/// Most texts that grow together.
const TOGETHER: usize = 64;
/// Most bytes of keys and values, as long as a single text needs no more.
const KV_BYTES: usize = 1 << 30;
/// Prompts often differ in their last words only: small blocks find more that they share.
const PREFIX_BLOCK: usize = 8;

impl Generator<'_> {
    /// Continues many prompts, all with the same settings; the results are those of [`write`](Self::write) one by one, in
    /// order.
    pub fn write_batch(&self, prompts: &[Vec<u32>], sampling: &Sampling) -> Result<Vec<Completion>, Error> {
        let asked: Vec<_> = prompts.iter().map(|prompt| (&prompt[..], sampling.clone())).collect();
        Ok(self.write_all(&asked)?.into_iter().map(|written| written.completion).collect())
    }

    /// Continues many prompts, each with settings of its own; the results are those of [`write`](Self::write) one by one,
    /// in order. The error of the first that cannot be continued is that of all.
    pub fn write_all(&self, prompts: &[(&[u32], Sampling)]) -> Result<Vec<Written>, Error> {
        for (prompt, _) in prompts {
            self.check(prompt)?;
        }
        let texts: Vec<Arc<Mutex<Text>>> = prompts.iter().map(|_| Arc::default()).collect();
        let mut scheduler = Scheduler::new(self.clone(), self.batch_settings(prompts))?;
        for ((prompt, sampling), text) in prompts.iter().zip(&texts) {
            let request = Request {
                constraint: self.constraint.cloned(),
                stop_ids: Some(self.stop_ids().to_vec()),
                ..Request::new(prompt.to_vec(), sampling.clone())
            };
            scheduler.submit(request, Box::new(Reader { text: Arc::clone(text), interrupt: self.interrupt }))?;
        }
        while !scheduler.is_idle() {
            scheduler.step();
        }
        drop(scheduler);
        let finish = |((prompt, sampling), text): (&(&[u32], Sampling), Arc<Mutex<Text>>)| {
            let text = std::mem::take(&mut *lock(&text));
            if text.has_failed {
                // What went wrong may be shared by several: by itself the prompt says it again.
                return self.write(prompt, sampling, &mut |_| {});
            }
            let mut written = text.written(prompt.len());
            written.completion.logprobs = written.completion.logprobs.filter(|_| self.keep_logprobs);
            Ok(written)
        };
        prompts.iter().zip(texts).map(finish).collect()
    }

    fn batch_settings(&self, prompts: &[(&[u32], Sampling)]) -> SchedulerSettings {
        let context = self.context();
        let needed = |(prompt, sampling): &(&[u32], Sampling)| (prompt.len() + sampling.max_tokens).min(context);
        let longest = prompts.iter().map(needed).max().unwrap_or(0).max(1);
        let room = KV_BYTES / footprint(self.model().spec()).kv_bytes_per_token_f32.max(1);
        SchedulerSettings {
            max_running: TOGETHER,
            kv_tokens: longest.max(room.min(2 * TOGETHER * longest)),
            step_tokens: 4 * TOGETHER,
            prefix_block: PREFIX_BLOCK,
            guess_tokens: 0,
        }
    }
}

/// What was heard of a text.
#[derive(Default)]
struct Text {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    top_logprobs: Vec<Vec<(u32, f32)>>,
    /// None where it was interrupted.
    done: Option<(FinishReason, Option<Choice>, Times)>,
    has_failed: bool,
}

impl Text {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Started { .. } | Event::Prompt(_) => {}
            Event::Token { token, text } => {
                self.text.push_str(&text);
                self.tokens.push(token.id);
                self.logprobs.push(token.logprob);
                self.top_logprobs.push(token.top_logprobs);
            }
            Event::Done { text, finish_reason, end, times, .. } => {
                self.text.push_str(&text);
                self.done = Some((finish_reason, end, times));
            }
            Event::Failed(_) => self.has_failed = true,
        }
    }

    fn written(self, prompt_tokens: usize) -> Written {
        let Self { text, tokens, logprobs, top_logprobs, done, .. } = self;
        let (finish_reason, end, times) = done.unwrap_or((FinishReason::Stop, None, Times::default()));
        let steps = tokens.len().saturating_sub(usize::from(finish_reason == FinishReason::Length));
        let timings = Timings { prompt_tokens, prompt: times.prompt, steps, decode: times.decode };
        let completion = Completion { text, tokens, finish_reason, logprobs: Some(logprobs) };
        Written { completion, top_logprobs, end, timings }
    }
}

/// Writes down what becomes of a text.
struct Reader<'a> {
    text: Arc<Mutex<Text>>,
    interrupt: Option<&'a AtomicBool>,
}

impl Listener for Reader<'_> {
    fn hear(&mut self, event: Event) {
        lock(&self.text).hear(event);
    }

    fn is_gone(&self) -> bool {
        self.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

fn lock(text: &Mutex<Text>) -> MutexGuard<'_, Text> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}
