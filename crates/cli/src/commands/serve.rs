//! `loam serve`: models for other programs.

use crate::Outcome;
use crate::args::{LogFormat, LogLevel, ServeArgs};
use crate::commands::{quantise, set_precision};
use crate::failure::Failure;
use crate::locate::{adapter_dir, model_path};
use crate::output;
use crate::setup::Environment;
use loam_serve::{AdapterFile, Keys, ServedModel, Server, Settings, Tls};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tracing::level_filters::LevelFilter;

pub fn run(args: &ServeArgs, threads: Option<usize>, environment: &Environment) -> Result<Outcome, Failure> {
    start_log(args)?;
    set_precision(args.compute.precision)?;
    let mut models = Vec::new();
    for model in &args.models {
        let (name, place) = match model.split_once('=') {
            // A path may have the sign in it.
            Some((name, place)) if !Path::new(model).exists() => (name.to_owned(), place),
            _ => (last_part(model), model.as_str()),
        };
        let served = ServedModel::open(name, model_path(place, environment)?)?;
        if let Some(weights) = served.weights() {
            quantise(weights, args.quant)?;
            output::say(&format!("{}: {}", served.name(), weights.spec().summary()));
        }
        models.push(match &args.draft {
            Some(draft) => served.with_draft(model_path(draft, environment)?)?,
            None => served,
        });
    }
    let adapters = args.adapters.iter().map(|adapter| adapter_file(adapter)).collect::<Result<_, _>>()?;
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls::open(certificate, key)?),
        _ => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let keys = args.api_key_file.as_deref().map_or_else(|| Ok(Keys::default()), Keys::open)?;
    let is_open = !keys.are_needed();
    let server = Server::bind(
        models,
        Settings {
            address: SocketAddr::new(args.host, args.port),
            max_concurrent: args.max_concurrent,
            max_queue: args.max_queue,
            kv_tokens: args.kv_tokens,
            kv_type: args.kv_type,
            step_tokens: args.step_tokens,
            guess_tokens: args.speculate,
            adapters,
            may_load_adapters: args.allow_adapter_loading,
            tls,
            default_max_tokens: args.default_max_tokens,
            max_body: args.max_body << 20,
            keys,
            shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
            threads,
        },
    )?;
    if is_open && !args.host.is_loopback() {
        output::complain("note", "everybody who reaches this address may use it");
        output::complain("hint", "--api-key-file FILE lets in only who has a key");
    }
    output::say(&format!("listening at {scheme}://{}", server.address()));
    server.run()?;
    Ok(Outcome::Done)
}

/// `NAME=DIR` or `NAME@MODEL=DIR`.
fn adapter_file(text: &str) -> Result<AdapterFile, Failure> {
    let hint = "write --adapter NAME=DIR, or NAME@MODEL=DIR where several models are served";
    let (name, path) = text
        .split_once('=')
        .filter(|(name, path)| !name.is_empty() && !path.is_empty())
        .ok_or_else(|| Failure::with_hint(format!("`{text}` is no adapter with a name"), hint))?;
    let (name, model) = match name.split_once('@') {
        Some((name, model)) => (name, Some(model.to_owned())),
        None => (name, None),
    };
    Ok(AdapterFile { name: name.to_owned(), model, path: adapter_dir(Path::new(path))? })
}

/// What a model is called by: the last part of its path, above the `model` that a run keeps it in.
fn last_part(path: &str) -> String {
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix("/model").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn start_log(args: &ServeArgs) -> Result<(), Failure> {
    let level = match args.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    let started = match args.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(format!("cannot start the log: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_a_name_and_perhaps_a_model() {
        for wrong in ["alpha", "=dir", "alpha=", "alpha=/nowhere/at/all"] {
            assert!(adapter_file(wrong).is_err(), "{wrong}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("adapter_config.json"), "{}").expect("written");
        let found = adapter_file(&format!("alpha@tiny={}", dir.path().display())).expect("an adapter");
        assert_eq!((found.name.as_str(), found.model.as_deref()), ("alpha", Some("tiny")));
    }

    #[test]
    fn a_model_is_called_by_the_last_part_of_its_path() {
        for (path, name) in [("runs/a/model", "a"), ("models/qwen3/", "qwen3"), ("tiny", "tiny")] {
            assert_eq!(last_part(path), name);
        }
    }
}
