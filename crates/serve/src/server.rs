//! The server: routes, what happens around every request, beginning and end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use loam_infer::SchedulerSettings;
use loam_models::KvType;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::app::App;
use crate::error::{ApiError, Error};
use crate::keys::{Keys, Scope};
use crate::model::ServedModel;
use crate::openai::adapters::AdapterFile;
use crate::tls::Tls;
use crate::{anthropic, extra, ollama, openai, openapi, page};

/// Threads of the part that waits: it computes next to nothing.
const WAITING_THREADS: usize = 2;
/// Constraints recurse.
const STACK_BYTES: usize = 16 << 20;
/// Tokens that a place in the default budget of keys and values is worth.
const TOKENS_PER_PLACE: usize = 4096;

/// How the server runs.
#[derive(Debug)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// Most texts written at the same time, per model.
    pub max_concurrent: usize,
    /// Most requests waiting for their turn; further ones are told to come back.
    pub max_queue: usize,
    /// Most tokens whose keys and values are held, per model; without it as many as `max_concurrent` texts of 4096 tokens
    /// have, or of the model's context where that is shorter.
    pub kv_tokens: Option<usize>,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Tokens of one pass of a model.
    pub step_tokens: usize,
    /// Most tokens that are guessed ahead of a text and checked together; 0 guesses none.
    pub guess_tokens: usize,
    /// Adapters by the names that clients call them by, with the model's name where there are several.
    pub adapters: Vec<AdapterFile>,
    /// Whether requests may load and unload adapters.
    pub may_load_adapters: bool,
    /// A certificate and its key: then the server speaks TLS.
    pub tls: Option<Tls>,
    /// Limit of an answer whose request states none.
    pub default_max_tokens: usize,
    /// Most bytes of a request.
    pub max_body: usize,
    /// Who is let in.
    pub keys: Keys,
    /// Time that running answers have to come to an end when the server is to stop.
    pub shutdown_timeout: Duration,
    /// Threads that compute; without it all cores.
    pub threads: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_concurrent: 16,
            max_queue: 256,
            kv_tokens: None,
            kv_type: KvType::Full,
            step_tokens: 256,
            guess_tokens: 0,
            adapters: Vec::new(),
            may_load_adapters: false,
            tls: None,
            default_max_tokens: 2048,
            max_body: 16 << 20,
            keys: Keys::default(),
            shutdown_timeout: Duration::from_secs(30),
            threads: None,
        }
    }
}

/// A server that listens, and answers once it runs.
#[derive(Debug)]
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    stop: Arc<Notify>,
    shutdown_timeout: Duration,
    tls: Option<Tls>,
}

/// Ends a server from elsewhere.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Notify>);

impl Stopper {
    /// As Ctrl-C does: no new requests, and running ones have some time to end.
    pub fn stop(&self) {
        self.0.notify_one();
    }
}

impl Server {
    /// Starts the engines and takes the address.
    pub fn bind(models: Vec<ServedModel>, settings: Settings) -> Result<Self, Error> {
        for (name, value) in [
            ("max-concurrent", settings.max_concurrent),
            ("step-tokens", settings.step_tokens),
            ("default-max-tokens", settings.default_max_tokens),
            ("kv-tokens", settings.kv_tokens.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::Setting(format!("--{name} must be at least 1")));
            }
        }
        if let Some(at) = (1..models.len()).find(|&at| models[..at].iter().any(|m| m.name() == models[at].name())) {
            return Err(Error::Setting(format!("two models have the name `{}`", models[at].name())));
        }
        let refused = |what| move |source| Error::System { what, source };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.threads.unwrap_or(0))
            .stack_size(STACK_BYTES)
            .thread_name(|index| format!("compute {index}"))
            .build()
            .map_err(|error| refused("start the threads that compute")(std::io::Error::other(error)))?;
        let pool = Arc::new(pool);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WAITING_THREADS)
            .enable_all()
            .build()
            .map_err(refused("start the threads that wait"))?;
        let scheduler = |context: usize| SchedulerSettings {
            max_running: settings.max_concurrent,
            kv_tokens: settings
                .kv_tokens
                .unwrap_or((settings.max_concurrent * context.min(TOKENS_PER_PLACE)).max(context)),
            step_tokens: settings.step_tokens,
            guess_tokens: settings.guess_tokens,
            ..SchedulerSettings::default()
        };
        let models = models.into_iter().map(|model| model.start(&scheduler, settings.kv_type, &pool));
        let models = models.collect::<Result<Vec<_>, _>>()?;
        let limits = (settings.max_body, settings.default_max_tokens, settings.max_concurrent + settings.max_queue);
        let app = Arc::new(App::new(models, settings.keys, limits, settings.may_load_adapters, pool));
        for file in &settings.adapters {
            runtime.block_on(openai::adapters::load_file(&app, file))?;
        }
        let at = settings.address;
        let failed = |source| Error::Listen { address: at, source };
        let listener = runtime.block_on(TcpListener::bind(at)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (shutdown_timeout, tls) = (settings.shutdown_timeout, settings.tls);
        Ok(Self { runtime, listener, address, app, stop: Arc::default(), shutdown_timeout, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    /// Serves until Ctrl-C, SIGTERM or a [`Stopper`]; then lets running answers come to an end.
    pub fn run(self) -> Result<(), Error> {
        let Self { runtime, listener, app, stop, shutdown_timeout, tls, .. } = self;
        let result = runtime.block_on(async {
            let app = Arc::clone(&app);
            match tls {
                Some(tls) => serve(tls.listen(listener), app, stop, shutdown_timeout).await,
                None => serve(listener, app, stop, shutdown_timeout).await,
            }
        });
        // What still runs loses its listeners, and so ends.
        runtime.shutdown_timeout(Duration::from_secs(1));
        for model in app.models() {
            if let Some(text) = model.writes() {
                text.engine.stop();
            }
        }
        result
    }
}

async fn serve<L: Listener<Addr = SocketAddr>>(
    listener: L,
    app: Arc<App>,
    stop: Arc<Notify>,
    shutdown_timeout: Duration,
) -> Result<(), Error> {
    let draining = Arc::new(Notify::new());
    let (state, began) = (Arc::clone(&app), Arc::clone(&draining));
    let ended = async move {
        tokio::select! {
            () = asked_to_end() => {}
            () = stop.notified() => {}
        }
        tracing::info!("shutting down");
        state.is_draining.store(true, Ordering::Release);
        began.notify_one();
    };
    let server = axum::serve(listener, routes(app)).with_graceful_shutdown(ended);
    tokio::select! {
        result = server.into_future() => {
            result.map_err(|source| Error::System { what: "serve", source })
        }
        () = async { draining.notified().await; tokio::time::sleep(shutdown_timeout).await } => {
            tracing::warn!("answers that were still running are cut off");
            Ok(())
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn asked_to_end() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        // Without signals only a stopper ends the server.
        std::future::pending::<()>().await;
    }
}

fn routes(app: Arc<App>) -> Router {
    // What is here is in openapi.json, too.
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::handle))
        .route("/v1/completions", post(openai::completions::handle))
        .route("/v1/embeddings", post(openai::embeddings::handle))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::one))
        .route("/v1/rerank", post(openai::embeddings::rerank))
        .route("/rerank", post(openai::embeddings::rerank))
        .route("/v1/responses", post(openai::responses::handle))
        .route("/v1/load_lora_adapter", post(openai::adapters::load))
        .route("/v1/unload_lora_adapter", post(openai::adapters::unload))
        .route("/v1/messages", post(anthropic::handle))
        .route("/v1/messages/count_tokens", post(anthropic::count))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed))
        .route("/api/show", post(ollama::show))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::tags))
        .route("/api/version", get(ollama::version))
        .route("/", get(page::page))
        .route("/tokenize", post(extra::tokenize))
        .route("/detokenize", post(extra::detokenize))
        .route("/apply-template", post(extra::apply_template))
        .route("/health", get(extra::health))
        .route("/v1/health", get(extra::health))
        .route("/ready", get(extra::ready))
        .route("/metrics", get(extra::metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        // Handlers read bodies themselves, with their own limit.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

async fn unknown(method: Method, request: Request) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {}", request.uri().path()))
}

async fn not_allowed(method: Method, request: Request) -> ApiError {
    let message = format!("{} does not take {method}", request.uri().path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// What a path is for; `None` is open to everybody.
fn scope(path: &str) -> Option<Scope> {
    match path {
        "/" | "/health" | "/v1/health" | "/ready" | "/openapi.json" => None,
        "/v1/load_lora_adapter" | "/v1/unload_lora_adapter" => Some(Scope::Admin),
        "/metrics" => Some(Scope::Metrics),
        "/v1/embeddings" | "/v1/rerank" | "/rerank" | "/api/embed" => Some(Scope::Embed),
        _ => Some(Scope::Generate),
    }
}

/// Lets requests in, gives them a name, and notes how they went.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begin = Instant::now();
    let id = app.id("req-");
    let admitted = scope(&path).map_or(Ok(()), |scope| app.keys.admit(request.headers(), scope));
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    let status = response.status().as_u16();
    // Paths that do not exist would be labels without end.
    app.http.answered(if status == 404 { "other" } else { &path }, status);
    let ms = begin.elapsed().as_secs_f64() * 1e3;
    tracing::info!(%method, path, status, ms, id, "answered");
    response
}
