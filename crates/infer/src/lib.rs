//! Generation: sampler, constraints, decoding loop, streaming text, many texts at the same time; and embeddings.
//!
//! **What it is for.** Continuing a text or a conversation with a model, token by token, saying how likely a text is,
//! and turning texts into vectors. [`Generator`] is the engine behind `loam-chat`'s `Generate` and `Score`.
//!
//! **What it is not.** It knows no file but a model directory, and decides nothing about a conversation: which messages
//! there are is the caller's business.
//!
//! **Where to start.** [`OpenModel::open`], then [`OpenModel::generator`]; for a server [`Scheduler`]. For vectors of texts, [`Embedder::open`].
//!
//! Everything is a function of the model, the prompt, the settings and the seed: neither the number of threads nor what
//! else is generated at the same time changes a text.

mod batch;
mod beam;
pub mod constrain;
mod embed;
mod error;
mod generate;
mod open;
pub mod sampler;
pub mod scheduler;
mod score;
mod sequence;
mod stop;
mod timings;

pub use beam::{BeamSettings, Hypothesis};
pub use constrain::{Constraint, ConstraintCompiler, Grammar};
pub use embed::{EmbedSettings, Embedder, Pooling};
pub use error::Error;
pub use generate::{Generated, Generator, Written};
pub use open::OpenModel;
pub use sampler::Sampler;
pub use scheduler::{Request, Scheduler, SchedulerSettings};
pub use sequence::Token;
pub use stop::StopMatcher;
pub use timings::Timings;
