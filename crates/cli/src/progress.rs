//! Progress on standard error: a bar on a terminal, a plain line every few seconds elsewhere.

use crate::output;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Between two plain lines.
const QUIET: Duration = Duration::from_secs(5);
/// Between two drawings of a bar.
const FRAME: Duration = Duration::from_millis(100);

/// How far a piece of work is.
#[derive(Debug)]
pub struct Progress {
    name: String,
    total: u64,
    first: u64,
    done: u64,
    start: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows work of `total` units under a name; 0 where the total is not known.
    pub fn new(name: &str, total: u64) -> Self {
        Self::starting_at(name, total, 0)
    }

    /// The same for work of which `first` units were done before; they say nothing about the speed.
    pub fn starting_at(name: &str, total: u64, first: u64) -> Self {
        let bar = output::stderr_is_terminal().then(|| bar(name, total).with_position(first));
        let now = Instant::now();
        Self { name: name.to_owned(), total, first, done: first, start: now, last_line: now, bar }
    }

    /// `done` units are done; `note` says what else is worth knowing (rates, losses).
    pub fn update(&mut self, done: u64, note: &str) {
        self.done = done;
        match &self.bar {
            Some(bar) => {
                bar.set_message(note.to_owned());
                bar.set_position(done);
            }
            None if self.last_line.elapsed() >= QUIET => {
                self.last_line = Instant::now();
                let line = self.plain(note);
                output::say(&line);
            }
            None => {}
        }
    }

    /// Changes the total, once it is known.
    pub fn set_total(&mut self, total: u64) {
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// Says something without tearing the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::say(text)),
            None => output::say(text),
        }
    }

    /// Removes the bar. The time since the start.
    pub fn finish(self) -> Duration {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.start.elapsed()
    }

    fn plain(&self, note: &str) -> String {
        let mut line = format!("{}: ", self.name);
        let elapsed = self.start.elapsed();
        // Writing to a String cannot fail.
        let _ = match self.total {
            0 => write!(line, "{}", self.done),
            total => write!(line, "{}/{total} ({:.0} %)", self.done, 100.0 * self.done as f64 / total as f64),
        };
        if !note.is_empty() {
            let _ = write!(line, ", {note}");
        }
        if self.done > self.first && self.total > self.done {
            let left = elapsed.mul_f64((self.total - self.done) as f64 / (self.done - self.first) as f64);
            let _ = write!(line, ", {} left", duration(left));
        }
        line
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // After an error the bar must not stand between the user and the message.
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(name: &str, total: u64) -> ProgressBar {
    let template = match total {
        0 => "{prefix} {spinner} {msg} {elapsed}",
        _ => "{prefix} [{bar:30}] {percent:>3} % {msg} {left}",
    };
    let left = |state: &ProgressState, text: &mut dyn Write| {
        // The bar is only a view: what it cannot show is not worth an error.
        let _ = write!(text, "{} left", duration(state.eta()));
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total)
        .with_style(style.with_key("left", left).progress_chars("=> "))
        .with_prefix(name.to_owned());
    bar.enable_steady_tick(FRAME);
    bar
}

/// A duration for people: `7 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_in_two_units_at_most() {
        let said = [7, 200, 7500].map(|s| duration(Duration::from_secs(s)));
        assert_eq!(said, ["7 s", "3 min 20 s", "2 h 5 min"]);
    }

    #[test]
    fn a_plain_line_says_how_far_and_how_long_still() {
        let mut progress = Progress::new("training", 10);
        progress.done = 5;
        progress.start = Instant::now() - Duration::from_secs(20);
        assert_eq!(progress.plain("loss 2.1"), "training: 5/10 (50 %), loss 2.1, 20 s left");
    }
}
