//! Ollama's API: what its clients and editors use of it.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use loam_chat::Message;
use loam_infer::Grammar;
use loam_tokenizer::Special;
use serde_json::{Value, json};

use crate::answer::{Ending, Order, Usage, Writer};
use crate::app::App;
use crate::body::{Fields, parse};
use crate::error::ApiError;
use crate::model::{Model, Text};
use crate::openai::embeddings::{Input, normalise};
use crate::params::{OneOrMany, Wanted, sampling};
use crate::stream::{Framing, Gone, Out, response};
use crate::tools::{Piece, Tools};

/// Where the text of an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chat,
    Generate,
}

/// Answers a conversation.
pub(crate) async fn chat(State(app): State<Arc<App>>, body: Body) -> Response {
    answer(app, body, Kind::Chat).await.unwrap_or_else(ApiError::into_ollama)
}

/// Continues a text, as a user's message where the model takes any.
pub(crate) async fn generate(State(app): State<Arc<App>>, body: Body) -> Response {
    answer(app, body, Kind::Generate).await.unwrap_or_else(ApiError::into_ollama)
}

async fn answer(app: Arc<App>, body: Body, kind: Kind) -> Result<Response, ApiError> {
    let begin = Instant::now();
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: String = fields.need("model")?;
    let model = app.model(Some(&name))?;
    let text = model.text()?;
    let is_stream: bool = fields.take("stream")?.unwrap_or(true);
    fields.refuse(&["suffix", "template", "context"])?;
    for unused in ["keep_alive", "think"] {
        fields.take::<Value>(unused)?;
    }
    if fields.take::<Vec<Value>>("images")?.is_some_and(|images| !images.is_empty()) {
        return Err(ApiError::bad("images", "the model reads text alone"));
    }
    let wanted = match fields.take::<Value>("format")? {
        None => None,
        Some(Value::String(word)) if word.is_empty() => None,
        Some(Value::String(word)) if word == "json" => Some(Grammar::JsonObject),
        Some(Value::String(word)) => {
            return Err(ApiError::bad("format", format!("`{word}`: expected json or a schema")));
        }
        Some(schema) => Some(Grammar::JsonSchema(schema)),
    };
    let wanted = wanted.map(|grammar| Wanted { grammar, param: "format".into() });
    let tools = Tools::take(&mut fields, text.format)?;
    let prompt = match kind {
        Kind::Chat => text.encode(&text.render(messages(&mut fields)?, tools.as_ref())?)?,
        Kind::Generate => prompt(&mut fields, text)?,
    };
    let mut options = fields.inner("options")?;
    let limit: Option<i64> = options.take("num_predict")?;
    if let Some(most) = limit.filter(|most| *most > 0) {
        options.put("max_tokens", most.into());
    }
    // The context is the model's.
    options.take::<Value>("num_ctx")?;
    let sampling = sampling(&mut options, text.open.recommended.as_ref(), app.default_max_tokens)?;
    let order = Order { wanted, tools, ..Order::new(prompt, sampling) };
    let mut writers = order.place(&app, &model).await?;
    let writer = writers.remove(0);
    if is_stream {
        return Ok(response(Framing::Lines, move |out| send(out, model, writer, kind, begin)));
    }
    let whole = writer.whole().await?;
    let mut body = line(&model, kind, &whole.text);
    if !whole.calls.is_empty() {
        body["message"]["tool_calls"] = whole.calls.iter().map(|(name, arguments)| call(name, arguments)).collect();
    }
    finish(&mut body, whole.ending, whole.usage, begin);
    Ok(Json(body).into_response())
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let given: Vec<Value> = fields.need("messages")?;
    if given.is_empty() {
        return Err(ApiError::bad("messages", "`messages` is empty"));
    }
    if let Some(at) = given.iter().position(|m| m["images"].as_array().is_some_and(|images| !images.is_empty())) {
        return Err(ApiError::bad(format!("messages[{at}].images"), "the model reads text alone"));
    }
    parse("messages", given.into())
}

fn prompt(fields: &mut Fields, text: &Text) -> Result<Vec<u32>, ApiError> {
    let prompt: String = fields.take("prompt")?.unwrap_or_default();
    let system: Option<String> = fields.take("system")?;
    let is_raw: bool = fields.take("raw")?.unwrap_or_default();
    if is_raw || text.open.template.is_none() {
        return Ok(text.open.generator().encode_prompt(&prompt)?);
    }
    let messages = system.map(Message::system).into_iter().chain([Message::user(prompt)]).collect();
    text.encode(&text.render(messages, None)?)
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn line(model: &Model, kind: Kind, text: &str) -> Value {
    let mut line = json!({"model": model.name, "created_at": now(), "done": false});
    match kind {
        Kind::Chat => line["message"] = json!({"role": "assistant", "content": text}),
        Kind::Generate => line["response"] = text.into(),
    }
    line
}

fn call(name: &str, arguments: &str) -> Value {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
    json!({"function": {"name": name, "arguments": arguments}})
}

fn finish(line: &mut Value, ending: Option<Ending>, usage: Usage, begin: Instant) {
    let total = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
    line["done"] = true.into();
    line["done_reason"] = if ending == Some(Ending::Length) { "length" } else { "stop" }.into();
    line["total_duration"] = total.into();
    line["load_duration"] = 0.into();
    line["prompt_eval_count"] = usage.prompt_tokens.into();
    line["eval_count"] = usage.written_tokens.into();
    line["eval_duration"] = total.into();
}

async fn send(out: Out, model: Arc<Model>, mut writer: Writer, kind: Kind, begin: Instant) -> Result<(), Gone> {
    let mut calls: Vec<(String, String)> = Vec::new();
    loop {
        let news = match out.next(&mut writer).await? {
            Ok(news) => news,
            Err(error) => return out.send(None, &json!({"error": error.message})).await,
        };
        for piece in news.pieces {
            match piece {
                Piece::Text(text) => out.send(None, &line(&model, kind, &text)).await?,
                // Calls are sent whole.
                Piece::Call { name, .. } => calls.push((name, String::new())),
                Piece::Arguments { text, .. } => {
                    calls.iter_mut().last().into_iter().for_each(|(_, all)| all.push_str(&text))
                }
            }
        }
        if news.ending.is_some() {
            if !calls.is_empty() {
                let mut all = line(&model, kind, "");
                all["message"]["tool_calls"] = calls.iter().map(|(name, arguments)| call(name, arguments)).collect();
                out.send(None, &all).await?;
            }
            let mut last = line(&model, kind, "");
            finish(&mut last, news.ending, writer.usage, begin);
            return out.send(None, &last).await;
        }
    }
}

/// Turns texts into vectors of length 1.
pub(crate) async fn embed(State(app): State<Arc<App>>, body: Body) -> Response {
    let begin = Instant::now();
    let embedded = async {
        let mut fields = Fields::read(body, app.body_limit).await?;
        let name: String = fields.need("model")?;
        let model = app.model(Some(&name))?;
        let texts: OneOrMany<String> = fields.need("input")?;
        let texts = texts.into_vec();
        let truncate: bool = fields.take("truncate")?.unwrap_or(true);
        let dimensions: Option<usize> = fields.take("dimensions")?;
        let embedder = model.embedder()?;
        if !truncate {
            let limit = embedder.settings().max_tokens;
            for text in &texts {
                if model.tokenizer()?.encode(text, Special::Add)?.len() > limit {
                    return Err(ApiError::bad("input", format!("a text is longer than {limit} tokens")));
                }
            }
        }
        let mut found = crate::openai::embeddings::embed(&app, &model, Input::Texts(texts)).await?;
        for vector in &mut found.vectors {
            vector.truncate(dimensions.unwrap_or(usize::MAX));
            normalise(vector);
        }
        Ok(json!({
            "model": model.name, "embeddings": found.vectors, "prompt_eval_count": found.tokens, "load_duration": 0,
            "total_duration": u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }))
    };
    embedded.await.map_or_else(ApiError::into_ollama, |body| Json(body).into_response())
}

fn details(model: &Model) -> Value {
    let family = model.writes().map_or("embedding", |text| text.open.model.spec().family);
    let count = model.writes().map_or(0, |text| text.open.model.num_parameters());
    json!({
        "parent_model": "", "format": "safetensors", "family": family, "families": [family],
        "parameter_size": format!("{:.1}M", count as f64 / 1e6), "quantization_level": "F32",
    })
}

/// All models.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let card = |model: &Arc<Model>| {
        json!({
            "name": model.name, "model": model.name, "modified_at": now(), "size": 0, "digest": "", "details": details(model),
        })
    };
    Json(json!({"models": app.models().iter().map(card).collect::<Vec<_>>()})).into_response()
}

/// One model.
pub(crate) async fn show(State(app): State<Arc<App>>, body: Body) -> Response {
    let shown = async {
        let mut fields = Fields::read(body, app.body_limit).await?;
        let name: Option<String> = fields.take("model")?.or(fields.take("name")?);
        let model = app.model(name.as_deref())?;
        let mut capabilities = Vec::new();
        if model.writes().is_some() {
            capabilities.extend(["completion", "tools"]);
        }
        if model.embedder().is_ok() {
            capabilities.push("embedding");
        }
        let template = model.writes().and_then(|text| text.open.template.as_ref()).map(|template| template.source());
        let details = details(&model);
        let family = details["family"].as_str().unwrap_or_default().to_owned();
        let count = model.writes().map_or(0, |text| text.open.model.num_parameters());
        Ok(json!({
            "modelfile": "", "parameters": "", "template": template, "details": details, "capabilities": capabilities,
            "model_info": {
                "general.architecture": family, "general.parameter_count": count,
                format!("{family}.context_length"): model.context(),
            },
            "modified_at": now(),
        }))
    };
    shown.await.map_or_else(ApiError::into_ollama, |body: Value| Json(body).into_response())
}

/// The version, which is ours.
pub(crate) async fn version() -> Response {
    Json(json!({"version": env!("CARGO_PKG_VERSION")})).into_response()
}
