//! Batches for training a causal language model, as a pure function of (seed, step): resuming a run costs nothing, and
//! the same step gives the same batch on any machine with any number of threads.

use std::ops::Range;
use std::sync::Arc;

use loam_kernels::rng::Rng;

use crate::packing::{Piece, Plan, TooLong};
use crate::permute::epoch_order;
use crate::shard::TokenSet;
use crate::{Error, Result};

/// The target of a position that is not trained on.
pub const IGNORED: i32 = -100;

/// How rows are cut from a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Windows of consecutive tokens, across documents. For one long text. Each epoch shifts the windows.
    Contiguous,
    /// Whole documents side by side, none of which may look at another.
    Packed,
}

/// What batches look like.
#[derive(Debug, Clone, Copy)]
pub struct LoaderConfig {
    /// Rows per batch.
    pub batch: usize,
    /// Tokens per row.
    pub seq_len: usize,
    /// Seed of the order.
    pub seed: u64,
    /// How rows are cut.
    pub mode: Mode,
}

/// A batch: all fields are `[rows, seq_len]`, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausalBatch {
    /// Number of rows.
    pub rows: usize,
    /// Tokens per row.
    pub seq_len: usize,
    /// Inputs.
    pub tokens: Vec<u32>,
    /// The token after each input in its document, or [`IGNORED`]; already shifted.
    pub targets: Vec<i32>,
    /// Per position the number of its document within the row; positions may only attend to their own document. `None`
    /// means that the whole row is one.
    pub segments: Option<Vec<u32>>,
    /// Per position its distance from the start of its document's piece.
    pub positions: Vec<u32>,
    /// Per row how many of its tokens are text; the rest is padding.
    pub lengths: Vec<usize>,
}

impl CausalBatch {
    /// How many positions have a target: what the loss is averaged over.
    pub fn trained(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }

    fn with_capacity(rows: usize, seq_len: usize, packed: bool) -> Self {
        let size = rows * seq_len;
        Self {
            rows: 0,
            seq_len,
            tokens: Vec::with_capacity(size),
            targets: Vec::with_capacity(size),
            segments: packed.then(|| Vec::with_capacity(size)),
            positions: Vec::with_capacity(size),
            lengths: Vec::with_capacity(rows),
        }
    }
}

/// A tokenised example for supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Example {
    /// The tokens of the whole conversation.
    pub ids: Vec<u32>,
    /// For each token whether the model should learn to write it.
    pub trained: Vec<bool>,
}

/// Where rows come from.
#[derive(Debug)]
enum Corpus {
    Shards(Arc<TokenSet>),
    Examples { ids: Vec<u32>, trained: Vec<bool> },
}

impl Corpus {
    fn tokens(&self) -> u64 {
        match self {
            Corpus::Shards(set) => set.counts().tokens,
            Corpus::Examples { ids, .. } => ids.len() as u64,
        }
    }

    fn read(&self, range: Range<u64>, out: &mut Vec<u32>) {
        match self {
            Corpus::Shards(set) => set.read(range, out),
            Corpus::Examples { ids, .. } => out.extend_from_slice(&ids[range.start as usize..range.end as usize]),
        }
    }

    fn is_trained(&self, index: u64) -> bool {
        match self {
            Corpus::Shards(_) => true,
            Corpus::Examples { trained, .. } => trained[index as usize],
        }
    }
}

/// Gives out batches.
#[derive(Debug)]
pub struct Loader {
    corpus: Corpus,
    config: LoaderConfig,
    /// Rows of the packed mode; empty in the contiguous one.
    plan: Plan,
    rows_per_epoch: u64,
}

impl Loader {
    /// A loader over a part of a dataset.
    pub fn new(set: Arc<TokenSet>, config: LoaderConfig) -> Result<Loader> {
        config.validate()?;
        let needed = match config.mode {
            Mode::Contiguous => config.seq_len as u64 + 1,
            Mode::Packed => 2,
        };
        let found = set.counts().tokens;
        if found < needed {
            let what = format!("the {} part of the data", set.name());
            return Err(Error::TooShort { what, found, needed, seq_len: config.seq_len });
        }
        let plan = match config.mode {
            Mode::Contiguous => Plan::default(),
            Mode::Packed => {
                let documents = set.counts().documents;
                Plan::new(documents, |i| set.document(i), config.seq_len, TooLong::Cut, config.seed)
            }
        };
        Ok(Self::over(Corpus::Shards(set), config, plan))
    }

    /// A loader over examples of which only some tokens are trained on; they are packed whatever the mode says. An
    /// example longer than a row loses its end, see [`shortened`](Self::shortened).
    pub fn for_examples(examples: Vec<Example>, config: LoaderConfig) -> Result<Loader> {
        config.validate()?;
        let config = LoaderConfig { mode: Mode::Packed, ..config };
        let (mut ids, mut trained, mut starts) = (Vec::new(), Vec::new(), vec![0_u64]);
        for example in examples {
            assert_eq!(example.ids.len(), example.trained.len(), "an example needs one mark per token");
            ids.extend(example.ids);
            trained.extend(example.trained);
            starts.push(ids.len() as u64);
        }
        let documents = starts.len() as u64 - 1;
        let document = |i: u64| starts[i as usize]..starts[i as usize + 1];
        let plan = Plan::new(documents, document, config.seq_len, TooLong::Shorten, config.seed);
        if !trained.iter().any(|&trained| trained) {
            let reason = "no example has a token to train on (no assistant turn?)".into();
            return Err(Error::NothingLeft { reason });
        }
        Ok(Self::over(Corpus::Examples { ids, trained }, config, plan))
    }

    fn over(corpus: Corpus, config: LoaderConfig, plan: Plan) -> Loader {
        let rows_per_epoch = match config.mode {
            Mode::Packed => plan.rows(),
            Mode::Contiguous => {
                // One window fewer than fit, where there are several, leaves room to shift all of them.
                let windows = (corpus.tokens() - 1) / config.seq_len as u64;
                if windows > 1 { windows - 1 } else { windows }
            }
        };
        Loader { corpus, config, plan, rows_per_epoch }
    }

    /// Rows after which everything was seen once.
    pub fn rows_per_epoch(&self) -> u64 {
        self.rows_per_epoch
    }

    /// The settings.
    pub fn config(&self) -> LoaderConfig {
        self.config
    }

    /// Examples that were longer than a row and lost their end.
    pub fn shortened(&self) -> u64 {
        self.plan.shortened
    }

    /// How many epochs `steps` batches are.
    pub fn epochs(&self, steps: u64) -> f64 {
        (steps * self.config.batch as u64) as f64 / self.rows_per_epoch as f64
    }

    /// The training batch of a step: shuffled, every row once per epoch, for ever.
    pub fn batch(&self, step: u64) -> CausalBatch {
        let mut batch = self.empty(self.config.batch);
        for (epoch, row) in self.samples(step) {
            match self.config.mode {
                Mode::Packed => self.push_packed(row, &mut batch),
                Mode::Contiguous => {
                    let start = self.shift(epoch) + row * self.config.seq_len as u64;
                    self.push_window(start, &mut batch);
                }
            }
        }
        batch
    }

    /// Epoch and row of each row of a training batch.
    pub(crate) fn samples(&self, step: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let batch = self.config.batch as u64;
        epoch_order(self.rows_per_epoch, self.config.seed, step * batch..(step + 1) * batch)
    }

    /// How many batches [`in_order`](Self::in_order) has.
    pub fn batches_in_order(&self) -> u64 {
        self.rows_in_order().div_ceil(self.config.batch as u64)
    }

    /// All rows once, in a fixed order, for measuring; every token that has a predecessor is a target exactly once. The
    /// last batch may have fewer rows.
    pub fn in_order(&self) -> impl Iterator<Item = CausalBatch> + '_ {
        (0..self.batches_in_order()).map(|index| self.batch_in_order(index))
    }

    /// One batch of [`in_order`](Self::in_order).
    pub fn batch_in_order(&self, index: u64) -> CausalBatch {
        let first = index * self.config.batch as u64;
        let last = self.rows_in_order().min(first + self.config.batch as u64);
        let mut batch = self.empty((last - first) as usize);
        for row in first..last {
            match self.config.mode {
                Mode::Packed => self.push_packed(row, &mut batch),
                Mode::Contiguous => self.push_window(row * self.config.seq_len as u64, &mut batch),
            }
        }
        batch
    }

    fn rows_in_order(&self) -> u64 {
        match self.config.mode {
            Mode::Packed => self.plan.rows(),
            Mode::Contiguous => (self.corpus.tokens() - 1).div_ceil(self.config.seq_len as u64),
        }
    }

    fn empty(&self, rows: usize) -> CausalBatch {
        CausalBatch::with_capacity(rows, self.config.seq_len, self.config.mode == Mode::Packed)
    }

    /// How far all windows of an epoch are moved: anything that keeps the last one inside.
    fn shift(&self, epoch: u64) -> u64 {
        let room = self.corpus.tokens() - 1 - self.rows_per_epoch * self.config.seq_len as u64;
        Rng::new(self.config.seed, "window-shift", epoch).below(0, room + 1)
    }

    /// A row of consecutive tokens; past the end of the corpus it is filled up and not trained on.
    fn push_window(&self, start: u64, batch: &mut CausalBatch) {
        let seq_len = self.config.seq_len;
        let end = self.corpus.tokens().min(start + seq_len as u64 + 1);
        let mut tokens = Vec::with_capacity(seq_len + 1);
        self.corpus.read(start..end, &mut tokens);
        let inputs = tokens.len() - 1;
        batch.tokens.extend_from_slice(&tokens[..inputs]);
        batch.targets.extend(tokens[1..].iter().map(|&token| token as i32));
        batch.lengths.push(inputs);
        batch.rows += 1;
        batch.tokens.resize(batch.rows * seq_len, 0);
        batch.targets.resize(batch.rows * seq_len, IGNORED);
        batch.positions.extend(0..seq_len as u32);
    }

    fn push_packed(&self, row: u64, batch: &mut CausalBatch) {
        let pieces = self.plan.row(row);
        for (segment, piece) in pieces.iter().enumerate() {
            self.push_piece(piece, segment as u32, batch);
        }
        batch.rows += 1;
        let size = batch.rows * self.config.seq_len;
        let padding = (size - batch.tokens.len()) as u32;
        batch.lengths.push(self.config.seq_len - padding as usize);
        batch.tokens.resize(size, 0);
        batch.targets.resize(size, IGNORED);
        batch.positions.extend(0..padding);
        if let Some(segments) = &mut batch.segments {
            segments.resize(size, pieces.len() as u32);
        }
    }

    fn push_piece(&self, piece: &Piece, segment: u32, batch: &mut CausalBatch) {
        let end = piece.start + u64::from(piece.len);
        let before = batch.tokens.len();
        // A piece of a document that goes on knows its last target too.
        self.corpus.read(piece.start..end + u64::from(piece.continues), &mut batch.tokens);
        for next in 1..=u64::from(piece.len) {
            let target = batch.tokens.get(before + next as usize).copied();
            let target = target.filter(|_| self.corpus.is_trained(piece.start + next));
            batch.targets.push(target.map_or(IGNORED, |token| token as i32));
        }
        batch.tokens.truncate(before + piece.len as usize);
        batch.positions.extend(0..piece.len);
        if let Some(segments) = &mut batch.segments {
            segments.resize(batch.tokens.len(), segment);
        }
    }
}

impl LoaderConfig {
    fn validate(&self) -> Result<()> {
        for (key, value) in [("batch", self.batch), ("seq_len", self.seq_len)] {
            if value == 0 {
                return Err(Error::Setting { key, found: "0".into(), expected: "a number above 0" });
            }
        }
        Ok(())
    }
}
