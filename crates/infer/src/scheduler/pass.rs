//! One pass of the model: what goes in, and what is made of what comes out.

use std::ops::Range;

use loam_kernels::parallel::map_mut;
use loam_models::{Hooks, LanguageModel};
use loam_tensor::Tensor;

use super::adapters::Adapters;
use super::guess::{self, Piece};
use super::{RATED_AT_ONCE, Running, SchedulerSettings};
use crate::{Error, Generator};

/// A part of a pass: some tokens of a running text, and then those that are guessed.
pub(super) struct Part<'r, 'a> {
    pub(super) running: &'r mut Running<'a>,
    pub(super) count: usize,
}

impl Part<'_, '_> {
    fn rows(&self) -> usize {
        self.count + self.running.guesses.tokens.len()
    }
}

/// Guesses what comes next of the texts, `left` tokens at most, and returns how many of those are left.
pub(super) fn guess(
    writing: &mut [&mut Running<'_>],
    draft: Option<&LanguageModel>,
    settings: &SchedulerSettings,
    mut left: usize,
) -> usize {
    let mut asked = Vec::new();
    for running in writing {
        let count = guess::wanted(running, settings.guess_tokens.min(left));
        if count > 0 && draft.is_some() {
            left -= count;
            asked.push((&mut **running, count));
        } else if count > 0 {
            running.guesses.tokens = guess::look_up(running.sequence.seen(), count);
            left -= running.guesses.tokens.len();
        }
    }
    if let Some(draft) = draft {
        // Nothing depends on a guess: where there is an error, those that were made may still be right.
        let _ = guess::ask(draft, &mut asked, settings.step_tokens);
    }
    left
}

/// Runs the parts' tokens through the model: hidden states of all, one after the other.
pub(super) fn hidden(
    generator: &Generator<'_>,
    parts: &mut [Part<'_, '_>],
    adapters: &Adapters,
) -> Result<Tensor, Error> {
    let through: Vec<_> = parts.iter().map(|part| (part.running.adapter, part.rows())).collect();
    let piece = |Part { running, count }: &Part<'_, '_>| {
        let seen = &running.sequence.seen()[running.done..running.done + *count];
        let tokens = seen.iter().chain(&running.guesses.tokens).copied().collect();
        (tokens, running.done)
    };
    let lists: Vec<(Vec<u32>, usize)> = parts.iter().map(piece).collect();
    let mut pieces: Vec<Piece<'_>> = lists
        .into_iter()
        .zip(parts)
        .map(|((tokens, start), part)| {
            let Running { memory, cache, .. } = &mut *part.running;
            Piece { tokens, start, memory: memory.as_ref(), cache }
        })
        .collect();
    guess::hidden(generator.model(), &mut pieces, adapters.hooks(&through)?)
}

/// Says how likely the prompts' tokens are, where that was asked for.
pub(super) fn rate(generator: &Generator<'_>, parts: &mut [Part<'_, '_>], hidden: &Tensor) -> Result<(), Error> {
    let (model, vocab_size) = (generator.model(), generator.model().spec().vocab_size);
    let mut first = 0;
    for Part { running, count } in parts {
        let (sequence, done) = (&running.sequence, running.done);
        if let Some(rated) = &mut running.rated {
            // The logits of a token say how likely the next one is.
            let followed = (*count).min(sequence.start().saturating_sub(done + 1));
            let places: Vec<usize> = (0..followed).collect();
            for places in places.chunks(RATED_AT_ONCE) {
                let rows: Vec<u32> = places.iter().map(|place| (first + place) as u32).collect();
                let logits = model.logits_at(hidden, &rows, &Hooks::default())?.to_vec();
                let next = places.iter().map(|place| sequence.seen()[done + place + 1]);
                rated.extend(logits.chunks_exact(vocab_size).zip(next).map(|(row, token)| sequence.given(row, token)));
            }
        }
        first += *count + running.guesses.tokens.len();
    }
    Ok(())
}

/// What a pass came to, in tokens.
#[derive(Default)]
pub(super) struct Made {
    pub(super) written: u64,
    pub(super) guessed: u64,
    pub(super) accepted: u64,
}

/// Chooses the next token, or several where guesses are right, for each text whose tokens have all been seen.
pub(super) fn advance(
    generator: &Generator<'_>,
    parts: &mut [Part<'_, '_>],
    hidden: &Tensor,
    most_guesses: usize,
) -> Result<Made, Error> {
    let (mut places, mut ready, mut first) = (Vec::new(), Vec::new(), 0u32);
    for part in parts {
        let rows = part.rows() as u32;
        let Part { running, count } = part;
        running.done += *count;
        if running.done == running.sequence.seen().len() {
            let begin = places.len();
            places.extend(first + *count as u32 - 1..first + rows);
            ready.push((running, begin..places.len()));
        }
        first += rows;
    }
    if places.is_empty() {
        return Ok(Made::default());
    }
    let width = generator.model().spec().vocab_size;
    let logits = generator.model().logits_at(hidden, &places, &Hooks::default())?.to_vec();
    let one = |_, (running, rows): &mut (&mut &mut Running<'_>, Range<usize>)| {
        let guessed = running.guesses.tokens.len() as u64;
        let (written, accepted) = running.take_all(&logits[rows.start * width..rows.end * width], width, most_guesses);
        Made { written, guessed, accepted }
    };
    let sum = |a: Made, b: Made| Made {
        written: a.written + b.written,
        guessed: a.guessed + b.guessed,
        accepted: a.accepted + b.accepted,
    };
    Ok(map_mut(&mut ready, one).into_iter().fold(Made::default(), sum))
}
