//! `loam model plan`: what a model needs and how fast it will be on this machine, from headers and a short calibration.

mod advice;
mod pace;
mod probe;
mod sample;
mod verify;

use super::set_precision;
use crate::Outcome;
use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::locate::model_path;
use crate::machine;
use crate::output;
use crate::setup::Environment;
use crate::table::{Table, bytes, grouped};
use loam_formats::hf_dir::{TORCH_WEIGHTS, TORCH_WEIGHTS_INDEX, WEIGHTS, WEIGHTS_INDEX};
use loam_formats::{Gguf, HfDir};
use loam_models::{
    LanguageModel, Mix, Plan as Types, RunMemory, RunShape, Task, WeightMemory, activation_numbers, kept_type,
    kv_numbers, run_memory,
};
use loam_tensor::DType;
use pace::{Asked, Bench, Pace};
pub use probe::Probe;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Context that is planned for where nobody says.
const CONTEXT: usize = 2048;
/// Pages of the program that are first looked at when a model runs.
const CODE_BYTES: usize = 4 << 20;
/// Types that a directory is planned in besides its own.
const USUAL: [&str; 4] = ["q8_0", "q6_k", "q4_k_m", "q4_0"];

/// Weights to plan for: as they lie on the disk, or as a GGUF file of some types.
#[derive(Clone)]
struct Weights {
    name: String,
    /// What is to be made of the model first.
    mix: Option<Mix>,
    types: Types,
    memory: WeightMemory,
}

/// What is planned: the model's outline, where it is, and what the machine gives.
struct Plan {
    path: PathBuf,
    outline: LanguageModel,
    weights: Vec<Weights>,
    /// The program itself, as it is now.
    overhead: usize,
    /// Memory that may be used.
    available: usize,
}

/// One combination, and what is predicted of it.
struct Row {
    weights: usize,
    shape: RunShape,
    memory: RunMemory,
    pace: Option<Pace>,
}

pub fn run(args: &PlanArgs, environment: &Environment) -> Result<Outcome, Failure> {
    set_precision(args.compute.precision)?;
    let path = model_path(&args.model, environment)?;
    if let Some(asked) = args.probe {
        return probe::run(&path, asked);
    }
    let plan = Plan::new(args, path)?;
    // A row that is verified is calibrated right before it runs: machines that others use are not always as fast.
    let rows = plan.rows(args, !args.no_speed && !args.verify)?;
    if args.verify {
        return verify::run(&plan, &rows, args);
    }
    if args.json {
        output::json(&plan.json(&rows))?;
        return Ok(Outcome::Done);
    }
    plan.print(&rows, args)?;
    // A plan of which nothing fits is a negative result.
    Ok(if rows.iter().any(|row| plan.fits(&row.memory)) { Outcome::Done } else { Outcome::Negative })
}

impl Plan {
    fn new(args: &PlanArgs, path: PathBuf) -> Result<Self, Failure> {
        let outline = LanguageModel::outline(&path)?;
        if outline.spec().encoder.is_some() || outline.spec().head.task != Task::LanguageModel {
            let hint = "`loam model show` has the size of any model";
            return Err(Failure::with_hint("plans are made for language models of one stack", hint));
        }
        let weights = weights_of(args, &path, &outline)?;
        let overhead = machine::resident_bytes().unwrap_or(0) + CODE_BYTES;
        let available = match args.memory {
            Some(mib) => mib << 20,
            None => machine::memory().map_or(usize::MAX, |(_, available)| available as usize),
        };
        Ok(Self { path, outline, weights, overhead, available })
    }

    /// Every combination that was asked for, calibrated where speeds are wanted.
    fn rows(&self, args: &PlanArgs, is_timed: bool) -> Result<Vec<Row>, Failure> {
        let most = self.outline.spec().max_position_embeddings;
        let contexts = if args.context.is_empty() { vec![CONTEXT.min(most)] } else { args.context.clone() };
        let positive = contexts.iter().chain(&args.sequences).chain([&args.chunk]).all(|&n| n > 0);
        if !positive {
            return Err(Failure::new("--context, --sequences and --chunk are at least 1"));
        }
        if let Some(long) = contexts.iter().find(|&&context| context > most) {
            let hint = format!("the model was made for {most} positions");
            return Err(Failure::with_hint(format!("--context {long} is longer than the model's"), hint));
        }
        if let Some(kv) = args.kv.iter().find(|&&kv| !self.outline.fits(kv)) {
            let problem = format!("keys and values cannot be kept as {}", kv.name());
            return Err(Failure::with_hint(problem, "the model's heads are no whole blocks of that type"));
        }
        let threads = rayon::current_num_threads();
        let longest = contexts.iter().copied().max().unwrap_or(CONTEXT);
        let runs = self.weights.len() * args.sequences.len() * args.kv.len();
        let mut rows = Vec::new();
        for (index, weights) in self.weights.iter().enumerate() {
            let bench = is_timed.then(|| Bench::new(&self.outline, &weights.types, self.available)).transpose()?;
            for (&sequences, &kv) in args.sequences.iter().flat_map(|s| args.kv.iter().map(move |kv| (s, kv))) {
                let asked = Asked { kv, sequences, context: longest, chunk: args.chunk };
                let rates = bench.as_ref().map(|bench| bench.measure(asked, runs)).transpose()?;
                for &context in &contexts {
                    let shape = RunShape { context, sequences, chunk: args.chunk, kv, threads };
                    let memory = run_memory(self.outline.spec(), weights.memory, &shape);
                    let pace = rates.as_ref().map(|rates| rates.pace(&shape));
                    rows.push(Row { weights: index, shape, memory, pace });
                }
            }
        }
        Ok(rows)
    }

    /// The program and the model.
    fn peak(&self, memory: &RunMemory) -> usize {
        memory.peak + self.overhead
    }

    fn fits(&self, memory: &RunMemory) -> bool {
        // The program is there already.
        memory.peak <= self.available
    }

    /// Most positions per sequence for which the peak stays within what may be used.
    fn largest_context(&self, row: &Row) -> usize {
        let spec = self.outline.spec();
        let fits = |context: usize| {
            self.fits(&run_memory(spec, self.weights[row.weights].memory, &RunShape { context, ..row.shape }))
        };
        let (mut low, mut high) = (0, spec.max_position_embeddings);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }

    fn json(&self, rows: &[Row]) -> Value {
        let row = |row: &Row| {
            json!({
                "quant": self.weights[row.weights].name, "kv": row.shape.kv.name(), "context": row.shape.context,
                "sequences": row.shape.sequences, "chunk": row.shape.chunk, "memory": row.memory,
                "weights": self.weights[row.weights].memory, "peak_rss_bytes": self.peak(&row.memory),
                "fits": self.fits(&row.memory), "largest_context": self.largest_context(row),
                "prefill_tokens_per_s": row.pace.map(|pace| pace.prefill_tokens_per_s),
                "decode_tokens_per_s": row.pace.map(|pace| pace.decode_tokens_per_s),
                "limit": advice::limit(self, row), "way_past": advice::way_past(self, row),
            })
        };
        json!({
            "model": self.path, "summary": self.outline.spec().summary(), "overhead_bytes": self.overhead,
            "available_bytes": self.available, "rows": rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    fn print(&self, rows: &[Row], args: &PlanArgs) -> Result<(), Failure> {
        output::line(&self.outline.spec().summary())?;
        output::line(&format!(
            "{} may be used; the program itself takes {}",
            bytes(self.available),
            bytes(self.overhead)
        ))?;
        let mut table = Table::new(&[
            "weights",
            "kv",
            "context",
            "at once",
            "weights",
            "kv",
            "activations",
            "peak",
            "fits",
            "largest context",
            "prefill t/s",
            "decode t/s",
        ]);
        for row in rows {
            let rate = |x: Option<f64>| {
                x.map_or("-".into(), |x| if x < 100.0 { format!("{x:.1}") } else { format!("{x:.0}") })
            };
            table.row(vec![
                self.weights[row.weights].name.clone(),
                row.shape.kv.name().into(),
                row.shape.context.to_string(),
                row.shape.sequences.to_string(),
                bytes(row.memory.weights),
                bytes(row.memory.kv),
                bytes(row.memory.activations + row.memory.scratch + row.memory.gaps),
                bytes(self.peak(&row.memory)),
                if self.fits(&row.memory) { "yes" } else { "no" }.into(),
                grouped(self.largest_context(row)),
                rate(row.pace.map(|pace| pace.prefill_tokens_per_s)),
                rate(row.pace.map(|pace| pace.decode_tokens_per_s)),
            ]);
        }
        table.lines().iter().try_for_each(|line| output::line(line))?;
        for row in rows {
            output::line(&format!(
                "{}: {}; {}",
                self.label(row),
                advice::limit(self, row),
                advice::way_past(self, row)
            ))?;
        }
        if args.explain {
            rows.iter().try_for_each(|row| self.explain(row))?;
        }
        Ok(())
    }

    fn label(&self, row: &Row) -> String {
        let s = &row.shape;
        format!("{} {} {}x{}", self.weights[row.weights].name, s.kv.name(), s.sequences, s.context)
    }

    /// The formulas with their numbers.
    fn explain(&self, row: &Row) -> Result<(), Failure> {
        let (spec, s, m) = (self.outline.spec(), &row.shape, &row.memory);
        let w = &self.weights[row.weights].memory;
        let layer = &spec.stack.layers[0];
        let (layers, a) = (spec.stack.layers.len(), &layer.attention);
        let rows = s.chunk.min(s.context).max(s.sequences);
        output::line("")?;
        output::line(&self.label(row))?;
        let say = |text: String| output::line(&format!("  {text}"));
        say(format!(
            "weights = file's pages {} + copies {} = {}",
            grouped(w.mapped),
            grouped(w.copied),
            grouped(m.weights)
        ))?;
        say(format!(
            "kv = layers {layers} x 2 x heads {} x head {} ({} numbers a position) x context {} x sequences {} x {} bytes = {}",
            a.num_key_value_heads,
            a.head_dim,
            kv_numbers(spec),
            s.context,
            s.sequences,
            s.kv.bytes(),
            grouped(m.kv)
        ))?;
        say(format!(
            "activations = 4 bytes x (tokens {rows} x {} numbers + vocabulary {} x sequences {}) = {}",
            activation_numbers(spec, w.is_wide),
            spec.vocab_size,
            s.sequences,
            grouped(m.activations)
        ))?;
        say(format!("scratch = rounded activations and {} threads = {}", s.threads, grouped(m.scratch)))?;
        say(format!("gaps = two of the widest buffers, or the rest of a slab of memory = {}", grouped(m.gaps)))?;
        say(format!(
            "peak = max(opening {} + {}, weights + kv + activations + scratch + gaps) + program {} = {}",
            grouped(m.weights),
            grouped(w.opening),
            grouped(self.overhead),
            grouped(self.peak(m))
        ))?;
        row.pace.iter().flat_map(|pace| pace.explained(s)).try_for_each(|line| output::line(&format!("  {line}")))
    }
}

/// The weights to plan for. Those that are there must be the model's own and whole: a plan for them is worth nothing else.
fn weights_of(args: &PlanArgs, path: &Path, outline: &LanguageModel) -> Result<Vec<Weights>, Failure> {
    let made = |mix: Mix| -> Result<Weights, Failure> {
        let (mut types, memory) = (outline.plan(mix), outline.mapped_memory(mix)?);
        for ty in types.values_mut() {
            if let DType::Ggml(written) = ty {
                *ty = DType::Ggml(kept_type(*written));
            }
        }
        Ok(Weights { name: mix.name().into(), mix: Some(mix), types, memory })
    };
    let own = if path.is_file() { of_file(path, outline)? } else { of_directory(path, outline)? };
    if !args.quant.is_empty() {
        return args
            .quant
            .iter()
            .map(|&mix| if own.name == mix.name() { Ok(own.clone()) } else { made(mix) })
            .collect();
    }
    if path.is_file() {
        return Ok(vec![own]);
    }
    let others = USUAL.iter().filter_map(|name| made(name.parse().ok()?).ok());
    Ok(std::iter::once(own).chain(others).collect())
}

/// The weights of a GGUF file, each in its own type.
fn of_file(path: &Path, outline: &LanguageModel) -> Result<Weights, Failure> {
    let gguf = Gguf::open(path)?;
    let (memory, types) = outline.stored_in(&gguf)?;
    let number = gguf.size("general.file_type")?;
    let mix = Mix::all().find(|mix| number.is_some() && mix.file_type().map(|n| n as usize) == number);
    let name = mix.map_or("as they are", Mix::name).to_owned();
    Ok(Weights { name, mix: None, types, memory })
}

/// The weights of a directory: halves where they lie, others as f32. One that has none yet is planned from its `config.json`.
fn of_directory(path: &Path, outline: &LanguageModel) -> Result<Weights, Failure> {
    let files = [WEIGHTS, WEIGHTS_INDEX, TORCH_WEIGHTS, TORCH_WEIGHTS_INDEX];
    let (memory, types) = if files.iter().any(|file| path.join(file).exists()) {
        outline.stored_in_dir(&HfDir::open(path)?)?
    } else {
        output::say("no weights there yet: planned from config.json alone");
        outline.stored_by_config()?
    };
    let name = match types.values().next() {
        None => "f32".into(),
        // Only what is all of one type is what `--quant` of that type would make.
        Some(ty) => {
            let mix = ty.to_string().parse::<Mix>().ok();
            mix.filter(|&mix| types == outline.plan(mix)).map_or("as they are", Mix::name).to_owned()
        }
    };
    Ok(Weights { name, mix: None, types, memory })
}
