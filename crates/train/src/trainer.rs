//! The only training loop. It owns accumulation, clipping, schedule, optimizer, evaluation, early stop, samples,
//! checkpoints, resume and the stop signal; what is minimized is the objective's business.

mod guard;
mod observer;
mod settings;
mod step;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use loam_models::LanguageModel;
use loam_tensor::Parameter;

pub use guard::{Guard, check_gradients};
pub use observer::{Observer, Silent};
pub use settings::Settings;
pub use step::evaluate;

use crate::adapter::AdapterRun;
use crate::batch::{Source, Validation};
use crate::checkpoint::{Checkpoints, Progress};
use crate::error::Result;
use crate::metrics::{EvalRow, MetricRow, Row};
use crate::objective::Objective;
use crate::optim::Optimizer;
use crate::run_dir::{Journal, RunDir};
use crate::system::peak_rss_mib;
use crate::watch::Watch;
use step::optimizer_step;

/// Writes samples of the model's text after some step.
pub type SampleFn<'a> = dyn FnMut(&LanguageModel, u64) -> Vec<String> + Send + 'a;

/// What the outside has a say in while the loop runs.
pub struct Hooks<'a> {
    /// Receives the news.
    pub observer: &'a mut dyn Observer,
    /// Writes samples.
    pub sample: Option<&'a mut SampleFn<'a>>,
    /// Once true, the loop finishes its step, writes a checkpoint and returns.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// After its last step.
    Finished,
    /// Because the evaluation got no better.
    StoppedEarly,
    /// By the stop flag; it can be resumed.
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// How it ended.
    pub ending: Ending,
    /// The steps that were done before: none, unless it was resumed.
    pub begun: u64,
    /// Where it stands.
    pub progress: Progress,
    /// Its last step; `None` where a resumed run had none left to do.
    pub last_step: Option<MetricRow>,
    /// The evaluation at the end, over all held-out batches; `None` without those, or when interrupted.
    pub evaluation: Option<EvalRow>,
}

/// A model in training.
pub struct Trainer<'a, O: Objective> {
    model: &'a LanguageModel,
    parameters: Vec<(String, Parameter)>,
    objective: &'a mut O,
    train: &'a dyn Source<O::Batch>,
    validation: Option<&'a dyn Validation<O::Batch>>,
    settings: Settings,
    optimizer: Optimizer,
    progress: Progress,
    journal: Option<Journal<'a>>,
    watch: Watch,
    adapter: Option<&'a AdapterRun>,
}

impl<'a, O: Objective> Trainer<'a, O> {
    /// A trainer at step 0 that keeps nothing on disk.
    pub fn new(
        model: &'a LanguageModel,
        objective: &'a mut O,
        train: &'a dyn Source<O::Batch>,
        validation: Option<&'a dyn Validation<O::Batch>>,
        settings: Settings,
    ) -> Self {
        let parameters = [model.parameters(), objective.parameters()].concat();
        let optimizer = Optimizer::new(&parameters, settings.optimizer).with_ema(settings.ema_decay);
        let validation = validation.filter(|validation| !validation.is_empty());
        let progress = Progress::default();
        let watch = Watch::default();
        Self {
            model,
            parameters,
            objective,
            train,
            validation,
            settings,
            optimizer,
            progress,
            journal: None,
            watch,
            adapter: None,
        }
    }

    /// Trains an adapter of the model instead of the model. To be called before [`Trainer::in_run_dir`].
    pub fn with_adapter(mut self, adapter: Option<&'a AdapterRun>) -> Self {
        if let Some(adapter) = adapter {
            // What the objective has of its own, such as a value head, is trained beside the adapter.
            self.parameters = [adapter.parameters().to_vec(), self.objective.parameters()].concat();
            self.optimizer = Optimizer::new(&self.parameters, self.settings.optimizer)
                .with_lr_factors(|name, parameter| adapter.lr_factor(name, parameter))
                .with_ema(self.settings.ema_decay);
        }
        self.adapter = adapter;
        self
    }

    fn checkpoints(&self, dir: &RunDir) -> Checkpoints {
        if self.adapter.is_some() { dir.checkpoints().of_adapter() } else { dir.checkpoints() }
    }

    /// Keeps metrics, samples and checkpoints in a run directory; with `resume` goes on from its newest checkpoint.
    pub fn in_run_dir(mut self, dir: &'a RunDir, resume: bool, observer: &mut dyn Observer) -> Result<Self> {
        if resume {
            let checkpoints = self.checkpoints(dir);
            let mut report = |message: &str| observer.on_message(message);
            if let Some(progress) = checkpoints.load_latest(&self.parameters, &mut self.optimizer, &mut report)? {
                if let Some(state) = checkpoints.source_state(progress.step)? {
                    self.train.restore(&state)?;
                }
                self.progress = progress;
                observer.on_message(&format!("resumed at step {}", self.progress.step));
            }
        }
        self.journal = Some(Journal::open(dir, &self.progress)?);
        Ok(self)
    }

    /// Where the run stands.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Runs to the end, or until the stop flag is up.
    pub fn run(mut self, hooks: &mut Hooks<'_>) -> Result<Summary> {
        let (begun, steps) = (self.progress.step, self.settings.schedule.steps);
        let mut last_step = None;
        // What an interrupted run had still to do after its last step.
        self.after_step(hooks)?;
        while self.progress.step < steps && !self.progress.stopped_early {
            let row = self.step()?;
            self.record(Row::Step(row.clone()))?;
            hooks.observer.on_step(&row, steps);
            self.watch.look(&row, &mut |message| hooks.observer.on_message(message));
            last_step = Some(row);
            if hooks.stop.load(Ordering::Relaxed) {
                self.save_checkpoint(hooks)?;
                return Ok(Summary {
                    ending: Ending::Interrupted,
                    begun,
                    progress: self.progress,
                    last_step,
                    evaluation: None,
                });
            }
            self.after_step(hooks)?;
        }
        let ending = if self.progress.stopped_early { Ending::StoppedEarly } else { Ending::Finished };
        if self.settings.early_stop.is_some() && self.progress.best_step != self.progress.step {
            self.take_best_weights(hooks)?;
        }
        // What the run leaves is the mean of the weights, where one was kept; the checkpoints have both.
        self.optimizer.swap_ema();
        let evaluation = self.final_evaluation(hooks)?;
        Ok(Summary { ending, begun, progress: self.progress, last_step, evaluation })
    }

    fn step(&mut self) -> Result<MetricRow> {
        let start = Instant::now();
        let micro_batches = self.train.batch(self.progress.step)?;
        let result = optimizer_step(
            self.model,
            &self.parameters,
            self.objective,
            &mut self.optimizer,
            &self.settings,
            (self.progress.step, &micro_batches),
            (self.adapter, &mut self.progress.guard),
        )?;
        self.progress.step += 1;
        self.progress.tokens += result.tokens;
        let seconds = start.elapsed().as_secs_f64();
        Ok(MetricRow {
            step: self.progress.step,
            tokens: self.progress.tokens,
            loss: result.loss,
            lr: result.lr,
            grad_norm: result.grad_norm,
            tokens_per_s: result.tokens as f64 / seconds.max(1e-9),
            ms: seconds * 1e3,
            rss_mib: peak_rss_mib(),
            metrics: result.metrics,
        })
    }

    /// Evaluation, samples and checkpoint, where they are due and not done yet.
    fn after_step(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let step = self.progress.step;
        let is_last = step == self.settings.schedule.steps;
        let due = |every: u64| step > 0 && every > 0 && step.is_multiple_of(every);
        let mut is_best = false;
        // The last step has the evaluation of the end, but early stopping compares like with like.
        let wanted = if is_last { self.settings.early_stop.is_some() } else { due(self.settings.eval_every) };
        if wanted && self.progress.eval_step < step {
            is_best = self.periodic_evaluation(hooks)?;
        }
        if due(self.settings.sample_every) || (is_last && self.settings.sample_every > 0) {
            self.sample(hooks)?;
        }
        if due(self.settings.checkpoint_every) || is_last || is_best || self.progress.stopped_early {
            self.save_checkpoint(hooks)?;
        }
        Ok(())
    }

    /// Returns whether these weights are the best so far, and early stopping wants to keep them.
    fn periodic_evaluation(&mut self, hooks: &mut Hooks<'_>) -> Result<bool> {
        self.optimizer.swap_ema();
        let row = self.evaluation(self.settings.eval_batches, hooks);
        self.optimizer.swap_ema();
        let Some(row) = row? else { return Ok(false) };
        let Some(early_stop) = self.settings.early_stop else { return Ok(false) };
        let progress = &mut self.progress;
        // As transformers' EarlyStoppingCallback: any better loss is the new best, but only a gain of more than the least
        // one makes the count start again.
        let gain = progress.best_loss.map_or(f64::INFINITY, |best| best - row.eval_loss);
        if gain > 0.0 {
            (progress.best_loss, progress.best_step) = (Some(row.eval_loss), progress.step);
        }
        let patience_counts = gain <= early_stop.min_delta;
        progress.evals_without_gain = if patience_counts { progress.evals_without_gain + 1 } else { 0 };
        if progress.evals_without_gain >= early_stop.patience {
            progress.stopped_early = true;
            let least = match early_stop.min_delta {
                0.0 => String::new(),
                delta => format!(" of more than {delta}"),
            };
            hooks.observer.on_message(&format!(
                "stopping early at step {}: no gain{least} in {} evaluations; the best was at step {}",
                progress.step, early_stop.patience, progress.best_step
            ));
        }
        Ok(gain > 0.0)
    }

    fn evaluation(&mut self, limit: u64, hooks: &mut Hooks<'_>) -> Result<Option<EvalRow>> {
        let Some(validation) = self.validation else { return Ok(None) };
        let row = evaluate(self.model, self.objective, &self.settings, validation, limit)?;
        let row = EvalRow { step: self.progress.step, tokens: self.progress.tokens, ..row };
        self.progress.eval_step = self.progress.step;
        self.record(Row::Eval(row.clone()))?;
        hooks.observer.on_eval(&row);
        Ok(Some(row))
    }

    /// The last evaluation takes all held-out batches. It is not part of the checkpoint, so a resumed run repeats it.
    fn final_evaluation(&mut self, hooks: &mut Hooks<'_>) -> Result<Option<EvalRow>> {
        self.evaluation(u64::MAX, hooks)
    }

    fn sample(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let Some(sample) = hooks.sample.as_mut() else { return Ok(()) };
        self.optimizer.swap_ema();
        let samples = sample(self.model, self.progress.step);
        self.optimizer.swap_ema();
        if samples.is_empty() {
            return Ok(());
        }
        if let Some(journal) = &self.journal {
            journal.dir().write_samples(self.progress.step, &samples)?;
        }
        hooks.observer.on_sample(self.progress.step, &samples);
        Ok(())
    }

    fn record(&mut self, row: Row) -> Result<()> {
        self.journal.as_mut().map_or(Ok(()), |journal| journal.metrics.append(row))
    }

    fn save_checkpoint(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.metrics.sync()?;
        let checkpoints = self.checkpoints(journal.dir());
        let state = self.train.state()?;
        let state = state.as_deref();
        let path = checkpoints.save(
            &self.parameters,
            &self.optimizer,
            &self.progress,
            self.settings.keep_checkpoints,
            state,
        )?;
        hooks.observer.on_message(&format!("checkpoint: {}", path.display()));
        Ok(())
    }

    fn take_best_weights(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let (Some(journal), best) = (&self.journal, self.progress.best_step) else { return Ok(()) };
        if best > 0 {
            // The state belongs to it: it has the mean of those weights.
            self.checkpoints(journal.dir()).load(best, &self.parameters, Some(&mut self.optimizer))?;
            hooks.observer.on_message(&format!("taking the weights of step {best}, the best evaluation"));
        }
        Ok(())
    }
}
