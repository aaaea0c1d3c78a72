//! Pairs of source and target, packed into batches for encoder-decoder models.
//!
//! A row holds several pairs side by side on two sides of fixed length: the sources for the encoder, the targets for the
//! decoder. The same number marks the tokens of a pair on both sides, so that attention between equal numbers lets a
//! target see its own source and nothing else.

use std::ops::Range;

use loam_tokenizer::{Special, Tokenizer};

use crate::labelled::Wrap;
use crate::loader::IGNORED;
use crate::packing::Groups;
use crate::permute::epoch_order;
use crate::source::{Record, Source};
use crate::{Error, Result};

/// A source and what a model should write for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seq2SeqExample {
    /// Tokens that the encoder reads.
    pub source: Vec<u32>,
    /// Tokens that the decoder writes, with the token that ends them.
    pub target: Vec<u32>,
}

/// Which fields of a file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFields {
    /// What the model reads.
    pub source: String,
    /// What it should write.
    pub target: String,
}

impl Default for PairFields {
    fn default() -> Self {
        Self { source: "source".into(), target: "target".into() }
    }
}

/// Reads all pairs of source and target. A field that is missing or empty is an error with file and line.
pub fn read(sources: &[Source], fields: &PairFields) -> Result<Vec<(String, String)>> {
    let pair = |record: Result<Record>| {
        let record = record?;
        Ok((record.text(&fields.source)?, record.text(&fields.target)?))
    };
    sources.iter().flat_map(Source::records).map(pair).collect()
}

/// Encodes pairs, both sides with the special tokens of the tokenizer; where it adds none at the end, its end token is
/// added. A tokenizer without an end token is an error: a model could not learn to stop.
pub fn encode(pairs: &[(String, String)], tokenizer: &Tokenizer) -> Result<Vec<Seq2SeqExample>> {
    let mut wrap = Wrap::of(tokenizer)?;
    if wrap.after.is_empty() {
        let eos = tokenizer.eos_id();
        wrap.after.push(eos.ok_or_else(|| Error::NoToken { token: "eos".into(), needed_for: "seq2seq" })?);
    }
    let side = |text: &str| -> Result<Vec<u32>> {
        Ok(wrap.single(&tokenizer.encode(text, Special::Ignore)?, usize::MAX).0.tokens)
    };
    pairs.iter().map(|(source, target)| Ok(Seq2SeqExample { source: side(source)?, target: side(target)? })).collect()
}

/// Where pairs come from: read once, or made anew in each epoch.
pub trait Pairs: Send + Sync {
    /// How many there are.
    fn count(&self) -> u64;

    /// The most tokens that pair `index` has on each side, in any epoch.
    fn sizes(&self, index: u64) -> [usize; 2];

    /// A pair as it is in `epoch`.
    fn pair(&self, index: u64, epoch: u64) -> Seq2SeqExample;
}

impl Pairs for Vec<Seq2SeqExample> {
    fn count(&self) -> u64 {
        self.len() as u64
    }

    fn sizes(&self, index: u64) -> [usize; 2] {
        let example = &self[index as usize];
        [example.source.len(), example.target.len()]
    }

    fn pair(&self, index: u64, _epoch: u64) -> Seq2SeqExample {
        self[index as usize].clone()
    }
}

/// What batches of pairs look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seq2SeqConfig {
    /// Positions per batch, both sides counted; a batch has as many rows as fit.
    pub batch_tokens: usize,
    /// Source positions per row.
    pub source_len: usize,
    /// Target positions per row.
    pub target_len: usize,
    /// Seed of the order.
    pub seed: u64,
    /// The decoder's first input.
    pub decoder_start_token_id: u32,
    /// The token that ends sources and targets. A side that is too long loses its end, but not this token.
    pub eos: u32,
}

impl Seq2SeqConfig {
    /// Rows of a batch.
    pub fn rows(&self) -> usize {
        self.batch_tokens / (self.source_len + self.target_len).max(1)
    }

    fn validate(&self) -> Result<()> {
        for (key, value) in [("source_len", self.source_len), ("target_len", self.target_len)] {
            if value < 2 {
                return Err(Error::Setting { key, found: value.to_string(), expected: "at least 2" });
            }
        }
        if self.rows() == 0 {
            let expected = "at least source_len + target_len, so that a row fits";
            return Err(Error::Setting { key: "batch_tokens", found: self.batch_tokens.to_string(), expected });
        }
        Ok(())
    }
}

/// A batch of pairs. Fields that start with `source` are `[rows, source_len]`, those of the decoder `[rows, target_len]`,
/// row by row.
///
/// Segments count the pairs of a row from 0. Padding of a source has the first number that is free, so that no token sees
/// it. Padding of a decoder belongs to the row's last pair: it comes after it, so causal attention hides it, and its own
/// attention finds something to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seq2SeqBatch {
    /// Number of rows.
    pub rows: usize,
    /// Source positions per row.
    pub source_len: usize,
    /// Target positions per row.
    pub target_len: usize,
    /// Inputs of the encoder.
    pub source_tokens: Vec<u32>,
    /// Per source position the number of its pair within the row.
    pub source_segments: Vec<u32>,
    /// Per source position its distance from the start of its source.
    pub source_positions: Vec<u32>,
    /// Inputs of the decoder: the start token, then the target without its last token.
    pub decoder_tokens: Vec<u32>,
    /// Per decoder position the number of its pair within the row.
    pub decoder_segments: Vec<u32>,
    /// Per decoder position its distance from the start of its target.
    pub decoder_positions: Vec<u32>,
    /// What the decoder should write at each position, or [`IGNORED`].
    pub targets: Vec<i32>,
    /// Per row how many positions of source and target are text; the rest is padding.
    pub lengths: Vec<[usize; 2]>,
    /// Per row how many pairs it holds.
    pub pairs: Vec<usize>,
}

impl Seq2SeqBatch {
    /// How many positions have a target: what the loss is averaged over.
    pub fn trained(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }

    fn empty(config: &Seq2SeqConfig) -> Self {
        Self {
            rows: 0,
            source_len: config.source_len,
            target_len: config.target_len,
            source_tokens: Vec::new(),
            source_segments: Vec::new(),
            source_positions: Vec::new(),
            decoder_tokens: Vec::new(),
            decoder_segments: Vec::new(),
            decoder_positions: Vec::new(),
            targets: Vec::new(),
            lengths: Vec::new(),
            pairs: Vec::new(),
        }
    }

    fn push_pair(&mut self, pair: &Seq2SeqExample, segment: u32, start: u32) {
        let (source, target) = (&pair.source, &pair.target);
        self.source_tokens.extend(source);
        self.source_segments.extend(source.iter().map(|_| segment));
        self.source_positions.extend(0..source.len() as u32);
        self.decoder_tokens.extend(std::iter::once(start).chain(target.iter().copied()).take(target.len()));
        self.decoder_segments.extend(target.iter().map(|_| segment));
        self.decoder_positions.extend(0..target.len() as u32);
        self.targets.extend(target.iter().map(|&token| token as i32));
    }

    fn end_row(&mut self, pairs: usize) {
        let [source, target] = [self.rows * self.source_len, self.rows * self.target_len];
        self.lengths.push([self.source_tokens.len() - source, self.decoder_tokens.len() - target]);
        self.pairs.push(pairs);
        self.rows += 1;
        let [source, target] = [source + self.source_len, target + self.target_len];
        self.source_positions.extend(0..(source - self.source_tokens.len()) as u32);
        self.decoder_positions.extend(0..(target - self.decoder_tokens.len()) as u32);
        self.source_tokens.resize(source, 0);
        self.source_segments.resize(source, pairs as u32);
        self.decoder_tokens.resize(target, 0);
        self.decoder_segments.resize(target, pairs as u32 - 1);
        self.targets.resize(target, IGNORED);
    }
}

/// How much did not fit its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Truncated {
    /// Sources that lost their end.
    pub sources: u64,
    /// Targets that lost their end.
    pub targets: u64,
}

/// Gives out batches of pairs as a pure function of (seed, step), so resuming costs nothing.
pub struct Seq2SeqLoader {
    pairs: Box<dyn Pairs>,
    config: Seq2SeqConfig,
    groups: Groups,
    truncated: Truncated,
}

impl Seq2SeqLoader {
    /// Plans the rows. It is an error if there is no pair, a pair has an empty side, or a row does not fit a batch.
    pub fn new(pairs: impl Pairs + 'static, config: Seq2SeqConfig) -> Result<Self> {
        config.validate()?;
        let mut truncated = Truncated::default();
        for index in 0..pairs.count() {
            let [source, target] = pairs.sizes(index);
            if source == 0 || target == 0 {
                let side = if source == 0 { "source" } else { "target" };
                return Err(Error::NothingLeft { reason: format!("pair {} has an empty {side}", index + 1) });
            }
            truncated.sources += u64::from(source > config.source_len);
            truncated.targets += u64::from(target > config.target_len);
        }
        if pairs.count() == 0 {
            return Err(Error::NothingLeft { reason: "there is no pair of source and target to train on".into() });
        }
        let room = [config.source_len, config.target_len];
        let groups = Groups::new(pairs.count(), |index| pairs.sizes(index), room, config.seed);
        Ok(Self { pairs: Box::new(pairs), config, groups, truncated })
    }

    /// Rows after which everything was seen once.
    pub fn rows_per_epoch(&self) -> u64 {
        self.groups.rows()
    }

    /// The settings.
    pub fn config(&self) -> Seq2SeqConfig {
        self.config
    }

    /// What is too long for its row.
    pub fn truncated(&self) -> Truncated {
        self.truncated
    }

    /// How many epochs `steps` batches are.
    pub fn epochs(&self, steps: u64) -> f64 {
        (steps * self.config.rows() as u64) as f64 / self.rows_per_epoch() as f64
    }

    /// The training batch of a step: shuffled, every row once per epoch, for ever.
    pub fn batch(&self, step: u64) -> Seq2SeqBatch {
        let rows = self.config.rows() as u64;
        self.samples(step * rows..(step + 1) * rows)
    }

    /// The training batch of a step in parts of at most `rows` rows.
    pub fn micro_batches(&self, step: u64, rows: usize) -> Vec<Seq2SeqBatch> {
        let all = self.config.rows() as u64;
        let starts = (step * all..(step + 1) * all).step_by(rows.max(1));
        starts.map(|start| self.samples(start..((step + 1) * all).min(start + rows.max(1) as u64))).collect()
    }

    /// How many batches all rows make once.
    pub fn batches_in_order(&self) -> u64 {
        self.rows_per_epoch().div_ceil(self.config.rows() as u64)
    }

    /// One of the batches of all rows in a fixed order, for measuring; the last may have fewer rows.
    pub fn batch_in_order(&self, index: u64) -> Seq2SeqBatch {
        let rows = self.config.rows() as u64;
        let last = self.rows_per_epoch().min((index + 1) * rows);
        // No training epoch has this number, so what is made anew in each is made here in its own way.
        self.collect((index * rows..last).map(|row| (u64::MAX, row)))
    }

    fn samples(&self, samples: Range<u64>) -> Seq2SeqBatch {
        self.collect(epoch_order(self.rows_per_epoch(), self.config.seed, samples))
    }

    fn collect(&self, rows: impl Iterator<Item = (u64, u64)>) -> Seq2SeqBatch {
        let mut batch = Seq2SeqBatch::empty(&self.config);
        for (epoch, row) in rows {
            let members = self.groups.row(row);
            for (segment, &index) in members.iter().enumerate() {
                let mut pair = self.pairs.pair(index, epoch);
                shorten(&mut pair.source, self.config.source_len, self.config.eos);
                shorten(&mut pair.target, self.config.target_len, self.config.eos);
                batch.push_pair(&pair, segment as u32, self.config.decoder_start_token_id);
            }
            batch.end_row(members.len());
        }
        batch
    }
}

/// Keeps the beginning of what is too long, and the token that ends it.
fn shorten(tokens: &mut Vec<u32>, most: usize, eos: u32) {
    if tokens.len() > most {
        let ends = tokens.last() == Some(&eos);
        tokens.truncate(most);
        if ends && let Some(last) = tokens.last_mut() {
            *last = eos;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_kernels::rng::Stream;

    const START: u32 = 7;
    const EOS: u32 = 1;

    fn config(batch_tokens: usize) -> Seq2SeqConfig {
        Seq2SeqConfig { batch_tokens, source_len: 24, target_len: 12, seed: 3, decoder_start_token_id: START, eos: EOS }
    }

    /// Pair i has only the token 10 + i on both sides, and the end.
    fn pairs(count: u32, longest: [u64; 2]) -> Vec<Seq2SeqExample> {
        let mut draws = Stream::new(1, "pairs", 0);
        let mut side = |i: u32, longest: u64| {
            let mut tokens = vec![10 + i; draws.next_below(longest) as usize];
            tokens.push(EOS);
            tokens
        };
        (0..count).map(|i| Seq2SeqExample { source: side(i, longest[0]), target: side(i, longest[1]) }).collect()
    }

    fn segments(batch: &Seq2SeqBatch, row: usize, pair: usize) -> (Vec<u32>, Vec<u32>, Vec<i32>) {
        let of = |segments: &[u32], len: usize, text: usize| -> Vec<usize> {
            (row * len..row * len + text).filter(|&i| segments[i] == pair as u32).collect()
        };
        let [source, target] = batch.lengths[row];
        let source = of(&batch.source_segments, batch.source_len, source);
        let target = of(&batch.decoder_segments, batch.target_len, target);
        (
            source.iter().map(|&i| batch.source_tokens[i]).collect(),
            target.iter().map(|&i| batch.decoder_tokens[i]).collect(),
            target.iter().map(|&i| batch.targets[i]).collect(),
        )
    }

    #[test]
    fn equal_segments_hold_the_two_sides_of_one_pair_and_every_pair_comes_once_per_epoch() {
        let examples = pairs(50, [12, 6]);
        let loader = Seq2SeqLoader::new(examples.clone(), config(36)).unwrap();
        assert_eq!(loader.truncated(), Truncated::default());
        let mut seen = Vec::new();
        for step in 0..loader.rows_per_epoch() {
            let batch = loader.batch(step);
            assert_eq!((batch.rows, batch.source_tokens.len(), batch.targets.len()), (1, 24, 12));
            for pair in 0..batch.pairs[0] {
                let (source, decoder, targets) = segments(&batch, 0, pair);
                let target: Vec<u32> = targets.iter().map(|&target| target as u32).collect();
                assert_eq!(decoder, [&[START], &target[..target.len() - 1]].concat(), "shifted right");
                let index = examples.iter().position(|e| e.source == source && e.target == target);
                seen.push(index.unwrap());
            }
        }
        assert_eq!(seen.len(), 50);
        let total: usize = examples.iter().map(|e| e.target.len()).sum();
        let trained: usize = (0..loader.batches_in_order()).map(|i| loader.batch_in_order(i).trained()).sum();
        assert_eq!(trained, total, "no target is lost");
    }

    #[test]
    fn padding_is_seen_by_nothing_and_sees_something() {
        let loader = Seq2SeqLoader::new(pairs(9, [12, 6]), config(36)).unwrap();
        for index in 0..loader.batches_in_order() {
            let batch = loader.batch_in_order(index);
            let ([source, target], pairs) = (batch.lengths[0], batch.pairs[0] as u32);
            assert!(batch.source_segments[..source].iter().all(|&segment| segment < pairs));
            assert!(batch.source_segments[source..].iter().all(|&segment| segment == pairs));
            assert!(batch.decoder_segments.iter().all(|segment| batch.source_segments[..source].contains(segment)));
            assert!(batch.targets[target..].iter().all(|&target| target == IGNORED));
            assert!(batch.targets[..target].iter().all(|&target| target != IGNORED));
        }
    }

    #[test]
    fn positions_start_again_with_each_pair() {
        let loader = Seq2SeqLoader::new(pairs(20, [12, 6]), config(36)).unwrap();
        let batch = loader.batch(0);
        for (segments, positions) in
            [(&batch.source_segments, &batch.source_positions), (&batch.decoder_segments, &batch.decoder_positions)]
        {
            assert_eq!(positions[0], 0);
            for i in 1..positions.len() {
                let expected = if segments[i] == segments[i - 1] { positions[i - 1] + 1 } else { 0 };
                assert!(positions[i] == expected || positions[i] == 0);
            }
        }
    }

    #[test]
    fn what_is_too_long_loses_its_end_but_not_the_end_token_and_is_counted() {
        let long = Seq2SeqExample { source: [vec![5; 40], vec![EOS]].concat(), target: vec![6; 30] };
        let loader =
            Seq2SeqLoader::new(vec![long, Seq2SeqExample { source: vec![EOS], target: vec![EOS] }], config(36));
        let loader = loader.unwrap();
        assert_eq!(loader.truncated(), Truncated { sources: 1, targets: 1 });
        let batch = (0..2).map(|i| loader.batch_in_order(i)).find(|batch| batch.lengths[0] == [24, 12]).unwrap();
        assert_eq!(batch.source_tokens, [vec![5; 23], vec![EOS]].concat());
        assert_eq!(batch.targets, [6; 12]);
    }

    #[test]
    fn a_batch_is_no_larger_than_asked_and_its_parts_join_to_it() {
        let loader = Seq2SeqLoader::new(pairs(60, [12, 6]), config(100)).unwrap();
        let batch = loader.batch(2);
        assert_eq!(batch.rows, 2);
        assert!(batch.source_tokens.len() + batch.decoder_tokens.len() <= 100);
        let parts = loader.micro_batches(2, 1);
        assert_eq!(parts.len(), 2);
        assert_eq!(batch.source_tokens, [&parts[0].source_tokens[..], &parts[1].source_tokens].concat());
        assert_eq!(batch.targets, [&parts[0].targets[..], &parts[1].targets].concat());
        assert_eq!(loader.micro_batches(2, 5), [batch]);
    }

    #[test]
    fn impossible_settings_and_empty_pairs_are_refused_with_a_reason() {
        let refusal = |pairs: Vec<Seq2SeqExample>, config| Seq2SeqLoader::new(pairs, config).err().unwrap().to_string();
        assert!(refusal(pairs(3, [4, 4]), config(35)).starts_with("batch_tokens = 35 is not possible"));
        let config_of_one = Seq2SeqConfig { target_len: 1, ..config(100) };
        assert!(refusal(pairs(3, [4, 4]), config_of_one).starts_with("target_len = 1"));
        assert!(refusal(Vec::new(), config(100)).contains("no pair"));
        let empty = Seq2SeqExample { source: vec![1], target: Vec::new() };
        assert_eq!(refusal(vec![empty], config(100)), "pair 1 has an empty target");
    }
}
