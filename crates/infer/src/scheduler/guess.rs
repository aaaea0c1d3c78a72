//! Guessing the tokens that come next, so that one pass checks several (speculative decoding, Leviathan et al. 2023).
//!
//! Nothing depends on a guess but the time: the pass gives, row for row, the bits that single steps would give, and the
//! token of each step is drawn from its own logits by (seed, step) as ever. A guess that is the drawn token saves a pass;
//! from the first wrong one on, what the pass computed is forgotten. So texts, log-probabilities and reasons of ending are
//! the same with guesses as without, greedy or sampled.

use loam_models::{Forward, Hooks, Input, KvCache, LanguageModel, Memory};
use loam_tensor::Tensor;

use super::Running;
use crate::Error;

/// Longest and shortest ending of a text that is looked for in what came before.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// What a text's guesses are like.
#[derive(Default)]
pub(super) struct Guesses {
    /// The tokens that the next pass checks.
    pub(super) tokens: Vec<u32>,
    /// How many to try: as many as lately were right, and one more.
    pace: usize,
    /// What the smaller model has read.
    cache: KvCache,
    read: usize,
}

impl Guesses {
    /// For a text that begins with trying so many.
    pub(super) fn new(pace: usize, cache: KvCache) -> Self {
        Self { tokens: Vec::new(), pace, cache, read: 0 }
    }

    /// Learns how many of the last guesses were right.
    pub(super) fn learn(&mut self, right: usize, most: usize) {
        self.pace = if right == self.tokens.len() { (2 * self.pace).min(most) } else { right + 1 };
        self.tokens.clear();
    }
}

/// What followed the last time that the text went on as it does now. A short repetition goes on repeating.
pub(super) fn look_up(seen: &[u32], count: usize) -> Vec<u32> {
    for length in (SHORTEST..=LONGEST.min(seen.len().saturating_sub(1))).rev() {
        let ending = &seen[seen.len() - length..];
        let found = seen[..seen.len() - 1].windows(length).rposition(|window| window == ending);
        if let Some(at) = found {
            let followed = &seen[at + length..];
            return followed.iter().cycle().take(count).copied().collect();
        }
    }
    Vec::new()
}

/// Some tokens of a text for a model, the place of the first, and the text's cache there.
pub(super) struct Piece<'r> {
    pub(super) tokens: Vec<u32>,
    pub(super) start: usize,
    pub(super) memory: Option<&'r Memory>,
    pub(super) cache: &'r mut KvCache,
}

/// Runs pieces of several texts through a model: hidden states of all, one after the other.
pub(super) fn hidden(model: &LanguageModel, pieces: &mut [Piece<'_>], hooks: Hooks) -> Result<Tensor, Error> {
    if let [Piece { tokens, memory, cache, .. }] = pieces {
        let input = Input { memory: *memory, ..Input::rows(tokens, 1) };
        return Ok(model.hidden(&input, Forward { cache: Some(&mut **cache), hooks, ..Forward::default() })?);
    }
    let (mut tokens, mut positions, mut borders) = (Vec::new(), Vec::new(), vec![0]);
    for piece in pieces.iter() {
        tokens.extend_from_slice(&piece.tokens);
        positions.extend((piece.start..piece.start + piece.tokens.len()).map(|position| position as u32));
        borders.push(tokens.len());
    }
    let caches = pieces.iter_mut().map(|piece| std::mem::take(piece.cache)).collect();
    let mut joined = KvCache::join(caches);
    let input = Input { positions: Some(&positions), runs: Some(borders.into()), ..Input::rows(&tokens, 1) };
    let hidden = model.hidden(&input, Forward { cache: Some(&mut joined), hooks, ..Forward::default() });
    for (piece, cache) in pieces.iter_mut().zip(joined.split()) {
        *piece.cache = cache;
    }
    Ok(hidden?)
}

/// How many tokens may be guessed of a text: not beyond its end, which the budget has room for.
pub(super) fn wanted(running: &Running<'_>, most: usize) -> usize {
    running.guesses.pace.min(most).min(running.sequence.left().saturating_sub(1))
}

/// Lets a smaller model of the same vocabulary guess `counts` tokens of each text. It chooses as the text's own sampler
/// would, with the same random numbers, so that two models that agree choose alike. At most `step_tokens` are read of a
/// text at once; until all is read there is no guess.
pub(super) fn ask(
    draft: &LanguageModel,
    texts: &mut [(&mut Running<'_>, usize)],
    step_tokens: usize,
) -> Result<(), Error> {
    let context = draft.spec().max_position_embeddings;
    let mut samplers = Vec::with_capacity(texts.len());
    for (running, count) in texts.iter_mut() {
        // What was guessed wrongly was read, too.
        let Running { guesses, sequence, .. } = &mut **running;
        guesses.read = guesses.read.min(sequence.seen().len() - 1);
        guesses.cache.truncate(guesses.read);
        if sequence.seen().len() + *count > context {
            *count = 0;
        }
        samplers.push(sequence.sampler().clone());
    }
    for step in 0.. {
        let mut asked = Vec::new();
        let mut pieces = Vec::new();
        for (index, (running, count)) in texts.iter_mut().enumerate().filter(|(_, (_, count))| step < *count) {
            let Running { guesses, sequence, .. } = &mut **running;
            let all: Vec<u32> = sequence.seen().iter().chain(&guesses.tokens).copied().collect();
            let next: Vec<u32> = all[guesses.read..].iter().take(step_tokens).copied().collect();
            let start = guesses.read;
            guesses.read += next.len();
            let is_read = guesses.read == all.len();
            if !is_read {
                *count = 0;
            }
            asked.push((index, all, is_read));
            pieces.push(Piece { tokens: next, start, memory: None, cache: &mut guesses.cache });
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let hidden = hidden(draft, &mut pieces, Hooks::default())?;
        let ends = pieces.iter().scan(0, |end, piece| {
            *end += piece.tokens.len();
            Some(*end as u32 - 1)
        });
        let places: Vec<u32> = ends.collect();
        drop(pieces);
        let logits = draft.logits_at(&hidden, &places, &Hooks::default())?.to_vec();
        for ((index, all, is_read), row) in asked.into_iter().zip(logits.chunks_exact(draft.spec().vocab_size)) {
            let (running, count) = &mut texts[index];
            let written = (all.len() - running.sequence.start()) as u64;
            match samplers[index].choose(row, &all, written) {
                Ok(choice) if is_read && !running.sequence.is_end(choice.token) => {
                    running.guesses.tokens.push(choice.token);
                }
                // A guess that cannot be made is none.
                _ => *count = 0,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_is_what_followed_last_time() {
        assert_eq!(look_up(&[1, 2, 3, 9, 1, 2, 4, 5, 1, 2], 3), [4, 5, 1]);
        // A longer ending counts more than a later place.
        assert_eq!(look_up(&[7, 1, 2, 3, 5, 1, 2, 8, 7, 1, 2], 1), [3]);
        assert_eq!(look_up(&[5, 6, 6, 6], 4), [6, 6, 6, 6]);
        for short in [&[][..], &[1], &[1, 1], &[1, 2, 3]] {
            assert!(look_up(short, 4).is_empty(), "{short:?}");
        }
    }

    #[test]
    fn the_pace_follows_what_was_right() {
        let mut guesses = Guesses::new(8, KvCache::default());
        let mut paces = Vec::new();
        for (tried, right) in [(8, 2), (3, 3), (6, 6), (8, 0), (1, 0), (1, 1)] {
            guesses.tokens = vec![0; tried];
            guesses.learn(right, 8);
            paces.push(guesses.pace);
        }
        assert_eq!(paces, [3, 6, 8, 1, 1, 2]);
    }
}
