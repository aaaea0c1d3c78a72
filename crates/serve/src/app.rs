//! What all requests share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
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
    /// Models, each followed by its adapters, which clients name as they do models.
    models: RwLock<Vec<Arc<Model>>>,
    /// Whether there ever were adapters: then a name is a model's or an adapter's own.
    has_adapters: AtomicBool,
    /// Whether requests may load and unload adapters.
    pub may_load: bool,
    /// One change of the adapters at a time.
    pub changing: tokio::sync::Mutex<()>,
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
        may_load: bool,
        pool: Arc<rayon::ThreadPool>,
    ) -> Self {
        Self {
            models: RwLock::new(models.into_iter().map(Arc::new).collect()),
            has_adapters: AtomicBool::new(false),
            may_load,
            changing: tokio::sync::Mutex::default(),
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

    /// All models and adapters.
    pub fn models(&self) -> Vec<Arc<Model>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is served.
    pub fn change<R>(&self, work: impl FnOnce(&mut Vec<Arc<Model>>) -> R) -> R {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut models);
        if models.iter().any(|model| model.adapter.is_some()) {
            self.has_adapters.store(true, Ordering::Release);
        }
        result
    }

    /// The model of a name. A single model that never had adapters answers to any: clients send what they were written for.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let models = self.models();
        let named = models.iter().find(|model| Some(model.name.as_str()) == name);
        let is_any = name.is_none() || !self.has_adapters.load(Ordering::Acquire);
        let mut bases = models.iter().filter(|model| model.adapter.is_none());
        match (named, bases.next(), bases.next()) {
            (Some(model), ..) => Ok(Arc::clone(model)),
            (None, Some(model), None) if is_any => Ok(Arc::clone(model)),
            _ => {
                let name = name.unwrap_or_default();
                let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
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
        !self.is_draining.load(Ordering::Acquire) && self.models().iter().all(|model| model.is_ready())
    }
}
