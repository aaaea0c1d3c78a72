//! What is beside the big APIs: text to tokens and back, templates, health, metrics.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use loam_chat::Message;
use loam_tokenizer::Special;
use serde_json::{Value, json};

use crate::app::App;
use crate::body::Fields;
use crate::error::ApiError;
use crate::metrics::{self, Page};
use crate::tools::Tools;

/// Text to tokens: `content` (llama.cpp), `prompt` or `messages` (vLLM).
pub(crate) async fn tokenize(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let with_pieces: bool = fields.take("with_pieces")?.unwrap_or_default();
    let tokenizer = model.tokenizer()?;
    let tokens = if let Some(messages) = fields.take::<Vec<Message>>("messages")? {
        let text = model.text()?;
        text.encode(&text.render(messages, None)?)?
    } else {
        let content: Option<String> = fields.take("content")?;
        let is_plain = content.is_some();
        let content = content.or(fields.take("prompt")?);
        let content = content.ok_or_else(|| ApiError::bad("prompt", "`prompt`, `content` or `messages` is missing"))?;
        // Each client expects its own server's default.
        let add: bool = fields.take("add_special")?.or(fields.take("add_special_tokens")?).unwrap_or(!is_plain);
        tokenizer.encode(&content, if add { Special::Add } else { Special::Parse })?
    };
    let listed: Value = match with_pieces {
        true => {
            let piece = |&id: &u32| json!({"id": id, "piece": tokenizer.decode(&[id], false).unwrap_or_default()});
            tokens.iter().map(piece).collect()
        }
        false => tokens.as_slice().into(),
    };
    let body = json!({"tokens": listed, "count": tokens.len(), "max_model_len": model.context()});
    Ok(Json(body).into_response())
}

/// Tokens to text.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let tokens: Vec<u32> = fields.need("tokens")?;
    let model = app.model(name.as_deref())?;
    let text = model.tokenizer()?.decode(&tokens, false);
    let text = text.map_err(|error| ApiError::bad("tokens", error.to_string()))?;
    Ok(Json(json!({"content": text, "prompt": text})).into_response())
}

/// A conversation as the text that the model reads.
pub(crate) async fn apply_template(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let text = model.text()?;
    let messages: Vec<Message> = fields.need("messages")?;
    let tools = Tools::take(&mut fields, text.format)?;
    Ok(Json(json!({"prompt": text.render(messages, tools.as_ref())?})).into_response())
}

/// Whether the process lives and its engines do.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    match app.models().iter().all(|model| model.is_ready()) {
        true => Json(json!({"status": "ok"})).into_response(),
        false => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "an engine has stopped").into_response(),
    }
}

/// Whether requests are taken on.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.is_ready() {
        true => Json(json!({"status": "ready"})).into_response(),
        false => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not ready").into_response(),
    }
}

/// Measurements for Prometheus.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let models = app.models();
    // An adapter's texts are its model's.
    let bases = models.iter().filter(|model| model.adapter.is_none());
    let writing = bases.filter_map(|model| Some((model, model.writes()?)));
    let pages: Vec<Page<'_>> = writing
        .map(|(model, text)| {
            let engine = &text.engine;
            let (stats, kv_tokens) = (engine.stats(), engine.settings.kv_tokens);
            Page { model: &model.name, stats, kv_tokens, metrics: &engine.metrics }
        })
        .collect();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, metrics::render(&pages, &app.http)).into_response()
}
