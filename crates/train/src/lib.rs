//! Training: one loop, and everything around it that makes a run repeatable.
//!
//! **What it is for.** Turning a [`Recipe`] and data into a model: objectives, optimizers, schedules, evaluation,
//! checkpoints that resume to the same bytes, metrics and reports.
//!
//! **What it is not.** It defines no model and prints nothing: news goes to an [`Observer`].
//!
//! **Where to start.** [`train`] runs a whole recipe; [`Trainer`] is the loop alone.

mod adapter;
mod batch;
mod checkpoint;
mod clip;
mod error;
pub mod export;
pub mod losses;
mod metrics;
pub mod objective;
pub mod optim;
mod plot;
mod prefer;
mod prepare;
pub mod recipe;
pub mod report;
pub mod reward;
mod rollout;
mod run;
mod run_dir;
mod schedule;
mod system;
mod trainer;
mod watch;

pub use adapter::AdapterRun;
pub use batch::{LoaderSource, LoaderValidation, Source, Validation, split_rows};
pub use checkpoint::{Checkpoints, Progress};
pub use clip::{clip_factor, global_norm};
pub use error::{Error, Result};
pub use metrics::{EvalRow, MetricRow, Metrics, Row, read_rows};
pub use objective::{Loss, Objective, Pass};
pub use optim::{Optimizer, OptimizerSettings};
pub use plot::{bars_svg, loss_svg};
pub use prefer::{PairSettings, RankedPair, ranked_pairs};
pub use recipe::{Recipe, Stage};
pub use rollout::{Item, Prompted, RlBatch, RlLabel, RolloutSettings, Rollouts};
pub use run::{Options, Outcome, train, with_threads};
pub use run_dir::{Log, RunDir};
pub use schedule::{DecayShape, Schedule};
pub use system::{environment, peak_rss_mib, predicted_rss_mib, timestamp};
pub use trainer::{
    Ending, Guard, Hooks, Observer, SampleFn, Settings, Silent, Summary, Trainer, check_gradients, evaluate,
};
