//! `loam train`: a recipe becomes a model.

use super::bench::{Operations, Roof};
use crate::Outcome;
use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::output;
use crate::setup::Environment;
use crate::signals::Signals;
use crate::view::View;
use loam_tensor::{pool_stats, profile};
use loam_train::{Ending, Options, Recipe, peak_rss_mib};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where run directories go by default.
const RUNS: &str = "runs";

pub fn run(args: &TrainArgs, threads: Option<usize>, environment: &Environment) -> Result<Outcome, Failure> {
    let mut recipe = Recipe::open(&args.recipe, &args.set)?;
    recipe.train.threads = recipe.train.threads.or(threads);
    let stem = args.recipe.file_stem().map_or("run".into(), |stem| stem.to_string_lossy().into_owned());
    let signals = Signals::listen()?;
    let mut view = View::new("training", true);
    let options = Options {
        dir: args.dir.clone(),
        runs: PathBuf::from(RUNS),
        name: args.name.clone().unwrap_or(stem),
        resume: args.resume,
        cache_dir: cache_dir(environment, Path::new(RUNS)),
        stop: signals.stop_flag(),
        observer: &mut view,
    };
    let train = || loam_train::train(&recipe, &args.recipe, options);
    let start = Instant::now();
    let (outcome, costs) = if args.profile { profile::recorded(train) } else { (train(), BTreeMap::new()) };
    let (outcome, seconds) = (outcome?, start.elapsed().as_secs_f64());
    drop(view);
    if args.profile {
        // Before the roof is measured, which takes memory, too.
        let (all, buffers) = (peak_rss_mib(), pool_stats().peak_bytes >> 20);
        let train = &outcome.resolved.train;
        let roof = loam_train::with_threads(train.threads, |_| Ok(Roof::measured().of(train.precision.settled())))?;
        let steps = (outcome.summary.progress.step - outcome.summary.begun).max(1) as f64;
        output::say("where the time went, per step (opening, evaluation, samples and checkpoints included)");
        Operations::of(&costs, steps, seconds, &roof).lines().iter().for_each(|line| output::say(line));
        output::say(&format!("memory: {all} MiB at most, the buffers of tensors {buffers} MiB"));
    }
    if outcome.summary.ending == Ending::Interrupted {
        output::say(&format!("stopped at step {}; nothing is lost", outcome.summary.progress.step));
        output::complain("hint", &format!("go on with `{}`", resuming(args, threads, &outcome.dir)));
        return Ok(Outcome::Negative);
    }
    if let Some(row) = &outcome.summary.evaluation {
        let bits = row.eval_bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        let (loss, perplexity, more) = (row.eval_loss, row.eval_perplexity, row.measures());
        output::say(&format!("held-out loss {loss:.4}, perplexity {perplexity:.2}{bits}{more}"));
    }
    // The one thing that a script wants to know.
    output::line(&outcome.dir.display().to_string())?;
    Ok(Outcome::Done)
}

/// The command that goes on with the run in `dir`.
fn resuming(args: &TrainArgs, threads: Option<usize>, dir: &Path) -> String {
    let mut words = vec!["loam".into(), "train".into(), args.recipe.to_string_lossy().into_owned()];
    words.extend(threads.into_iter().flat_map(|threads| ["--threads".into(), threads.to_string()]));
    words.extend(args.set.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]));
    words.extend(["--dir".into(), dir.to_string_lossy().into_owned(), "--resume".into()]);
    words.iter().map(|word| in_shell(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
fn in_shell(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=+.,:/@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Where prepared data is kept for the next run: in the local store, or beside the runs where there is none.
pub fn cache_dir(environment: &Environment, runs: &Path) -> PathBuf {
    environment.home.as_ref().map_or_else(|| runs.join(".cache"), |home| home.join("cache"))
}
