//! What the trainer draws batches from.

use loam_data::{CausalBatch, Loader};

use crate::error::Result;

/// Batches as a function of the step, so that a resumed run draws the same ones at no cost.
pub trait Source<B>: Sync {
    /// The micro-batches of an optimizer step, the first step being 0.
    fn batch(&self, step: u64) -> Result<Vec<B>>;

    /// What the next batches depend on besides the step and the weights, for a checkpoint.
    fn state(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Goes on from such a state.
    fn restore(&self, _state: &str) -> Result<()> {
        Ok(())
    }
}

impl<B, F: Fn(u64) -> Result<Vec<B>> + Sync> Source<B> for F {
    fn batch(&self, step: u64) -> Result<Vec<B>> {
        self(step)
    }
}

/// Held-out batches, each seen once per evaluation.
pub trait Validation<B>: Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    fn batch(&self, index: u64) -> Result<B>;

    /// Bytes of UTF-8 that a counted token stands for on average, where that is known.
    fn bytes_per_token(&self) -> Option<f64>;
}

/// Training batches of a loader, cut into micro-batches.
pub struct LoaderSource {
    /// Where whole batches come from.
    pub loader: Loader,
    /// Rows of a micro-batch.
    pub micro_batch: usize,
}

impl Source<CausalBatch> for LoaderSource {
    fn batch(&self, step: u64) -> Result<Vec<CausalBatch>> {
        Ok(split_rows(self.loader.batch(step), self.micro_batch))
    }
}

/// All rows of a loader, each once.
pub struct LoaderValidation {
    /// Where batches come from.
    pub loader: Loader,
    /// Bytes of UTF-8 per token.
    pub bytes_per_token: Option<f64>,
}

impl Validation<CausalBatch> for LoaderValidation {
    fn len(&self) -> u64 {
        self.loader.batches_in_order()
    }

    fn batch(&self, index: u64) -> Result<CausalBatch> {
        Ok(self.loader.batch_in_order(index))
    }

    fn bytes_per_token(&self) -> Option<f64> {
        self.bytes_per_token
    }
}

/// Held-out batches by number.
pub struct InOrder<F> {
    /// How many there are.
    pub len: u64,
    /// One of them.
    pub batch: F,
    /// Bytes of UTF-8 per counted token.
    pub bytes_per_token: Option<f64>,
}

impl<B, F: Fn(u64) -> B + Sync> Validation<B> for InOrder<F> {
    fn len(&self) -> u64 {
        self.len
    }

    fn batch(&self, index: u64) -> Result<B> {
        Ok((self.batch)(index))
    }

    fn bytes_per_token(&self) -> Option<f64> {
        self.bytes_per_token
    }
}

/// Cuts a batch into batches of at most `rows` rows.
pub fn split_rows(batch: CausalBatch, rows: usize) -> Vec<CausalBatch> {
    if batch.rows <= rows {
        return vec![batch];
    }
    let size = rows * batch.seq_len;
    let pieces = batch.tokens.chunks(size).enumerate();
    let piece = |(index, tokens): (usize, &[u32])| {
        let range = index * size..index * size + tokens.len();
        CausalBatch {
            rows: tokens.len() / batch.seq_len,
            seq_len: batch.seq_len,
            tokens: tokens.to_vec(),
            targets: batch.targets[range.clone()].to_vec(),
            segments: batch.segments.as_ref().map(|segments| segments[range.clone()].to_vec()),
            positions: batch.positions[range].to_vec(),
            lengths: batch.lengths[index * rows..][..tokens.len() / batch.seq_len].to_vec(),
        }
    };
    pieces.map(piece).collect()
}

/// Positions that have a target.
pub(crate) fn counted(targets: &[i32]) -> usize {
    targets.iter().filter(|&&target| target >= 0).count()
}
