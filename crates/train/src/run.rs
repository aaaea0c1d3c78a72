//! [`train`]: a whole recipe, from files to a model directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use loam_chat::Sampling;
use loam_infer::Generator;
use loam_models::{LanguageModel, Task, footprint};
use loam_tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::adapter::{AdapterRun, adapter_card};
use crate::error::{Error, Result};
use crate::export::{CardFacts, Export, export_model, model_card};
use crate::prepare::{StageData, StageRun, Start, open_data};
use crate::recipe::{Facts, Recipe, Recompute};
use crate::report::{self, write_reports};
use crate::run_dir::{Log, RunDir};
use crate::system::{available_mib, environment, predicted_rss_mib};
use crate::trainer::{Ending, Hooks, Observer, Summary};

/// What a run needs besides its recipe.
pub struct Options<'a> {
    /// The run's directory. Default: a new one below `runs`.
    pub dir: Option<PathBuf>,
    /// Where new run directories are made.
    pub runs: PathBuf,
    /// Name of the run, unless the recipe has one. A run that goes on keeps its own.
    pub name: String,
    /// Go on with the run in `dir`.
    pub resume: bool,
    /// Where prepared data and tokenizers are kept for the next run.
    pub cache_dir: PathBuf,
    /// Once true, the run writes a checkpoint and ends.
    pub stop: Arc<AtomicBool>,
    /// Receives the news.
    pub observer: &'a mut dyn Observer,
}

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run's directory.
    pub dir: PathBuf,
    /// The trained model, or the adapter where one was trained; `None` where the run was interrupted.
    pub model: Option<PathBuf>,
    /// How it went.
    pub summary: Summary,
    /// The recipe with every default filled in.
    pub resolved: Recipe,
}

/// Runs a recipe; `path` is only used in messages.
pub fn train(recipe: &Recipe, path: &Path, options: Options<'_>) -> Result<Outcome> {
    recipe.validate(path)?;
    with_threads(recipe.train.threads, move |threads| run(recipe, options, threads))
}

/// Runs `work` inside of a pool of this many threads (one per core by default), and tells it their number. Entering the
/// pool once saves a hand-over per parallel operation.
pub fn with_threads<R: Send>(threads: Option<usize>, work: impl FnOnce(usize) -> Result<R> + Send) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
    let pool = pool.map_err(|e| Error::Threads { threads: threads.unwrap_or(0), reason: e.to_string() })?;
    let threads = pool.current_num_threads();
    pool.install(|| work(threads))
}

fn run(recipe: &Recipe, options: Options<'_>, threads: usize) -> Result<Outcome> {
    let name = recipe.train.name.as_ref().unwrap_or(&options.name);
    let dir = options.dir.unwrap_or_else(|| RunDir::fresh_path(&options.runs, recipe.stage.name(), name));
    let is_new = !dir.exists();
    let dir = RunDir::open(dir, options.resume)?;
    let earlier = dir.earlier()?.and_then(|earlier| earlier.train.name);
    let name = earlier.or_else(|| recipe.train.name.clone()).unwrap_or(options.name);
    let mut log = Log::open(&dir, options.observer)?;
    let begun = begin(recipe, &options.cache_dir, &mut log);
    if begun.is_err() && is_new {
        dir.discard();
    }
    let (start, data) = begun?;
    let spec = start.model.spec();
    let precision = recipe.train.precision.settled();
    let facts = Facts {
        spec,
        config: start.model.config(),
        sequences: data.sequences(),
        frozen: recipe.peft.as_ref().map(|_| start.model.frozen_bytes(precision)),
        available_mib: available_mib(),
    };
    let mut resolved =
        Recipe { train: crate::recipe::TrainSection { name: Some(name), ..recipe.train.clone() }, ..recipe.clone() }
            .resolved(&facts);
    resolved.data.target_len = resolved.data.target_len.or(data.target_len());
    let adapter = AdapterRun::begin(&resolved, &start.model, &start.tokenizer);
    if adapter.is_err() && is_new {
        dir.discard();
    }
    let adapter = adapter?;
    dir.describe(recipe, &resolved, &environment(threads, &data.description(), &start.base))?;
    announce(&start, &resolved, adapter.as_ref(), &mut log);
    if let Some(adapter) = &adapter {
        let (trained, all) = (adapter.adapter().num_parameters(), start.model.num_parameters());
        let share = 100.0 * trained as f64 / all.max(1) as f64;
        let name = adapter.adapter().config().method.name();
        log.on_message(&format!("adapter: {name}, {trained} trained parameters ({share:.2} % of the model's)"));
    }
    let mut sample = sampler(&start.tokenizer, &resolved);
    let hooks = Hooks { observer: &mut log, sample: Some(&mut sample), stop: options.stop };
    let stage = StageRun {
        start: &start,
        model: &start.model,
        recipe: &resolved,
        dir: &dir,
        resume: options.resume,
        hooks,
        adapter: adapter.as_ref(),
    };
    let summary = data.train(stage)?;
    drop(sample);
    if let Some(row) = &summary.evaluation {
        dir.write_evaluation(row)?;
    }
    let model = match summary.ending {
        Ending::Interrupted => None,
        _ => Some(match &adapter {
            Some(adapter) => {
                let card = adapter_card(adapter, &resolved, &start.model, summary.progress.step);
                adapter.export(&start.model, &dir.join("adapter"), &card)?
            }
            None => export(&dir, &start, data.as_ref(), &resolved, &summary)?,
        }),
    };
    let facts = report::Facts {
        recipe: &resolved,
        model: &spec.summary(),
        parameters: start.model.num_parameters(),
        summary: &summary,
    };
    write_reports(&dir, &facts)?;
    log.on_message(&format!("report: {}", dir.join("report.md").display()));
    Ok(Outcome { dir: dir.path().into(), model, summary, resolved })
}

/// Everything that can be wrong with the recipe's files shows here, before the first step.
fn begin(recipe: &Recipe, cache_dir: &Path, log: &mut Log<'_>) -> Result<(Start, Box<dyn StageData>)> {
    let start = Start::of(recipe, cache_dir, log)?;
    let data = open_data(recipe, &start, cache_dir, log)?;
    Ok((start, data))
}

fn announce(start: &Start, resolved: &Recipe, adapter: Option<&AdapterRun>, log: &mut Log<'_>) {
    let counts = footprint(start.model.spec());
    let train = &resolved.train;
    // The adapter's own: values, gradients and two moments.
    let frozen =
        adapter.map(|own| start.model.frozen_bytes(train.precision.settled()) + 16 * own.adapter().num_parameters());
    log.on_message(&format!("model: {}, {} parameters", start.model.spec().summary(), counts.parameters));
    log.on_message(&format!(
        "training: {} steps of {} sequences of {} tokens, precision {}, about {} MiB of memory{}",
        train.steps.unwrap_or(0),
        train.batch.unwrap_or(0),
        resolved.data.seq_len.unwrap_or(0),
        train.precision.name(),
        predicted_rss_mib(&resolved.step_memory(start.model.spec(), frozen)),
        if train.recompute == Recompute::Block { " (activations are made again for backward)" } else { "" },
    ));
}

/// Continues the recipe's prompts. A prompt that cannot be continued becomes the reason why.
fn sampler<'a>(
    tokenizer: &'a Tokenizer,
    recipe: &'a Recipe,
) -> impl FnMut(&LanguageModel, u64) -> Vec<String> + Send + 'a {
    move |model, _step| {
        // What does not write, or writes about a source, has no samples.
        if !model.spec().is_causal() || model.spec().encoder.is_some() || model.spec().head.task != Task::LanguageModel
        {
            return Vec::new();
        }
        let generator = Generator::new(model, tokenizer);
        let sampling = Sampling {
            max_tokens: recipe.train.sample_tokens,
            seed: recipe.seed,
            temperature: 0.8,
            ..Sampling::default()
        };
        let write = |prompt: &String| {
            let ids = generator.encode_prompt(prompt)?;
            Ok::<_, loam_infer::Error>(generator.write(&ids, &sampling, &mut |_| {})?.completion.text)
        };
        let prompts = recipe.train.sample_prompts.iter();
        prompts
            .map(|prompt| write(prompt).map_or_else(|e| format!("(no sample: {e})"), |text| format!("{prompt}{text}")))
            .collect()
    }
}

fn export(dir: &RunDir, start: &Start, data: &dyn StageData, resolved: &Recipe, summary: &Summary) -> Result<PathBuf> {
    let path = dir.model_path();
    let card = model_card(
        &start.model,
        &CardFacts {
            name: resolved.train.name.as_deref().unwrap_or("model"),
            stage: resolved.stage.name(),
            base: resolved.model.path.as_deref(),
            steps: summary.progress.step,
            tokens: summary.progress.tokens,
            held_out: summary.evaluation.as_ref().map(|row| (row.eval_loss, row.eval_bits_per_byte)),
            recipe: &resolved.to_toml(),
        },
    );
    let export = Export {
        model: &start.model,
        tokenizer: &start.tokenizer,
        template: start.template.as_ref(),
        chat_end: data.chat_end(),
        card: &card,
    };
    export_model(&path, &export)?;
    Ok(path)
}

/// Size and hash of the files that a run starts from.
pub(crate) fn file_hashes(paths: &[PathBuf]) -> Result<Value> {
    let entry = |path: &PathBuf| -> Result<Value> {
        let bytes = loam_formats::Mapped::open(path)?;
        let hash = format!("{:016x}", twox_hash::XxHash3_64::oneshot(&bytes));
        Ok(json!({"path": path.display().to_string(), "bytes": bytes.len(), "xxh3": hash}))
    };
    paths.iter().map(entry).collect()
}
