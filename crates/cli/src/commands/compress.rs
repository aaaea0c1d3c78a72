//! `loam quantize`, `loam prune` and `loam compare`: smaller models, and what that costs.

use crate::Outcome;
use crate::args::{CalibrationArgs, CompareArgs, MethodArg, PruneArgs, QuantizeArgs, ReportArgs};
use crate::commands::convert::{destination, write as write_directory};
use crate::commands::convert_gguf::{check_destination, is_asked_for, write as write_gguf};
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output;
use crate::progress::Progress;
use crate::setup::Environment;
use crate::table::{Table, bytes};
use loam_compress::{
    Calibration, Comparison, GptqSettings, ImatrixFile, Method, Settings, Shape, Speed, Windows, round_activations,
    sparsity_of,
};
use loam_models::LanguageModel;
use loam_tokenizer::{Special, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Tokens of a row where nobody says.
const ROW: usize = 512;
/// Tokens that are read and written to measure speed.
const PROMPT: usize = 128;
const STEPS: usize = 32;

/// `loam quantize`.
pub fn quantize(args: &QuantizeArgs, environment: &Environment) -> Result<Outcome, Failure> {
    let source = model_path(&args.model, environment)?;
    let settings = settings_of(args)?;
    let is_gguf = settings.mix.file_type().is_some();
    if is_gguf && !is_asked_for(&args.out) {
        let hint = "give OUT a name that ends with .gguf: other formats have no place for blocks of quantised weights";
        return Err(Failure::with_hint(format!("{} is no GGUF file's name", args.out.display()), hint));
    }
    if !is_gguf && is_asked_for(&args.out) {
        let problem =
            format!("{} is a GGUF file's name, and the format has no {}", args.out.display(), settings.mix.name());
        return Err(Failure::with_hint(problem, "give OUT the name of a directory"));
    }
    let out = match is_gguf {
        true => check_destination(&args.out, args.force, &source).map(|()| args.out.clone())?,
        false => destination(&args.out, args.force, &source)?,
    };
    let model = open(&source)?;
    let calibration = calibration(&args.calibration, &model, &source)?;
    let importance = args.imatrix.as_ref().map(|path| ImatrixFile::read(path)?.importance(&model, path)).transpose()?;
    let done = watched(args.method_name(), |watch| {
        loam_compress::quantise(&model, &settings, calibration.as_ref(), importance, watch)
    })?;
    if let Some(path) = &args.save_imatrix {
        let importance = done.importance.as_ref().ok_or_else(|| {
            Failure::with_hint(
                format!("{} finds no importance matrix", args.method_name()),
                "give --method imatrix or awq",
            )
        })?;
        let name = args.calibration.calibrate.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        let (chunks, size) = calibration.as_ref().map_or((1, 1), |c| (c.len(), c.length()));
        ImatrixFile::of(&model, importance, &name, chunks, size)?.write(path)?;
    }
    for name in &done.fallen_back {
        output::complain("note", &format!("{name} was rounded to the nearest: no calibration text reaches it"));
    }
    if is_gguf {
        write_gguf(&model, &source, &out, Some(settings.mix), None)?;
    } else {
        write_directory(&model, &source, &out, None)?;
    }
    drop(model);
    let what = json!({
        "path": args.out, "source": source, "type": settings.mix.name(), "method": args.method_name(),
        "fallen_back": done.fallen_back,
    });
    let rounds = settings.method == Method::SmoothQuant;
    finish(what, &source, &args.out, &args.report, rounds, args.json)
}

impl QuantizeArgs {
    fn method_name(&self) -> &'static str {
        match self.method {
            MethodArg::Rtn => "rtn",
            MethodArg::Imatrix => "imatrix",
            MethodArg::Gptq => "gptq",
            MethodArg::Awq => "awq",
            MethodArg::Smoothquant => "smoothquant",
        }
    }
}

/// The method, its type and what it needs, checked before the minutes that a large model takes to read.
fn settings_of(args: &QuantizeArgs) -> Result<Settings, Failure> {
    let method = Method::from(args.method);
    let usual = if method == Method::SmoothQuant { "q8_0" } else { "q4_k_m" };
    let mix = args.mix.map_or_else(|| usual.parse(), Ok)?;
    let refused = |message: &str, hint: &str| Err(Failure::with_hint(message, hint));
    if args.imatrix.is_some() && method != Method::Imatrix {
        return refused("--imatrix goes with --method imatrix alone", "add --method imatrix, or leave --imatrix out");
    }
    if method.is_calibrated() && args.calibration.calibrate.is_none() && args.imatrix.is_none() {
        let message = format!("--method {} looks at the inputs of every layer", args.method_name());
        return refused(&message, "give a text like those that the model will see: --calibrate FILE");
    }
    if args.save_imatrix.is_some() && !matches!(method, Method::Imatrix | Method::Awq) {
        return refused("--save-imatrix goes with --method imatrix or awq", "other methods find no importance matrix");
    }
    if !(args.damping > 0.0 && args.damping.is_finite()) {
        return refused("--damping must be above 0", "0.01 is usual; more where a Hessian is singular");
    }
    if !(0.0..=1.0).contains(&args.smoothing) {
        return refused("--smoothing must be from 0 to 1", "0.5 shares the range evenly");
    }
    let gptq = GptqSettings { damping: args.damping, weighs_scales: args.weigh_scales };
    Ok(Settings { gptq, smoothing: args.smoothing, ..Settings::new(mix, method) })
}

/// `loam prune`.
pub fn prune(args: &PruneArgs, environment: &Environment) -> Result<Outcome, Failure> {
    let source = model_path(&args.model, environment)?;
    let out = if is_asked_for(&args.out) {
        check_destination(&args.out, args.force, &source)?;
        args.out.clone()
    } else {
        destination(&args.out, args.force, &source)?
    };
    let method = loam_compress::Pruning::from(args.method);
    let needs_text = args.sparsity.is_none() || method != loam_compress::Pruning::Magnitude;
    if needs_text && args.calibration.calibrate.is_none() {
        let hint = "give a text like those that the model will see: --calibrate FILE";
        return Err(Failure::with_hint("what matters in a model shows in what its layers read", hint));
    }
    let model = open(&source)?;
    let calibration = calibration(&args.calibration, &model, &source)?;
    let (model, what) = match (args.sparsity, calibration) {
        (Some(sparsity), calibration) => {
            watched("pruning", |watch| loam_compress::prune(&model, method, sparsity, calibration.as_ref(), watch))?;
            let zeros = sparsity_of(&model);
            (
                model,
                json!({"method": format!("{:?}", args.method).to_lowercase(), "sparsity": sparsity.to_string(), "zeros": zeros}),
            )
        }
        (None, Some(calibration)) => {
            let shape = Shape { layers: args.layers, heads: args.heads, width: args.width };
            let (small, shrunk) =
                watched("pruning", |watch| loam_compress::shrink(&model, shape, &calibration, watch))?;
            (small, json!({"architecture": small_summary(&shrunk), "shrunk": shrunk}))
        }
        (None, None) => unreachable!("refused above"),
    };
    if is_asked_for(&out) {
        write_gguf(&model, &source, &out, None, None)?;
    } else {
        write_directory(&model, &source, &out, None)?;
    }
    let mut all = json!({"path": args.out, "source": source, "summary": model.spec().summary()});
    for (key, value) in what.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    drop(model);
    finish(all, &source, &out, &args.report, false, args.json)
}

fn small_summary(shrunk: &loam_compress::Shrunk) -> String {
    format!("blocks {:?}, {} of {} parameters", shrunk.layers, shrunk.parameters_after, shrunk.parameters_before)
}

/// `loam compare`.
pub fn compare(args: &CompareArgs, environment: &Environment) -> Result<Outcome, Failure> {
    let (before, after) = (model_path(&args.before, environment)?, model_path(&args.after, environment)?);
    let report = ReportArgs { text: Some(args.text.clone()), context: args.context, tokens: args.tokens };
    finish(json!({"before": before, "after": after}), &before, &after, &report, args.round_activations, args.json)
}

fn open(source: &Path) -> Result<LanguageModel, Failure> {
    let reading = Progress::new("reading", 0);
    let model = LanguageModel::open(source)?;
    reading.finish();
    Ok(model)
}

/// Runs a piece of work under a bar.
fn watched<T>(
    name: &str,
    work: impl FnOnce(loam_compress::Watch<'_>) -> loam_compress::Result<T>,
) -> Result<T, Failure> {
    let progress = Mutex::new(Progress::new(name, 0));
    let watch = |done: usize, total: usize| {
        if let Ok(mut progress) = progress.lock() {
            progress.set_total(total as u64);
            progress.update(done as u64, "");
        }
    };
    Ok(work(&watch)?)
}

/// The tokens of a text file, as the model at `source` reads it.
fn tokens_of(path: &Path, source: &Path) -> Result<Vec<u32>, Failure> {
    let text = fs::read_to_string(path).map_err(|e| Failure::io(&format!("cannot read {}", path.display()), &e))?;
    let tokenizer = if source.is_file() {
        Tokenizer::from_gguf(&loam_formats::Gguf::open(source)?)?
    } else {
        Tokenizer::open(source)?
    };
    Ok(tokenizer.encode(&text, Special::Ignore)?)
}

/// Tokens of a row: what was asked for, or the usual number where the model's context allows it.
fn row_of(asked: Option<usize>, model: &LanguageModel) -> usize {
    asked.unwrap_or(ROW).min(model.spec().max_position_embeddings)
}

fn calibration(args: &CalibrationArgs, model: &LanguageModel, source: &Path) -> Result<Option<Calibration>, Failure> {
    let Some(path) = &args.calibrate else { return Ok(None) };
    let tokens = tokens_of(path, source)?;
    Ok(Some(Calibration::new(&tokens, row_of(args.sample_tokens, model), args.samples)?))
}

/// Bytes of a model's weight files.
fn file_bytes(path: &Path) -> Result<u64, Failure> {
    let fail = |e| Failure::io(&format!("cannot read {}", path.display()), &e);
    let size = |path: &Path| path.metadata().map(|m| m.len()).map_err(fail);
    if path.is_file() {
        return size(path);
    }
    let mut sum = 0;
    for entry in fs::read_dir(path).map_err(fail)? {
        let file: PathBuf = entry.map_err(fail)?.path();
        let is_weights = file.extension().is_some_and(|e| e == "safetensors" || e == "bin");
        sum += if is_weights { size(&file)? } else { 0 };
    }
    Ok(sum)
}

/// Prints what was written and, where a text is given, what it costs.
fn finish(
    mut what: Value,
    before: &Path,
    after: &Path,
    report: &ReportArgs,
    rounds: bool,
    as_json: bool,
) -> Result<Outcome, Failure> {
    let sizes = [file_bytes(before)?, file_bytes(after)?];
    let measured = report.text.as_ref().map(|text| measure(text, before, after, report, rounds)).transpose()?;
    if as_json {
        what["bytes_before"] = json!(sizes[0]);
        what["bytes_after"] = json!(sizes[1]);
        if let Some((comparison, speeds)) = measured {
            what["comparison"] = json!(comparison);
            what["speed_before"] = json!(speeds[0]);
            what["speed_after"] = json!(speeds[1]);
        }
        output::json(&what)?;
        return Ok(Outcome::Done);
    }
    for key in ["path", "summary", "type", "method", "sparsity", "zeros", "architecture"] {
        if let Some(value) = what.get(key) {
            output::line(&format!("{key}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))?;
        }
    }
    table(sizes, measured.as_ref()).lines().iter().try_for_each(|line| output::line(line))?;
    Ok(Outcome::Done)
}

type Measured = (Comparison, [Speed; 2]);

fn measure(text: &Path, before: &Path, after: &Path, report: &ReportArgs, rounds: bool) -> Result<Measured, Failure> {
    let (left, right) = (open(before)?, open(after)?);
    round_activations(&right, rounds);
    let row = row_of(report.context, &left).min(row_of(report.context, &right));
    let windows = Windows::new(&tokens_of(text, before)?, row, report.tokens)?;
    let comparison = watched("comparing", |watch| loam_compress::compare(&left, &right, &windows, watch))?;
    round_activations(&right, false);
    let speeds =
        [loam_compress::speed(&left, &windows, PROMPT, STEPS)?, loam_compress::speed(&right, &windows, PROMPT, STEPS)?];
    Ok((comparison, speeds))
}

fn table(sizes: [u64; 2], measured: Option<&Measured>) -> Table {
    let mut table = Table::new(&["measure", "before", "after"]);
    let mut row = |name: &str, before: String, after: String| table.row(vec![name.into(), before, after]);
    if let Some((c, [before, after])) = measured {
        row("perplexity", format!("{:.4}", c.perplexity_before), format!("{:.4}", c.perplexity_after));
        row("KL divergence, nats", String::new(), format!("{:.5} ± {:.5}", c.kl_divergence, c.kl_error));
        row("99 % of positions below", String::new(), format!("{:.4}", c.kl_p99));
        row("same most likely token", String::new(), format!("{:.2} %", 100.0 * c.same_top));
        let rate = |x: f64| format!("{x:.0}");
        row("prefill, tokens/s", rate(before.prefill_tokens_per_s), rate(after.prefill_tokens_per_s));
        row("decode, tokens/s", rate(before.decode_tokens_per_s), rate(after.decode_tokens_per_s));
        row("tokens compared", String::new(), c.tokens.to_string());
    }
    row("bytes of weight files", bytes(sizes[0] as usize), bytes(sizes[1] as usize));
    table
}
