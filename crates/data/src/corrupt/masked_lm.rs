//! Masked tokens: the pretraining task of BERT.

use loam_kernels::rng::Stream;
use loam_tokenizer::Tokenizer;

use super::draws;
use crate::loader::{CausalBatch, IGNORED, Loader};
use crate::{Error, Result};

/// Of the chosen tokens, the share that becomes the mask.
const MASKED: f64 = 0.8;
/// Of the chosen tokens, the share that becomes the mask or a random token; the rest stays as it is.
const CHANGED: f64 = 0.9;

/// Chooses tokens for a model to guess (Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2018).
///
/// Of the chosen tokens 80 % become the mask, 10 % a random token, and 10 % stay, so that a model cannot rely on seeing
/// the mask. Special tokens are neither chosen nor put in.
#[derive(Debug, Clone)]
pub struct MaskedLm {
    share: f64,
    mask: u32,
    /// Per id of the vocabulary whether it is special.
    special: Vec<bool>,
    /// The ids that a random token may be.
    ordinary: Vec<u32>,
    /// Per id whether it goes on with the word of the token before it; only for whole words.
    continues: Option<Vec<bool>>,
}

impl MaskedLm {
    /// Masks `share` of the tokens of a tokenizer's texts, whole words at a time if `whole_words`. It is an error if the
    /// tokenizer has no mask token, or no sign of where words start although that is needed.
    pub fn new(tokenizer: &Tokenizer, share: f64, whole_words: bool) -> Result<Self> {
        let mask = ["[MASK]", "<mask>"].iter().find_map(|token| tokenizer.token_to_id(token));
        let mask = mask.ok_or_else(|| Error::NoToken { token: "[MASK]".into(), needed_for: "masked_lm" })?;
        let mut special: Vec<bool> = (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.is_special(id)).collect();
        if let Some(special) = special.get_mut(mask as usize) {
            *special = true;
        }
        let continues = if whole_words { Some(continues_word(tokenizer)?) } else { None };
        Self::with_ids(share, mask, special, continues)
    }

    /// As [`new`](Self::new), from ids: `special` and `continues` have an entry per id of the vocabulary.
    pub fn with_ids(share: f64, mask: u32, special: Vec<bool>, continues: Option<Vec<bool>>) -> Result<Self> {
        if !(share > 0.0 && share <= 1.0) {
            let expected = "a share above 0, at most 1";
            return Err(Error::Setting { key: "mask_fraction", found: share.to_string(), expected });
        }
        let ordinary: Vec<u32> = (0..special.len() as u32).filter(|&id| !special[id as usize]).collect();
        if ordinary.is_empty() {
            return Err(Error::NothingLeft { reason: "every token of the vocabulary is special".into() });
        }
        Ok(Self { share, mask, special, ordinary, continues })
    }

    /// The word of each token, counted from 0; a special token is a word of its own. `None` unless whole words are masked.
    pub fn words(&self, tokens: &[u32]) -> Option<Vec<u32>> {
        let continues = self.continues.as_ref()?;
        let is = |table: &[bool], token: u32| table.get(token as usize).copied().unwrap_or(false);
        let mut word = 0;
        let number = |i: usize| {
            let starts = !is(continues, tokens[i]) || self.is_special(tokens[i]) || self.is_special(tokens[i - 1]);
            word += u32::from(starts);
            word
        };
        Some(std::iter::once(0).take(tokens.len()).chain((1..tokens.len()).map(number)).collect())
    }

    /// Masks one text in place and returns its targets: the token that stood there, or [`IGNORED`] where none was chosen.
    ///
    /// `words` numbers the words of the tokens, in ascending order; of a word all tokens are chosen or none. At least one
    /// token (or word) is chosen in every text that has one that is not special.
    pub fn corrupt(&self, tokens: &mut [u32], words: Option<&[u32]>, draws: &mut Stream) -> Vec<i32> {
        let mut units: Vec<Vec<usize>> = Vec::new();
        let mut before = None;
        for (i, _) in tokens.iter().enumerate().filter(|(_, token)| !self.is_special(**token)) {
            let word = words.map(|words| words[i]);
            match units.last_mut() {
                Some(unit) if word.is_some() && word == before => unit.push(i),
                _ => units.push(vec![i]),
            }
            before = word;
        }
        let candidates: usize = units.iter().map(Vec::len).sum();
        let wanted = ((candidates as f64 * self.share).round() as usize).max(1);
        draws.shuffle(&mut units);
        let mut targets = vec![IGNORED; tokens.len()];
        let mut chosen = 0;
        for unit in units {
            // A word too long for what is left makes room for a shorter one, but the first is taken whatever its length.
            if chosen > 0 && chosen + unit.len() > wanted {
                continue;
            }
            chosen += unit.len();
            for i in unit {
                targets[i] = tokens[i] as i32;
                tokens[i] = self.replacement(tokens[i], draws);
            }
        }
        targets
    }

    fn replacement(&self, token: u32, draws: &mut Stream) -> u32 {
        let roll = draws.next_f64();
        if roll < MASKED {
            self.mask
        } else if roll < CHANGED {
            self.ordinary[draws.next_below(self.ordinary.len() as u64) as usize]
        } else {
            token
        }
    }

    fn is_special(&self, token: u32) -> bool {
        token == self.mask || self.special.get(token as usize).copied().unwrap_or(false)
    }
}

/// Per id of a vocabulary whether its token goes on with a word: `##ing` in WordPiece vocabularies, what has no `▁` or
/// `Ġ` in front in the others. A vocabulary with neither sign is an error.
pub fn continues_word(tokenizer: &Tokenizer) -> Result<Vec<bool>> {
    let tokens: Vec<String> =
        (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.id_to_token(id).unwrap_or_default()).collect();
    if tokens.iter().any(|token| token.starts_with("##")) {
        return Ok(tokens.iter().map(|token| token.starts_with("##")).collect());
    }
    let starts = |token: &String| token.starts_with(['▁', 'Ġ']);
    if !tokens.iter().any(starts) {
        return Err(Error::NoToken { token: "##…, ▁… or Ġ…".into(), needed_for: "masking whole words" });
    }
    Ok(tokens.iter().map(|token| !starts(token)).collect())
}

/// Batches of masked texts, as a function of (seed, step) like those of the [`Loader`] underneath. Each epoch masks anew.
#[derive(Debug)]
pub struct MaskedLoader {
    loader: Loader,
    masking: MaskedLm,
}

impl MaskedLoader {
    /// Masks the batches of a loader.
    pub fn new(loader: Loader, masking: MaskedLm) -> Self {
        Self { loader, masking }
    }

    /// Where the texts come from.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// The training batch of a step. A target stands at the position of its own token, not at the one before it.
    pub fn batch(&self, step: u64) -> CausalBatch {
        let mut batch = self.loader.batch(step);
        for (row, (epoch, index)) in self.loader.samples(step).enumerate() {
            self.mask_row(&mut batch, row, "masked-lm", epoch, index);
        }
        batch
    }

    /// One of the [`Loader::batches_in_order`] batches for measuring. Its masks are the same at every evaluation.
    pub fn batch_in_order(&self, index: u64) -> CausalBatch {
        let mut batch = self.loader.batch_in_order(index);
        let first = index * self.loader.config().batch as u64;
        for row in 0..batch.rows {
            self.mask_row(&mut batch, row, "masked-lm-validation", 0, first + row as u64);
        }
        batch
    }

    fn mask_row(&self, batch: &mut CausalBatch, row: usize, purpose: &str, epoch: u64, index: u64) {
        let mut draws = draws(self.loader.config().seed, purpose, epoch, index);
        let start = row * batch.seq_len;
        let text = start + batch.lengths[row];
        batch.targets[start..start + batch.seq_len].fill(IGNORED);
        let mut from = start;
        while from < text {
            let same = |segments: &Vec<u32>| (from..text).find(|&i| segments[i] != segments[from]);
            let to = batch.segments.as_ref().and_then(same).unwrap_or(text);
            let words = self.masking.words(&batch.tokens[from..to]);
            let targets = self.masking.corrupt(&mut batch.tokens[from..to], words.as_deref(), &mut draws);
            batch.targets[from..to].copy_from_slice(&targets);
            from = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::{Example, LoaderConfig, Mode};

    const MASK: u32 = 4;
    const VOCAB: usize = 1000;

    /// Ids 0 to 4 are special; odd ids go on with the word before them.
    fn masking(share: f64, whole_words: bool) -> MaskedLm {
        let special = (0..VOCAB).map(|id| id < 5).collect();
        let continues = whole_words.then(|| (0..VOCAB).map(|id| id % 2 == 1).collect());
        MaskedLm::with_ids(share, MASK, special, continues).unwrap()
    }

    fn text(len: usize, seed: u64) -> Vec<u32> {
        let mut draws = Stream::new(seed, "text", 0);
        (0..len).map(|_| 5 + draws.next_below(VOCAB as u64 - 5) as u32).collect()
    }

    #[test]
    fn fifteen_percent_are_chosen_and_split_eighty_ten_ten() {
        let masking = masking(0.15, false);
        let (mut chosen, mut masked, mut kept) = (0, 0, 0);
        for seed in 0..100 {
            let before = text(1000, seed);
            let mut tokens = before.clone();
            let targets = masking.corrupt(&mut tokens, None, &mut Stream::new(seed, "test", 0));
            for i in 0..1000 {
                if targets[i] == IGNORED {
                    assert_eq!(tokens[i], before[i]);
                    continue;
                }
                assert_eq!(targets[i], before[i] as i32);
                chosen += 1;
                masked += u32::from(tokens[i] == MASK);
                kept += u32::from(tokens[i] == before[i]);
            }
        }
        assert_eq!(chosen, 15_000);
        // Standard deviations: 49 and 37.
        assert!((11_800..12_200).contains(&masked), "{masked}");
        assert!((1_350..1_680).contains(&kept), "{kept}");
    }

    #[test]
    fn special_tokens_are_neither_chosen_nor_put_in() {
        let masking = masking(0.9, false);
        let mut tokens = vec![0, 7, 1, 2, 8, 3, MASK, 9];
        let targets = masking.corrupt(&mut tokens, None, &mut Stream::new(0, "test", 0));
        for special in [0, 2, 3, 5, 6] {
            assert_eq!(targets[special], IGNORED);
        }
        assert_eq!((tokens[0], tokens[2], tokens[3], tokens[5], tokens[6]), (0, 1, 2, 3, MASK));
        let mut tokens = text(5000, 1);
        masking.corrupt(&mut tokens, None, &mut Stream::new(1, "test", 0));
        assert!(tokens.iter().all(|&token| token >= MASK));
    }

    #[test]
    fn every_text_has_a_masked_token_unless_all_are_special() {
        let masking = masking(0.15, false);
        for len in 1..8 {
            let targets = masking.corrupt(&mut text(len, 3), None, &mut Stream::new(0, "test", len as u64));
            assert_eq!(targets.iter().filter(|&&target| target != IGNORED).count(), 1);
        }
        assert_eq!(masking.corrupt(&mut [0, 1], None, &mut Stream::new(0, "test", 0)), [IGNORED; 2]);
        assert!(masking.corrupt(&mut [], None, &mut Stream::new(0, "test", 0)).is_empty());
    }

    #[test]
    fn all_pieces_of_a_word_are_chosen_or_none() {
        let masking = masking(0.15, true);
        let mut total = 0;
        for seed in 0..50 {
            let mut tokens = [&[0], &text(400, seed)[..], &[1]].concat();
            let words = masking.words(&tokens).unwrap();
            assert_ne!(words[0], words[1], "a special token is no part of a word");
            let targets = masking.corrupt(&mut tokens, Some(&words), &mut Stream::new(seed, "test", 0));
            for i in 1..400 {
                let same_word = words[i] == words[i + 1];
                assert!(!same_word || (targets[i] == IGNORED) == (targets[i + 1] == IGNORED));
            }
            total += targets.iter().filter(|&&target| target != IGNORED).count();
        }
        assert!((2950..=3000).contains(&total), "{total}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let special = vec![false; 10];
        for share in [0.0, -0.1, 1.1, f64::NAN] {
            let error = MaskedLm::with_ids(share, 0, special.clone(), None).unwrap_err();
            assert!(error.to_string().starts_with("mask_fraction = "), "{error}");
        }
        assert!(MaskedLm::with_ids(0.15, 0, vec![true; 3], None).is_err());
    }

    fn loader(batch: usize) -> MaskedLoader {
        let texts = (0..40).map(|i| text(3 + i % 9, i as u64));
        let examples = texts.map(|ids| Example { trained: vec![true; ids.len()], ids }).collect();
        let config = LoaderConfig { batch, seq_len: 16, seed: 5, mode: Mode::Packed };
        MaskedLoader::new(Loader::for_examples(examples, config).unwrap(), masking(0.15, false))
    }

    #[test]
    fn a_row_is_masked_the_same_whatever_batch_it_is_in_and_anew_in_the_next_epoch() {
        let (two, one) = (loader(2), loader(1));
        for step in 0..20 {
            let pair = two.batch(step);
            let rows: Vec<CausalBatch> = vec![one.batch(2 * step), one.batch(2 * step + 1)];
            assert_eq!(pair.tokens, [&rows[0].tokens[..], &rows[1].tokens].concat());
            assert_eq!(pair.targets, [&rows[0].targets[..], &rows[1].targets].concat());
        }
        let epoch = one.loader().rows_per_epoch();
        let targets = |from: u64| -> Vec<Vec<i32>> {
            let mut rows: Vec<_> = (from..from + epoch).map(|step| one.batch(step).targets).collect();
            rows.sort();
            rows
        };
        assert_ne!(targets(0), targets(epoch));
        assert_eq!(two.batch_in_order(1), two.batch_in_order(1));
    }

    #[test]
    fn every_document_of_a_row_has_a_masked_token_and_padding_has_none() {
        let loader = loader(4);
        for step in 0..5 {
            let batch = loader.batch(step);
            let segments = batch.segments.clone().unwrap();
            for row in 0..batch.rows {
                let (start, end) = (row * batch.seq_len, row * batch.seq_len + batch.lengths[row]);
                for document in 0..=segments[end - 1] {
                    assert!((start..end).any(|i| segments[i] == document && batch.targets[i] != IGNORED));
                }
                assert!(batch.targets[end..start + batch.seq_len].iter().all(|&target| target == IGNORED));
            }
        }
    }
}
