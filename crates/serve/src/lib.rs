//! The HTTP server.
//!
//! **What it is for.** Letting other programs use models: OpenAI's API (chat, completions, embeddings), those of Anthropic
//! and Ollama as far as their clients need, ranking, tokens, health, metrics, and a page to chat in.
//!
//! **What it is not.** It computes nothing: [`loam_infer::Scheduler`] writes, on a thread of its own, and
//! [`loam_infer::Embedder`] embeds. It prints nothing: what it has to say goes to `tracing`.
//!
//! **Where to start.** [`Server::bind`], then [`Server::run`]; a request's way is `openai/chat.rs`, `answer.rs`,
//! `engine.rs`.
//!
//! A field that would change an answer takes effect, is refused by name, or is named in `warnings`. A constraint that cannot
//! be kept is an error.

mod answer;
mod anthropic;
mod app;
mod body;
mod engine;
mod error;
mod extra;
mod keys;
mod metrics;
mod model;
mod ollama;
mod openai;
mod openapi;
mod page;
mod params;
mod server;
mod stream;
mod tls;
mod tools;

pub use error::Error;
pub use keys::Keys;
pub use model::ServedModel;
pub use openai::adapters::AdapterFile;
pub use server::{Server, Settings, Stopper};
pub use tls::Tls;
