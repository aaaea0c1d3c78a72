//! The thread that computes. The rest of the server talks to it by messages and never waits for it but for an answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use axum::http::StatusCode;
use loam_chat::FinishReason;
use loam_infer::scheduler::{Event, Listener, SchedulerStats};
use loam_infer::{OpenModel, Request, Scheduler, SchedulerSettings};
use tokio::sync::{mpsc, oneshot};

use crate::error::{ApiError, Error};
use crate::metrics::ModelMetrics;

/// What the thread is told.
struct Command {
    request: Request,
    ear: Ear,
    accepted: oneshot::Sender<Result<(), loam_infer::Error>>,
}

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
        settings: SchedulerSettings,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self, Error> {
        Scheduler::new(open.generator(), settings.clone())?;
        let (commands, received) = channel();
        let (stats, is_alive) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let shared = (Arc::clone(&stats), Arc::clone(&is_alive), settings.clone());
        let run = move || {
            let (stats, is_alive, settings) = shared;
            // However the thread ends, nobody shall think that it still works.
            let _flag = DownAtEnd(is_alive);
            if let Ok(scheduler) = Scheduler::new(open.generator(), settings) {
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
        let (accepted, answer) = oneshot::channel();
        let ear = Ear::new(sender, Arc::clone(&self.metrics), request.prompt.len());
        let command = Command { request, ear, accepted };
        let sent = match &*lock(&self.commands) {
            Some(commands) => commands.send(command).is_ok(),
            None => false,
        };
        match answer.await {
            Ok(result) if sent => result.map_err(ApiError::from)?,
            _ => return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the engine is not running")),
        }
        Ok(events)
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
                Ok(command) => submit(&mut scheduler, command),
                Err(_) => return,
            }
        }
        loop {
            match received.try_recv() {
                Ok(command) => submit(&mut scheduler, command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        *lock(stats) = scheduler.stats();
        pool.install(|| scheduler.step());
        *lock(stats) = scheduler.stats();
    }
}

fn submit(scheduler: &mut Scheduler<'_>, command: Command) {
    let Command { request, ear, accepted } = command;
    let result = scheduler.submit(request, Box::new(ear)).map(|_| ());
    // Whoever asked may be gone, which the ear notices.
    let _ = accepted.send(result);
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
