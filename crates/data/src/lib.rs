//! From files to batches: sources, cleaning, token shards, packing, the resumable loader, the garden.
//!
//! The road of a text: [`source`] finds and reads files as streams, [`dedup`] drops repetitions, [`mod@prepare`] tokenises
//! into the memory-mapped files of [`shard`], [`packing`] plans which documents share a row, and [`loader`] gives out
//! batches as a pure function of seed and step. [`corrupt`] damages texts for a model to repair, [`seq2seq`] packs pairs of
//! source and target, [`labelled`] examples with classes, tags, answers or paraphrases, [`preference`] answers to be preferred.
//! [`garden`] is the corpus that needs no file.

pub mod corrupt;
pub mod dedup;
pub mod dialogue;
mod error;
mod fingerprint;
pub mod garden;
pub mod hash;
pub mod inspect;
pub mod labelled;
pub mod loader;
pub mod packing;
pub mod permute;
pub mod preference;
pub mod prepare;
pub mod seq2seq;
pub mod shard;
pub mod source;

pub use corrupt::{Corrupted, Infilling, MaskedLm, MaskedLoader, SpanCorruption};
pub use error::{Error, Result};
pub use garden::Garden;
pub use labelled::{Labelled, LabelledBatch, LabelledConfig, LabelledLoader};
pub use loader::{CausalBatch, Example, Loader, LoaderConfig, Mode};
pub use prepare::{Holdout, PrepareConfig, Prepared, prepare};
pub use seq2seq::{Seq2SeqBatch, Seq2SeqConfig, Seq2SeqExample, Seq2SeqLoader};
pub use shard::{Part, TokenSet};
