//! Text infilling and sentence permutation: the pretraining task of BART.

use loam_kernels::rng::Stream;

use super::Noise;
use crate::seq2seq::Seq2SeqExample;

/// Replaces spans by one mask token each and permutes sentences; the target is the whole text (Lewis et al., "BART:
/// denoising sequence-to-sequence pre-training", 2020).
///
/// The lengths of spans are Poisson-distributed. A span of length 0 inserts a mask where nothing is missing, so that a
/// model also has to learn how much is. Exactly `share` of a text's tokens (rounded up) is masked, and there are never
/// more masks than masked tokens, so a source is never longer than its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Infilling {
    /// Share of the tokens that is masked.
    pub share: f64,
    /// Masked tokens per span, on average.
    pub mean_span_length: f64,
    /// Takes the place of a span.
    pub mask: u32,
    /// The tokens that end a sentence. Sentences are put in random order; with no such token they stay.
    pub sentence_ends: Vec<u32>,
    /// Starts source and target, where the model expects it.
    pub bos: Option<u32>,
    /// Ends source and target.
    pub eos: u32,
}

impl Infilling {
    /// The settings of the paper: 30 %, three tokens per span, sentences left in order.
    pub fn new(mask: u32, bos: Option<u32>, eos: u32) -> Self {
        Self { share: 0.3, mean_span_length: 3.0, mask, sentence_ends: Vec::new(), bos, eos }
    }

    /// How many of `len` tokens are masked.
    pub fn masked(&self, len: usize) -> usize {
        ((len as f64 * self.share).ceil() as usize).min(len)
    }

    fn span_lengths(&self, masked: usize, draws: &mut Stream) -> Vec<usize> {
        let (mut lengths, mut left) = (Vec::new(), masked);
        while left > 0 {
            let length = poisson(self.mean_span_length, draws).min(left);
            // Every masked token pays for one mask: `left` tokens may still make `left` masks.
            if length > 0 || lengths.len() + left < masked {
                lengths.push(length);
            }
            left -= length;
        }
        lengths
    }

    fn infill(&self, tokens: &[u32], draws: &mut Stream) -> Vec<u32> {
        let masked = self.masked(tokens.len());
        // The kept tokens and the spans in random order; a kept token is a span of nothing that stays.
        let mut order: Vec<Option<usize>> = self.span_lengths(masked, draws).into_iter().map(Some).collect();
        order.resize(order.len() + tokens.len() - masked, None);
        draws.shuffle(&mut order);
        let mut at = 0;
        let place = |item: Option<usize>| {
            let token = item.map_or_else(|| tokens[at], |_| self.mask);
            at += item.unwrap_or(1);
            token
        };
        order.into_iter().map(place).collect()
    }

    fn permute(&self, tokens: &[u32], draws: &mut Stream) -> Vec<u32> {
        let mut sentences: Vec<&[u32]> = tokens.split_inclusive(|token| self.sentence_ends.contains(token)).collect();
        draws.shuffle(&mut sentences);
        sentences.concat()
    }

    fn wrap(&self, tokens: impl IntoIterator<Item = u32>) -> Vec<u32> {
        self.bos.into_iter().chain(tokens).chain([self.eos]).collect()
    }
}

impl Noise for Infilling {
    fn longest(&self, source_len: usize) -> usize {
        source_len.saturating_sub(1 + usize::from(self.bos.is_some()))
    }

    fn sizes(&self, len: usize) -> [usize; 2] {
        [len + 1 + usize::from(self.bos.is_some()); 2]
    }

    fn corrupt(&self, tokens: &[u32], draws: &mut Stream) -> Seq2SeqExample {
        let permuted = self.permute(tokens, draws);
        let source = self.infill(&permuted, draws);
        Seq2SeqExample { source: self.wrap(source), target: self.wrap(tokens.iter().copied()) }
    }
}

/// A Poisson-distributed number (Knuth's method, quick for small means).
fn poisson(mean: f64, draws: &mut Stream) -> usize {
    let (limit, mut product, mut count) = ((-mean).exp(), draws.next_f64(), 0);
    while product > limit {
        product *= draws.next_f64();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: u32 = 3;

    fn bart() -> Infilling {
        Infilling::new(MASK, Some(0), 2)
    }

    #[test]
    fn the_source_is_the_text_with_exactly_the_chosen_share_behind_masks() {
        for len in 0..300_u32 {
            let tokens: Vec<u32> = (0..len).map(|i| 100 + i).collect();
            let example = bart().corrupt(&tokens, &mut Stream::new(1, "test", u64::from(len)));
            assert_eq!(example.target, [&[0], &tokens[..], &[2]].concat());
            assert!(example.source.len() <= example.target.len());
            let kept: Vec<u32> = example.source.iter().copied().filter(|&token| token >= 100).collect();
            assert!(kept.is_sorted(), "kept tokens stay in order");
            assert_eq!(kept.len(), tokens.len() - bart().masked(tokens.len()));
        }
    }

    #[test]
    fn masks_stand_for_three_tokens_on_average_and_some_for_none() {
        let tokens: Vec<u32> = (100..1100).collect();
        let (mut masks, mut inserted) = (0, 0);
        for step in 0..100 {
            let source = bart().corrupt(&tokens, &mut Stream::new(2, "test", step)).source;
            masks += source.iter().filter(|&&token| token == MASK).count();
            // Between the neighbours of a lone inserted mask nothing is missing.
            inserted += source.windows(3).filter(|w| w[1] == MASK && w[0] != MASK && w[0] + 1 == w[2]).count();
        }
        let mean = 300.0 * 100.0 / masks as f64;
        assert!((2.8..3.2).contains(&mean), "{mean}");
        // exp(-3) of the spans are empty.
        let share = inserted as f64 / masks as f64;
        assert!((0.02..0.06).contains(&share), "{share}");
    }

    #[test]
    fn sentences_change_places_and_none_is_lost() {
        const STOP: u32 = 9;
        let noise = Infilling { share: 0.0, sentence_ends: vec![STOP], ..bart() };
        let tokens = vec![10, STOP, 11, 11, STOP, 12, 12, 12, STOP, 13];
        let mut orders = std::collections::HashSet::new();
        for step in 0..200 {
            let example = noise.corrupt(&tokens, &mut Stream::new(4, "test", step));
            let inner = &example.source[1..example.source.len() - 1];
            let (mut found, mut expected) = (inner.to_vec(), tokens.clone());
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected);
            orders.insert(example.source);
        }
        assert_eq!(orders.len(), 24);
    }

    #[test]
    fn poisson_numbers_have_their_mean_and_variance() {
        let mut draws = Stream::new(6, "test", 0);
        let numbers: Vec<f64> = (0..20_000).map(|_| poisson(3.0, &mut draws) as f64).collect();
        let mean = numbers.iter().sum::<f64>() / 20_000.0;
        let variance = numbers.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!((mean - 3.0).abs() < 0.06 && (variance - 3.0).abs() < 0.15, "{mean} {variance}");
    }
}
