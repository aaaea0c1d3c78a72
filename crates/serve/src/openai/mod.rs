//! OpenAI's API.

pub(crate) mod adapters;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod models;
pub(crate) mod responses;

use serde_json::{Value, json};

use crate::answer::Usage;

/// OpenAI's account of what an answer cost.
fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.written_tokens,
        "total_tokens": usage.prompt_tokens + usage.written_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// Adds what a request said in vain.
fn warn(body: &mut Value, warnings: Vec<String>) {
    if !warnings.is_empty() {
        body["warnings"] = warnings.into();
    }
}
