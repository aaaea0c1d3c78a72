//! The vocabulary of the upper floors: messages, sampling, and the traits a language model fulfils.
//!
//! Applications (prompting, retrieval, agents, evaluation) are written against these types alone, so that they run on
//! any engine and are tested with the scripted ones of [`fake`]. The JSON of every type is that of the OpenAI API, which
//! chat templates and training data speak too.

pub mod fake;
mod message;
mod model;
mod preset;
mod sampling;

pub use message::{FunctionCall, ImageUrl, Message, Part, Preference, Role, ToolCall};
pub use model::{Completion, Embed, Error, FinishReason, Generate, Score, Scored};
pub use preset::{SamplerPreset, SamplerStep};
pub use sampling::Sampling;
