//! Span corruption: the pretraining task of T5.

use loam_kernels::rng::Stream;
use loam_tokenizer::Tokenizer;

use super::Noise;
use crate::seq2seq::Seq2SeqExample;
use crate::{Error, Result};

/// Drops spans of tokens; the source has a sentinel in place of each, the target the sentinels with what they stand for
/// (Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020).
///
/// How many tokens and spans are dropped follows from the length alone, as in the reference implementation
/// (`random_spans_noise_mask`); where they lie is random, beginning with a kept span and ending with a dropped one.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanCorruption {
    /// Share of the tokens that is dropped.
    pub noise_density: f64,
    /// Dropped tokens per span, on average.
    pub mean_noise_span_length: f64,
    /// The ids of `<extra_id_0>`, `<extra_id_1>`, …; the k-th span of a text is marked by the k-th. A text never has more
    /// spans than there are sentinels: its spans are longer then.
    pub sentinels: Vec<u32>,
    /// Ends source and target.
    pub eos: u32,
}

impl SpanCorruption {
    /// The settings of T5 (15 %, three tokens per span) with the sentinels of a tokenizer. It is an error if it has no
    /// `<extra_id_0>` or no end token.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let sentinels: Vec<u32> = (0..).map_while(|i| tokenizer.token_to_id(&format!("<extra_id_{i}>"))).collect();
        if sentinels.is_empty() {
            return Err(Error::NoToken { token: "<extra_id_0>".into(), needed_for: "span corruption" });
        }
        let eos = tokenizer.eos_id();
        let eos = eos.ok_or_else(|| Error::NoToken { token: "eos".into(), needed_for: "span corruption" })?;
        Ok(Self { noise_density: 0.15, mean_noise_span_length: 3.0, sentinels, eos })
    }

    /// Dropped tokens and spans of a text of `len` tokens; both 0 if it is shorter than two.
    pub fn counts(&self, len: usize) -> (usize, usize) {
        if len < 2 {
            return (0, 0);
        }
        // The reference rounds halves to even, as numpy does.
        let dropped = ((len as f64 * self.noise_density).round_ties_even() as usize).clamp(1, len - 1);
        let fewer = dropped.min(len - dropped);
        let spans = (fewer as f64 / self.mean_noise_span_length).round_ties_even() as usize;
        (dropped, spans.clamp(1, fewer.min(self.sentinels.len().max(1))))
    }

    /// For each token whether it is dropped.
    pub fn noise_mask(&self, len: usize, draws: &mut Stream) -> Vec<bool> {
        let (dropped, spans) = self.counts(len);
        if spans == 0 {
            return vec![false; len];
        }
        let noise = segment(dropped, spans, draws);
        let kept = segment(len - dropped, spans, draws);
        let mut mask = Vec::with_capacity(len);
        for (kept, noise) in kept.into_iter().zip(noise) {
            mask.resize(mask.len() + kept, false);
            mask.resize(mask.len() + noise, true);
        }
        mask
    }

    /// `tokens` without those that `drop` says, each run of which becomes the next sentinel; with the end token.
    fn without(&self, tokens: &[u32], drop: impl Fn(usize) -> bool) -> Vec<u32> {
        let mut sentinels = self.sentinels.iter();
        let mut out = Vec::with_capacity(tokens.len() + 1);
        for (i, &token) in tokens.iter().enumerate() {
            if !drop(i) {
                out.push(token);
            } else if i == 0 || !drop(i - 1) {
                out.extend(sentinels.next());
            }
        }
        out.push(self.eos);
        out
    }
}

impl Noise for SpanCorruption {
    /// Called `compute_input_and_target_lengths` in the reference.
    fn longest(&self, source_len: usize) -> usize {
        let mut len = source_len;
        while self.sizes(len + 1)[0] <= source_len {
            len += 1;
        }
        while len > 2 && self.sizes(len)[0] > source_len {
            len -= 1;
        }
        len
    }

    fn sizes(&self, len: usize) -> [usize; 2] {
        let (dropped, spans) = self.counts(len);
        [len - dropped + spans + 1, dropped + spans + 1]
    }

    fn corrupt(&self, tokens: &[u32], draws: &mut Stream) -> Seq2SeqExample {
        let mask = self.noise_mask(tokens.len(), draws);
        if !mask.contains(&true) {
            return Seq2SeqExample { source: self.without(tokens, |_| false), target: vec![self.eos] };
        }
        Seq2SeqExample { source: self.without(tokens, |i| mask[i]), target: self.without(tokens, |i| !mask[i]) }
    }
}

/// Cuts `items` into `segments` parts of at least one, all ways being equally likely. Needs `1 <= segments <= items`.
fn segment(items: usize, segments: usize, draws: &mut Stream) -> Vec<usize> {
    let mut starts: Vec<bool> = (1..items).map(|i| i < segments).collect();
    draws.shuffle(&mut starts);
    let mut lengths = Vec::with_capacity(segments);
    let mut length = 1;
    for start in starts {
        if start {
            lengths.push(length);
            length = 0;
        }
        length += 1;
    }
    lengths.push(length);
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: u32 = 1;

    fn t5() -> SpanCorruption {
        // As in T5's vocabulary, the ids descend.
        let sentinels = (0..100).map(|i| 32_099 - i).collect();
        SpanCorruption { noise_density: 0.15, mean_noise_span_length: 3.0, sentinels, eos: EOS }
    }

    /// Puts the spans of the target back where their sentinels stand in the source.
    fn restore(noise: &SpanCorruption, example: &Seq2SeqExample) -> Vec<u32> {
        let mut restored = Vec::new();
        for &token in &example.source[..example.source.len() - 1] {
            if !noise.sentinels.contains(&token) {
                restored.push(token);
                continue;
            }
            let at = example.target.iter().position(|&t| t == token);
            // The target starts with the sentinel of the kept span before the first dropped one.
            let span = example.target[at.unwrap() + 1..].iter();
            restored.extend(span.take_while(|t| !noise.sentinels.contains(t) && **t != EOS));
        }
        restored
    }

    #[test]
    fn counts_are_those_of_the_reference_implementation() {
        // Made with `random_spans_noise_mask` of transformers' run_t5_mlm_flax.py (numpy): length, tokens, spans.
        for (len, dropped, spans) in GOLDEN_COUNTS {
            assert_eq!(t5().counts(len), (dropped, spans), "length {len}");
        }
        assert_eq!((t5().counts(0), t5().counts(1)), ((0, 0), (0, 0)));
    }

    const GOLDEN_COUNTS: [(usize, usize, usize); 12] = [
        (2, 1, 1),
        (3, 1, 1),
        (10, 2, 1),
        (16, 2, 1),
        (20, 3, 1),
        (30, 4, 1),
        (31, 5, 2),
        (50, 8, 3),
        (100, 15, 5),
        (128, 19, 6),
        (512, 77, 26),
        (568, 85, 28),
    ];

    #[test]
    fn a_source_of_512_takes_568_tokens_and_makes_a_target_of_114() {
        assert_eq!(t5().longest(512), 568);
        assert_eq!(t5().sizes(568), [512, 114]);
        for source_len in 4..300 {
            let longest = t5().longest(source_len);
            assert!(t5().sizes(longest)[0] <= source_len && t5().sizes(longest + 1)[0] > source_len, "{source_len}");
        }
    }

    #[test]
    fn source_and_target_give_back_the_text_and_have_the_promised_sizes() {
        let noise = t5();
        for len in 2..400 {
            let tokens: Vec<u32> = (0..len).map(|i| 100 + i).collect();
            let example = noise.corrupt(&tokens, &mut Stream::new(3, "test", u64::from(len)));
            assert_eq!([example.source.len(), example.target.len()], noise.sizes(tokens.len()));
            assert_eq!(example.source.last(), Some(&EOS));
            assert_eq!(example.target.last(), Some(&EOS));
            assert_eq!(restore(&noise, &example), tokens);
        }
    }

    #[test]
    fn sentinels_stand_in_the_same_order_on_both_sides() {
        let noise = t5();
        let tokens: Vec<u32> = (100..300).collect();
        let example = noise.corrupt(&tokens, &mut Stream::new(5, "test", 0));
        let marks =
            |side: &[u32]| -> Vec<u32> { side.iter().copied().filter(|t| noise.sentinels.contains(t)).collect() };
        let (_, spans) = noise.counts(200);
        assert_eq!(marks(&example.source), noise.sentinels[..spans]);
        assert_eq!(marks(&example.target), noise.sentinels[..spans]);
        assert_eq!(example.source[0], 100, "the first span is kept");
        assert_eq!(example.target[0], noise.sentinels[0]);
    }

    #[test]
    fn few_sentinels_make_few_and_long_spans() {
        let noise = SpanCorruption { sentinels: vec![900, 899], ..t5() };
        assert_eq!(noise.counts(512), (77, 2));
        let tokens: Vec<u32> = (100..612).collect();
        let example = noise.corrupt(&tokens, &mut Stream::new(5, "test", 0));
        assert_eq!([example.source.len(), example.target.len()], noise.sizes(512));
    }

    #[test]
    fn a_single_token_is_kept_and_nothing_is_asked() {
        let example = t5().corrupt(&[7], &mut Stream::new(0, "test", 0));
        assert_eq!((example.source, example.target), (vec![7, EOS], vec![EOS]));
    }

    #[test]
    fn every_segmentation_is_equally_likely() {
        let mut draws = Stream::new(9, "test", 0);
        let mut seen = std::collections::HashMap::new();
        for _ in 0..6000 {
            *seen.entry(segment(5, 3, &mut draws)).or_insert(0) += 1;
        }
        // Four borders, two of them chosen: six ways, 1000 times each with a standard deviation of 29.
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&times| (850..1150).contains(&times)), "{seen:?}");
    }
}
