//! A training run as it is seen on standard error.

use crate::output::{Colour, paint_talk};
use crate::progress::Progress;
use loam_train::{EvalRow, MetricRow, Observer};

/// Shows steps as progress, and everything else as lines.
pub struct View {
    name: String,
    progress: Option<Progress>,
    /// Whether checkpoints and other routine are worth a line.
    verbose: bool,
    /// Tokens per second, smoothed: single steps jump about.
    rate: Option<f64>,
    loss: Option<f64>,
}

/// Share of the newest step in the smoothed rate and loss.
const SMOOTHING: f64 = 0.1;

impl View {
    /// A view of a run under a name.
    pub fn new(name: &str, verbose: bool) -> Self {
        Self { name: name.to_owned(), progress: None, verbose, rate: None, loss: None }
    }

    fn say(&self, text: &str) {
        match &self.progress {
            Some(progress) => progress.say(text),
            None => crate::output::say(text),
        }
    }
}

fn smooth(average: Option<f64>, new: f64) -> f64 {
    average.map_or(new, |average| average + SMOOTHING * (new - average))
}

impl Observer for View {
    fn on_step(&mut self, row: &MetricRow, total_steps: u64) {
        self.rate = Some(smooth(self.rate, row.tokens_per_s));
        self.loss = Some(smooth(self.loss, row.loss));
        let note =
            format!("loss {:.3}, {:.0} tokens/s", self.loss.unwrap_or(row.loss), self.rate.unwrap_or(row.tokens_per_s));
        let (name, first) = (&self.name, row.step - 1);
        let progress = self.progress.get_or_insert_with(|| Progress::starting_at(name, total_steps, first));
        progress.update(row.step, &note);
        if row.step == total_steps {
            self.progress = None;
        }
    }

    fn on_eval(&mut self, row: &EvalRow) {
        let bits = row.eval_bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.3} bits per byte"));
        self.say(&format!("step {}: held-out loss {:.4}{bits}{}", row.step, row.eval_loss, row.measures()));
    }

    fn on_sample(&mut self, step: u64, samples: &[String]) {
        for sample in samples {
            let text = sample.trim().replace('\n', " / ");
            self.say(&paint_talk(Colour::Dim, &format!("step {step} writes: {text}")));
        }
    }

    fn on_message(&mut self, message: &str) {
        if self.verbose {
            self.say(message);
        }
    }
}
