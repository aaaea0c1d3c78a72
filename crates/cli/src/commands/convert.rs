//! `loam model convert`: a model that Loam can open, as a fresh Hugging Face directory. `convert_gguf` is the other half.

use crate::args::{ConvertArgs, FileDtype};
use crate::commands::convert_gguf;
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output;
use crate::progress::Progress;
use crate::setup::Environment;
use crate::table::bytes;
use loam_formats::hf_dir::CONFIG;
use loam_formats::{Dtype, HfDir, HfWriter, atomic};
use loam_models::LanguageModel;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf, absolute};

/// The largest number that float16 does not round to infinity.
const FLOAT16_END: f32 = 65519.996;

pub fn run(args: &ConvertArgs, environment: &Environment) -> Result<(), Failure> {
    let source = model_path(&args.model, environment)?;
    if convert_gguf::is_asked_for(&args.out) {
        return convert_gguf::run(args, &source);
    }
    if args.quant.is_some() {
        let hint = "give OUT a name that ends with .gguf; a directory takes --dtype";
        return Err(Failure::with_hint("--quant makes GGUF files", hint));
    }
    // Checked before the minutes that a large model takes to read.
    let out = destination(&args.out, args.force, &source)?;
    let reading = Progress::new("reading", 0);
    let mut model = LanguageModel::open(&source)?;
    reading.finish();
    let dtype = match args.dtype {
        Some(dtype) => dtype,
        None => dtype_of_files(&model, &source)?,
    };
    if dtype == FileDtype::Float16 {
        check_range(&model)?;
    }
    let name = set_dtype(&mut model, dtype);
    write(&model, &source, &out, args.max_shard_size)?;
    report(args, &model, &source, &out, name)
}

/// Where to write: a new or empty directory or, by force, one that holds a model.
pub fn destination(out: &Path, force: bool, source: &Path) -> Result<PathBuf, Failure> {
    let said = out.display();
    let fail = |e: io::Error| Failure::io(&format!("cannot write to {said}"), &e);
    let out = match out.canonicalize() {
        Ok(path) => path,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return absolute(out).map_err(fail),
        Err(e) => return Err(fail(e)),
    };
    if !out.is_dir() {
        return Err(Failure::with_hint(format!("{said} is a file"), "give the name of a directory to write"));
    }
    if source.canonicalize().map_err(fail)?.starts_with(&out) {
        let hint = "write to another directory; it can be renamed afterwards";
        return Err(Failure::with_hint(format!("{said} holds the model that is to be converted"), hint));
    }
    let is_empty = fs::read_dir(&out).map_err(fail)?.next().is_none();
    if is_empty {
        return Ok(out);
    }
    match (force, out.join(CONFIG).is_file()) {
        (true, true) => Ok(out),
        (false, true) => Err(Failure::with_hint(format!("{said} holds a model already"), "--force replaces it")),
        // A mistyped path must not cost a directory of something else.
        (_, false) => Err(Failure::with_hint(
            format!("{said} is not empty, and what it holds is no model"),
            "write to another directory, or remove this one yourself; --force only replaces models",
        )),
    }
}

/// The element type of most of the model; float32 for what is not written.
pub fn dtype_of_files(model: &LanguageModel, source: &Path) -> Result<FileDtype, Failure> {
    if source.is_file() {
        return Ok(match model.file_dtype()? {
            Dtype::BF16 => FileDtype::Bfloat16,
            Dtype::F16 => FileDtype::Float16,
            _ => FileDtype::Float32,
        });
    }
    let tensors = model.stored_tensors(&HfDir::open(source)?)?;
    let largest = tensors.iter().max_by_key(|(_, shape, _)| shape.iter().product::<usize>());
    Ok(match largest.map(|(.., dtype)| dtype) {
        Some(Dtype::BF16) => FileDtype::Bfloat16,
        Some(Dtype::F16) => FileDtype::Float16,
        _ => FileDtype::Float32,
    })
}

/// Refuses to turn finite weights into infinite ones.
pub fn check_range(model: &LanguageModel) -> Result<(), Failure> {
    for (name, parameter) in model.parameters() {
        let values = parameter.to_vec();
        if let Some(beyond) = values.iter().find(|x| x.is_finite() && x.abs() > FLOAT16_END) {
            let message = format!("`{name}` holds {beyond}, float16 ends at 65504");
            return Err(Failure::with_hint(message, "bfloat16 takes the same space and has the range of float32"));
        }
    }
    Ok(())
}

/// Sets the element type in the configuration, under the key that it has: transformers 4 says `torch_dtype`.
fn set_dtype(model: &mut LanguageModel, dtype: FileDtype) -> &'static str {
    let name = match dtype {
        FileDtype::Float32 => "float32",
        FileDtype::Bfloat16 => "bfloat16",
        FileDtype::Float16 => "float16",
    };
    let is_old = model.config().get("torch_dtype").is_some();
    if model.config().get("dtype").is_some() || !is_old {
        model.set_config("dtype", name.into());
    }
    if is_old {
        model.set_config("torch_dtype", name.into());
    }
    name
}

/// Writes everything beside `out` and puts it there when it is complete.
pub fn write(model: &LanguageModel, source: &Path, out: &Path, max_shard_bytes: Option<u64>) -> Result<(), Failure> {
    let total = (model.num_parameters() * model.file_dtype()?.size()) as u64;
    let progress = RefCell::new((Progress::new("writing", total), 0));
    let watch = |written: usize| {
        let (progress, done) = &mut *progress.borrow_mut();
        *done += written as u64;
        progress.update(*done, &bytes(*done as usize));
    };
    atomic::replace_dir(out, |dir| -> Result<(), Failure> {
        let writer = HfWriter::create(dir)?;
        model.save_watched(&writer, max_shard_bytes, &watch)?;
        if source.is_file() {
            return convert_gguf::write_files_of(source, &writer, model);
        }
        writer.copy_generation_config(source)?;
        writer.copy_tokenizer_files(source)?;
        Ok(())
    })?;
    Ok(())
}

fn report(args: &ConvertArgs, model: &LanguageModel, source: &Path, out: &Path, dtype: &str) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::io(&format!("cannot read {}", out.display()), &e);
    let mut files = Vec::new();
    for entry in fs::read_dir(out).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_err(fail)?.len()));
    }
    files.sort();
    let total: u64 = files.iter().map(|(_, size)| size).sum();
    if args.json {
        let list: Vec<Value> = files.iter().map(|(name, size)| json!({"name": name, "bytes": size})).collect();
        return output::json(&json!({
            "path": args.out, "source": source, "dtype": dtype, "parameters": model.num_parameters(),
            "bytes": total, "files": list,
        }));
    }
    output::line(&format!("{}  {dtype}, {}", args.out.display(), bytes(total as usize)))?;
    files.iter().try_for_each(|(name, size)| output::line(&format!("  {name}  {}", bytes(*size as usize))))
}
