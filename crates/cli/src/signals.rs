//! Ctrl-C and SIGTERM: the first asks a training run to save and stop, the second ends the process.

use crate::failure::Failure;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a process that a second signal ended, by convention 128 + SIGINT.
const KILLED: i32 = 130;

/// What signals have asked for.
#[derive(Debug, Clone)]
pub struct Signals {
    stop: Arc<AtomicBool>,
    /// Once up, SIGTERM ends the process again as if nobody listened.
    talking: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from now on.
    pub fn listen() -> Result<Self, Failure> {
        let signals = Self { stop: Arc::default(), talking: Arc::default() };
        signals.register().map_err(|e| Failure::new(format!("cannot listen to signals: {e}")))?;
        Ok(signals)
    }

    fn register(&self) -> io::Result<()> {
        flag::register_conditional_default(SIGTERM, Arc::clone(&self.talking))?;
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the check comes first, so that the first signal finds the flag still down.
            flag::register_conditional_shutdown(signal, KILLED, Arc::clone(&self.stop))?;
            flag::register(signal, Arc::clone(&self.stop))?;
        }
        Ok(())
    }

    /// The flag that the first signal raises.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// From now on Ctrl-C ends an answer, not the process, and SIGTERM needs to be said only once.
    pub fn talk(&self) {
        self.stop.store(false, Ordering::Relaxed);
        self.talking.store(true, Ordering::Relaxed);
    }
}
