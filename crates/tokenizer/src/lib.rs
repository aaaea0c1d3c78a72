//! Train, load, save and run tokenizers and chat templates.
//!
//! The `tokenizers` library defines the file format and every corner of the behaviour; it does not show through here,
//! so that callers depend on this crate alone. For the common kinds of tokenizer, encoding and training take a fast way
//! of our own that gives identical results ([`Tokenizer::is_fast`]).

mod bytes;
mod chat;
mod directory;
mod error;
mod fast;
mod gguf;
mod show;
mod stream;
mod template;
mod token_bytes;
mod tokenizer;
pub mod train;

pub use chat::{EncodedChat, encode_chat};
pub use directory::{DirectoryOptions, save_directory};
pub use error::{Error, Result};
pub use show::{Piece, VocabRow};
pub use stream::DecodeStream;
pub use template::{CHATML, ChatTemplate};
pub use tokenizer::{Encoded, Special, SpecialTokens, Tokenizer};
pub use train::{Progress, TrainConfig, TrainKind, train, train_files};
