//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::keys::Keys;
use crate::metrics::HttpMetrics;
use crate::model::Model;
use crate::params::random_seed;

/// Seconds after which a client that met a full queue may try again.
const RETRY_AFTER: u64 = 1;

/// The server's state.
#[derive(Debug)]
pub(crate) struct App {
    pub models: Vec<Arc<Model>>,
    pub keys: Keys,
    pub http: HttpMetrics,
    pub body_limit: usize,
    /// Limit of an answer whose request states none.
    pub default_max_tokens: usize,
    /// Whether the server is about to end.
    pub is_draining: AtomicBool,
    /// Texts that may be running or waiting.
    places: Arc<Semaphore>,
    most_places: usize,
    /// Embeddings are computed one request at a time.
    pub embedding: Semaphore,
    pub pool: Arc<rayon::ThreadPool>,
    next_id: AtomicU64,
    run: u64,
}

impl App {
    pub fn new(
        models: Vec<Model>,
        keys: Keys,
        (body_limit, default_max_tokens, most_places): (usize, usize, usize),
        pool: Arc<rayon::ThreadPool>,
    ) -> Self {
        Self {
            models: models.into_iter().map(Arc::new).collect(),
            keys,
            http: HttpMetrics::default(),
            body_limit,
            default_max_tokens,
            is_draining: AtomicBool::new(false),
            places: Arc::new(Semaphore::new(most_places)),
            most_places,
            embedding: Semaphore::new(1),
            pool,
            next_id: AtomicU64::new(0),
            run: random_seed(),
        }
    }

    /// The model of a name. A single model answers to any: clients send what they were written for.
    pub fn model(&self, name: Option<&str>) -> Result<&Arc<Model>, ApiError> {
        let named = self.models.iter().find(|model| Some(model.name.as_str()) == name);
        match (named, self.models.as_slice()) {
            (Some(model), _) | (None, [model]) => Ok(model),
            (None, _) => {
                let name = name.unwrap_or_default();
                let known: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
                let message = format!("there is no model `{name}`: {}", known.join(", "));
                let error = ApiError::new(StatusCode::NOT_FOUND, message);
                Err(error.about("model").with_code("model_not_found"))
            }
        }
    }

    /// Places for `count` texts, which are given back with the value.
    pub fn places(&self, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        if self.is_draining.load(Ordering::Acquire) {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down"));
        }
        if count > self.most_places {
            return Err(ApiError::bad("n", format!("at most {} texts at a time", self.most_places)));
        }
        Arc::clone(&self.places).try_acquire_many_owned(count as u32).map_err(|_| ApiError {
            retry_after: Some(RETRY_AFTER),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "the queue is full").with_code("queue_full")
        })
    }

    /// A name that no other answer has.
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.run, self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Seconds since 1970.
    pub fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
    }

    pub fn is_ready(&self) -> bool {
        !self.is_draining.load(Ordering::Acquire) && self.models.iter().all(|model| model.is_ready())
    }
}
