//! `loam model convert MODEL OUT.gguf`, and what a GGUF file holds beside its weights.

use crate::args::{ConvertArgs, FileDtype};
use crate::commands::convert::{check_range, dtype_of_files};
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use crate::table::bytes;
use loam_formats::{Gguf, GgufValue, HfDir, HfWriter};
use loam_models::{GgufSettings, LanguageModel, Mix, gguf_generation_config, gguf_sampling_keys};
use loam_tokenizer::{ChatTemplate, DirectoryOptions, Tokenizer, save_directory};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

/// Whether a destination is to be a GGUF file.
pub fn is_asked_for(out: &Path) -> bool {
    out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

pub fn run(args: &ConvertArgs, source: &Path) -> Result<(), Failure> {
    // Checked before the minutes that a large model takes to read.
    check_destination(&args.out, args.force, source)?;
    let reading = Progress::new("reading", 0);
    let model = LanguageModel::open(source)?;
    reading.finish();
    let mix = mix_of(args, &model, source)?;
    if mix.is_some_and(|mix| mix.name() == "f16") {
        check_range(&model)?;
    }
    let files = write(&model, source, &args.out, mix, args.max_shard_size)?;
    report(args, &model, source, mix, &files)
}

/// Writes a model with the tokenizer, template and sampling of `source`.
pub fn write(
    model: &LanguageModel,
    source: &Path,
    out: &Path,
    mix: Option<Mix>,
    max_shard_bytes: Option<u64>,
) -> Result<Vec<PathBuf>, Failure> {
    let metadata = metadata_of(source, model)?;
    let progress = RefCell::new((Progress::new("writing", 0), 0));
    let watch = |written: usize| {
        let (progress, done) = &mut *progress.borrow_mut();
        *done += written as u64;
        progress.update(*done, &bytes(*done as usize));
    };
    let settings = GgufSettings { mix, metadata, max_shard_bytes, watch: Some(&watch) };
    Ok(model.save_gguf(out, settings)?)
}

/// Refuses to replace what is there, unless told to.
pub fn check_destination(out: &Path, force: bool, source: &Path) -> Result<(), Failure> {
    let said = out.display();
    if out.is_dir() {
        return Err(Failure::with_hint(format!("{said} is a directory"), "give the name of a file to write"));
    }
    let Ok(out) = out.canonicalize() else { return Ok(()) };
    if source.canonicalize().is_ok_and(|source| source == out) {
        let hint = "write to another file; it can be renamed afterwards";
        return Err(Failure::with_hint(format!("{said} holds the model that is to be converted"), hint));
    }
    if force {
        return Ok(());
    }
    Err(Failure::with_hint(format!("{said} exists already"), "--force replaces it"))
}

/// The element types that are asked for. Nothing asked of a GGUF file keeps its own.
fn mix_of(args: &ConvertArgs, model: &LanguageModel, source: &Path) -> Result<Option<Mix>, Failure> {
    let dtype = match (args.quant, args.dtype) {
        (Some(mix), _) => return Ok(Some(mix)),
        (None, Some(dtype)) => dtype,
        (None, None) if source.is_file() => return Ok(None),
        (None, None) => dtype_of_files(model, source)?,
    };
    let name = match dtype {
        FileDtype::Float32 => "f32",
        FileDtype::Bfloat16 => "bf16",
        FileDtype::Float16 => "f16",
    };
    Ok(Some(name.parse::<Mix>()?))
}

/// Name, tokenizer, chat template and recommended sampling of a model.
fn metadata_of(source: &Path, model: &LanguageModel) -> Result<Vec<(String, GgufValue)>, Failure> {
    let mut metadata = Vec::new();
    let name = source.canonicalize().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    if let Some(name) = name {
        metadata.push(("general.name".to_owned(), GgufValue::Text(name)));
    }
    let (tokenizer, template, generation) = if source.is_file() {
        let gguf = Gguf::open(source)?;
        let template = Tokenizer::gguf_chat_template(&gguf)?;
        (tokenizer_of(&gguf)?, template, gguf_generation_config(&gguf)?)
    } else {
        let dir = HfDir::open(source)?;
        let tokenizer = dir.tokenizer_json_path().map(|_| Tokenizer::open(source)).transpose()?;
        (tokenizer, dir.chat_template()?, dir.generation_config()?)
    };
    if let Some(tokenizer) = tokenizer {
        let (own, rows) = (tokenizer.vocab_size(), model.spec().vocab_size);
        if own > rows {
            let hint = "the tokenizer and the weights belong to different models";
            return Err(Failure::with_hint(format!("the tokenizer has {own} tokens, the model {rows}"), hint));
        }
        metadata.extend(tokenizer.gguf_metadata(rows, template.as_deref())?);
    } else {
        // llama.cpp opens no file that does not say so.
        metadata.push(("tokenizer.ggml.model".to_owned(), GgufValue::Text(NO_VOCABULARY.to_owned())));
    }
    metadata.extend(generation.as_ref().map(gguf_sampling_keys).unwrap_or_default());
    Ok(metadata)
}

/// What llama.cpp calls the kind of a tokenizer that is not there.
const NO_VOCABULARY: &str = "no_vocab";

/// The tokenizer of a file, if it has one.
fn tokenizer_of(gguf: &Gguf) -> Result<Option<Tokenizer>, Failure> {
    let is_there = gguf.text("tokenizer.ggml.model")?.is_some_and(|kind| kind != NO_VOCABULARY);
    Ok(is_there.then(|| Tokenizer::from_gguf(gguf)).transpose()?)
}

/// Writes what a GGUF file holds beside its weights into a model directory.
pub fn write_files_of(source: &Path, writer: &HfWriter, model: &LanguageModel) -> Result<(), Failure> {
    let gguf = Gguf::open(source)?;
    let mut generation = gguf_generation_config(&gguf)?;
    if let Some(tokenizer) = tokenizer_of(&gguf)? {
        let special = tokenizer.special();
        let compile = |source| ChatTemplate::new(source, special.bos.as_deref(), special.eos.as_deref());
        let template = Tokenizer::gguf_chat_template(&gguf)?.map(compile).transpose()?;
        let length = Some(model.spec().max_position_embeddings);
        let options = DirectoryOptions { template: template.as_ref(), model_max_length: length };
        save_directory(writer.path(), &tokenizer, options)?;
        let stops = tokenizer.stop_ids();
        if !stops.is_empty() {
            generation.get_or_insert_with(|| json!({}))["eos_token_id"] = json!(stops);
        }
    }
    if let Some(generation) = generation {
        writer.generation_config(&generation)?;
    }
    Ok(())
}

fn report(
    args: &ConvertArgs,
    model: &LanguageModel,
    source: &Path,
    mix: Option<Mix>,
    files: &[PathBuf],
) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::io(&format!("cannot read {}", args.out.display()), &e);
    let sized = files.iter().map(|file| Ok((file, file.metadata()?.len()))).collect::<Result<Vec<_>, _>>();
    let sized = sized.map_err(fail)?;
    let total: u64 = sized.iter().map(|(_, size)| size).sum();
    let name = mix.map_or("types of the source", Mix::name);
    if args.json {
        let list: Vec<Value> = sized.iter().map(|(file, size)| json!({"name": file, "bytes": size})).collect();
        return output::json(&json!({
            "path": args.out, "source": source, "dtype": name, "parameters": model.num_parameters(), "bytes": total,
            "files": list,
        }));
    }
    output::line(&format!("{}  {name}, {}", args.out.display(), bytes(total as usize)))?;
    match files {
        [_] => Ok(()),
        _ => sized
            .iter()
            .try_for_each(|(file, size)| output::line(&format!("  {}  {}", file.display(), bytes(*size as usize)))),
    }
}
