//! Texts with something taken away, for a model to put back: masked tokens (BERT), dropped spans (T5), infilling (BART).
//!
//! What is taken away is a function of (seed, epoch, index of the example) alone: every example draws from its own range
//! of one counter-based stream, so batches may be made in any order and by any number of threads.

mod infilling;
mod masked_lm;
mod spans;

pub use infilling::Infilling;
pub use masked_lm::{MaskedLm, MaskedLoader, continues_word};
pub use spans::SpanCorruption;

use std::ops::Range;
use std::sync::Arc;

use loam_kernels::rng::Stream;

use crate::seq2seq::{Pairs, Seq2SeqExample};
use crate::shard::TokenSet;

/// Draws of one example before those of the next begin: more than any example makes.
const DRAWS_PER_EXAMPLE: u32 = 28;

/// The draws of example `index` in `epoch`.
fn draws(seed: u64, purpose: &str, epoch: u64, index: u64) -> Stream {
    let mut stream = Stream::new(seed, purpose, epoch);
    stream.seek(index << DRAWS_PER_EXAMPLE);
    stream
}

/// A way of damaging a text so that its repair is a sequence-to-sequence task.
pub trait Noise: Send + Sync {
    /// The longest text whose damaged form fits a source of `source_len` tokens.
    fn longest(&self, source_len: usize) -> usize;

    /// Tokens of source and target at most, for a text of `len` tokens.
    fn sizes(&self, len: usize) -> [usize; 2];

    /// The damaged text and what a model has to write.
    fn corrupt(&self, tokens: &[u32], draws: &mut Stream) -> Seq2SeqExample;
}

/// The documents of a token set as denoising tasks. Each epoch damages a text anew.
#[derive(Debug)]
pub struct Corrupted<N> {
    set: Arc<TokenSet>,
    noise: N,
    seed: u64,
    /// Ranges of the token set, none of them across documents.
    texts: Vec<Range<u64>>,
}

impl<N: Noise> Corrupted<N> {
    /// Cuts the documents into texts that fit a source of `source_len` tokens. `end` ends documents in the token set; it
    /// is left out, as both sides get an end of their own. So are texts of a single token, of which nothing would be left.
    pub fn new(set: Arc<TokenSet>, noise: N, source_len: usize, end: Option<u32>, seed: u64) -> Self {
        let longest = noise.longest(source_len).max(2) as u64;
        let mut texts = Vec::new();
        let mut last = Vec::new();
        for document in (0..set.counts().documents).map(|index| set.document(index)) {
            last.clear();
            set.read(document.end.saturating_sub(1).max(document.start)..document.end, &mut last);
            let stop = document.end - u64::from(end.is_some() && last.first().copied() == end);
            let starts = (document.start..stop).step_by(longest as usize);
            texts.extend(starts.map(|start| start..stop.min(start + longest)).filter(|text| text.end - text.start > 1));
        }
        Self { set, noise, seed, texts }
    }
}

impl<N: Noise> Pairs for Corrupted<N> {
    fn count(&self) -> u64 {
        self.texts.len() as u64
    }

    fn sizes(&self, index: u64) -> [usize; 2] {
        let text = &self.texts[index as usize];
        self.noise.sizes((text.end - text.start) as usize)
    }

    fn pair(&self, index: u64, epoch: u64) -> Seq2SeqExample {
        let mut tokens = Vec::new();
        self.set.read(self.texts[index as usize].clone(), &mut tokens);
        self.noise.corrupt(&tokens, &mut draws(self.seed, "corruption", epoch, index))
    }
}
