//! `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them: adapters come and go while texts are written.
//! An adapter has a name that requests give as their `model`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use loam_peft::Adapter;

use crate::app::App;
use crate::body::Fields;
use crate::error::{ApiError, Error};
use crate::model::Loaded;

/// An adapter's directory, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterFile {
    /// What clients call it.
    pub name: String,
    /// The model that it was made for; without it the only one.
    pub model: Option<String>,
    /// The directory with `adapter_config.json`.
    pub path: PathBuf,
}

/// Loads an adapter when the server starts.
pub(crate) async fn load_file(app: &Arc<App>, file: &AdapterFile) -> Result<(), Error> {
    let fail = |error: ApiError| Error::Adapter { name: file.name.clone(), reason: error.message };
    put(app, file).await.map_err(fail)
}

/// Loads an adapter: `lora_name`, `lora_path`, and `base_model_name` where several models are served.
pub(crate) async fn load(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = read(&app, body).await?;
    let name: String = fields.need("lora_name")?;
    let path: PathBuf = fields.need::<String>("lora_path")?.into();
    let file = AdapterFile { name, model: fields.take("base_model_name")?, path };
    refuse_rest(fields)?;
    put(&app, &file).await?;
    Ok(format!("Success: LoRA adapter '{}' added successfully.", file.name).into_response())
}

/// Unloads an adapter; texts that go through it come to their end first.
pub(crate) async fn unload(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = read(&app, body).await?;
    let name: String = fields.need("lora_name")?;
    // vLLM's number of an adapter, which means nothing here.
    fields.take::<i64>("lora_int_id")?;
    refuse_rest(fields)?;
    let _turn = app.changing.lock().await;
    let models = app.models();
    let found = models.iter().find_map(|model| Some((model, model.adapter.as_ref().filter(|_| model.name == name)?)));
    let Some((model, adapter)) = found else {
        let message = format!("there is no adapter `{name}`");
        return Err(ApiError::new(StatusCode::NOT_FOUND, message).about("lora_name").with_code("adapter_not_found"));
    };
    app.change(|models| models.retain(|model| model.name != name));
    model.text()?.engine.unload(adapter.id).await?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully.").into_response())
}

async fn read(app: &App, body: Body) -> Result<Fields, ApiError> {
    if !app.may_load {
        let message = "this server loads no adapters at run time: start it with --allow-adapter-loading";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    Fields::read(body, app.body_limit).await
}

fn refuse_rest(fields: Fields) -> Result<(), ApiError> {
    match fields.warnings().first() {
        Some(warning) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, warning.replace("was ignored", "is not supported")))
        }
        None => Ok(()),
    }
}

async fn put(app: &Arc<App>, file: &AdapterFile) -> Result<(), ApiError> {
    let _turn = app.changing.lock().await;
    let AdapterFile { name, model, path } = file;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(ApiError::bad("lora_name", "an adapter needs a name"));
    }
    let models = app.models();
    if models.iter().any(|model| model.name == *name) {
        let message = format!("`{name}` is loaded already: unload it first, or choose another name");
        return Err(ApiError::bad("lora_name", message).with_code("adapter_exists"));
    }
    let bases: Vec<_> = models.iter().filter(|base| base.adapter.is_none() && base.writes().is_some()).collect();
    let parent = match (model, bases.as_slice()) {
        (Some(wanted), bases) => bases.iter().find(|base| base.name == *wanted).copied(),
        (None, [only]) => Some(*only),
        (None, _) => None,
    };
    let Some(parent) = parent.map(Arc::clone) else {
        let names: Vec<&str> = bases.iter().map(|base| base.name.as_str()).collect();
        let message = format!("which model is the adapter for? One of: {}", names.join(", "));
        return Err(ApiError::bad("base_model_name", message));
    };
    let (for_files, base) = (path.clone(), Arc::clone(&parent));
    let opened = tokio::task::spawn_blocking(move || {
        let model = &base.text()?.open.model;
        Adapter::open(model, &for_files).map_err(|error| ApiError::from(loam_infer::Error::from(error)))
    });
    let opened = opened.await;
    let broken = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the adapter could not be read");
    let adapter = opened.map_err(broken)??;
    let id = parent.text()?.engine.load(Arc::new(adapter)).await?;
    let loaded = Loaded { id, parent: parent.name.clone(), path: path.display().to_string() };
    let model = Arc::new(parent.with_adapter(name.clone(), loaded, App::now()));
    app.change(|models| models.push(model));
    Ok(())
}
