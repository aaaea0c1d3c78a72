//! The thread that computes. The rest of the server talks to it by messages and never waits for it but for an answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use axum::http::StatusCode;
use loam_chat::FinishReason;
use loam_infer::scheduler::{AdapterId, Event, Listener, SchedulerStats};
use loam_infer::{OpenModel, Request, Scheduler, SchedulerSettings};
use loam_models::{KvType, LanguageModel};
use loam_peft::Adapter;
use tokio::sync::{mpsc, oneshot};

use crate::error::{ApiError, Error};
use crate::metrics::ModelMetrics;

/// What the thread is told.
enum Command {
    Write { request: Box<Request>, ear: Ear, accepted: Reply<()> },
    Load { adapter: Arc<Adapter>, done: Reply<AdapterId> },
    Unload { id: AdapterId, done: Reply<()> },
}

type Reply<T> = oneshot::Sender<Result<T, loam_infer::Error>>;

/// A running engine.
#[derive(Debug)]
pub(crate) struct Engine {
    commands: Mutex<Option<Sender<Command>>>,
    stats: Arc<Mutex<SchedulerStats>>,
    is_alive: Arc<AtomicBool>,
    pub settings: SchedulerSettings,
    pub metrics: Arc<ModelMetrics>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread; it computes on the threads of `pool`.
    pub fn start(
        open: Arc<OpenModel>,
        draft: Option<Arc<LanguageModel>>,
        (settings, kv_type): (SchedulerSettings, KvType),
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self, Error> {
        scheduler(&open, draft.as_deref(), settings.clone(), kv_type)?;
        let (commands, received) = channel();
        let (stats, is_alive) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let shared = (Arc::clone(&stats), Arc::clone(&is_alive), settings.clone());
        let run = move || {
            let (stats, is_alive, settings) = shared;
            // However the thread ends, nobody shall think that it still works.
            let _flag = DownAtEnd(is_alive);
            if let Ok(scheduler) = scheduler(&open, draft.as_deref(), settings, kv_type) {
                work(scheduler, &received, &stats, &pool);
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).stack_size(STACK_BYTES).spawn(run);
        let thread = thread.map_err(|source| Error::System { what: "start the engine's thread", source })?;
        let (commands, thread) = (Mutex::new(Some(commands)), Mutex::new(Some(thread)));
        Ok(Self { commands, stats, is_alive, settings, metrics: Arc::default(), thread })
    }

    /// Hands a request over; its events come through the channel. Dropping the receiver ends the request.
    pub async fn submit(&self, request: Request) -> Result<mpsc::UnboundedReceiver<Event>, ApiError> {
        // At most as many events as the request may have tokens: what is unbounded here is bounded there.
        let (sender, events) = mpsc::unbounded_channel();
        let ear = Ear::new(sender, Arc::clone(&self.metrics), request.prompt.len());
        let request = Box::new(request);
        self.tell(|accepted| Command::Write { request, ear, accepted }).await?;
        Ok(events)
    }

    /// Puts an adapter into the model, between two steps.
    pub async fn load(&self, adapter: Arc<Adapter>) -> Result<AdapterId, ApiError> {
        self.tell(|done| Command::Load { adapter, done }).await
    }

    /// Takes an adapter out, once no text needs it.
    pub async fn unload(&self, id: AdapterId) -> Result<(), ApiError> {
        self.tell(|done| Command::Unload { id, done }).await
    }

    async fn tell<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let sent = match &*lock(&self.commands) {
            Some(commands) => commands.send(command(reply)).is_ok(),
            None => false,
        };
        match answer.await {
            Ok(result) if sent => Ok(result?),
            _ => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the engine is not running")),
        }
    }

    pub fn stats(&self) -> SchedulerStats {
        *lock(&self.stats)
    }

    pub fn is_alive(&self) -> bool {
        self.is_alive.load(Ordering::Acquire)
    }

    /// Ends the thread, once it has finished the step at hand.
    pub fn stop(&self) {
        lock(&self.commands).take();
        if let Some(thread) = lock(&self.thread).take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn scheduler<'a>(
    open: &'a OpenModel,
    draft: Option<&'a LanguageModel>,
    settings: SchedulerSettings,
    kv_type: KvType,
) -> Result<Scheduler<'a>, loam_infer::Error> {
    let scheduler = Scheduler::new(open.generator().with_kv_type(kv_type)?, settings)?;
    match draft {
        Some(draft) => scheduler.with_draft(draft),
        None => Ok(scheduler),
    }
}

/// Constraints recurse.
const STACK_BYTES: usize = 16 << 20;

struct DownAtEnd(Arc<AtomicBool>);

impl Drop for DownAtEnd {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(
    mut scheduler: Scheduler<'_>,
    received: &Receiver<Command>,
    stats: &Mutex<SchedulerStats>,
    pool: &rayon::ThreadPool,
) {
    loop {
        if scheduler.is_idle() {
            match received.recv() {
                Ok(command) => obey(&mut scheduler, command),
                Err(_) => return,
            }
        }
        loop {
            match received.try_recv() {
                Ok(command) => obey(&mut scheduler, command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        *lock(stats) = scheduler.stats();
        pool.install(|| scheduler.step());
        *lock(stats) = scheduler.stats();
    }
}

fn obey(scheduler: &mut Scheduler<'_>, command: Command) {
    // Whoever asked may be gone: of a text, the ear notices; adapters stay as they are wanted.
    match command {
        Command::Write { request, ear, accepted } => {
            let _ = accepted.send(scheduler.submit(*request, Box::new(ear)).map(|_| ()));
        }
        Command::Load { adapter, done } => {
            let _ = done.send(scheduler.load_adapter(adapter));
        }
        Command::Unload { id, done } => {
            let _ = done.send(scheduler.unload_adapter(id));
        }
    }
}

/// Passes events on and measures them.
struct Ear {
    sender: mpsc::UnboundedSender<Event>,
    metrics: Arc<ModelMetrics>,
    arrived: Instant,
    last: Option<Instant>,
    prompt_tokens: usize,
    written_tokens: usize,
    is_over: bool,
}

impl Ear {
    fn new(sender: mpsc::UnboundedSender<Event>, metrics: Arc<ModelMetrics>, prompt_tokens: usize) -> Self {
        Self { sender, metrics, arrived: Instant::now(), last: None, prompt_tokens, written_tokens: 0, is_over: false }
    }
}

impl Listener for Ear {
    fn hear(&mut self, event: Event) {
        match &event {
            Event::Token { .. } => {
                let now = Instant::now();
                match self.last.replace(now) {
                    Some(last) => self.metrics.next_token(now - last),
                    None => self.metrics.first_token(now - self.arrived),
                }
                self.written_tokens += 1;
            }
            Event::Done { finish_reason, times, .. } => {
                let reason = match finish_reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                };
                self.metrics.finished(reason, Some(*times), self.prompt_tokens, self.written_tokens);
                self.is_over = true;
            }
            Event::Failed(error) => {
                tracing::error!(%error, "a request failed");
                self.metrics.finished("error", None, self.prompt_tokens, self.written_tokens);
                self.is_over = true;
            }
            Event::Started { .. } | Event::Prompt(_) => {}
        }
        // Nobody listening any more is noticed before the next step.
        let _ = self.sender.send(event);
    }

    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if !self.is_over {
            self.metrics.finished("abort", None, self.prompt_tokens, self.written_tokens);
        }
    }
}
