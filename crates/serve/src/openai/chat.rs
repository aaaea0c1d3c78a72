//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use loam_chat::Message;
use loam_infer::Token;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{usage, warn};
use crate::answer::{self, News, Order, Usage, Whole, Writer};
use crate::app::App;
use crate::body::Fields;
use crate::error::ApiError;
use crate::model::{Model, Text};
use crate::params::{sampling, wanted};
use crate::stream::{Framing, Gone, Out, response};
use crate::tools::{Piece, Tools};

/// Most alternatives to a token that may be asked for.
const MOST_ALTERNATIVES: usize = 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    pub include_usage: bool,
}

/// What every piece of an answer repeats.
#[derive(Debug, Clone)]
struct Head {
    id: String,
    created: u64,
    model: Arc<Model>,
    logprobs: bool,
    include_usage: bool,
}

/// Answers a conversation.
pub(crate) async fn handle(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let text = model.text()?;
    fields.refuse(&["audio", "web_search_options"])?;
    let is_stream: bool = fields.take("stream")?.unwrap_or_default();
    let options: StreamOptions = fields.take("stream_options")?.unwrap_or_default();
    let logprobs: bool = fields.take("logprobs")?.unwrap_or_default();
    let top_logprobs: usize = fields.take("top_logprobs")?.unwrap_or_default();
    let order = order(&mut fields, &app, text, (logprobs, top_logprobs))?;
    let warnings = fields.warnings();
    let writers = order.place(&app, &model).await?;
    let head = Head {
        id: app.id("chatcmpl-"),
        created: App::now(),
        model: Arc::clone(&model),
        logprobs,
        include_usage: options.include_usage,
    };
    if is_stream {
        return Ok(response(Framing::Events, move |out| send_all(out, head, writers, warnings)));
    }
    let all = answer::all(writers).await?;
    let choices: Vec<Value> = all.iter().map(|whole| choice(whole, text, logprobs)).collect();
    let mut body = json!({
        "id": head.id, "object": "chat.completion", "created": head.created, "model": model.name,
        "choices": choices, "usage": usage(Usage::of_all(all.iter().map(|whole| whole.usage))),
    });
    warn(&mut body, warnings);
    Ok(Json(body).into_response())
}

/// Reads what decides the answer.
fn order(
    fields: &mut Fields,
    app: &App,
    text: &Text,
    (logprobs, top_logprobs): (bool, usize),
) -> Result<Order, ApiError> {
    if top_logprobs > MOST_ALTERNATIVES {
        let message = format!("at most {MOST_ALTERNATIVES} alternatives to a token");
        return Err(ApiError::bad("top_logprobs", message));
    }
    if top_logprobs > 0 && !logprobs {
        return Err(ApiError::bad("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    if let Some(modalities) = fields.take::<Vec<String>>("modalities")?
        && modalities != ["text"]
    {
        return Err(ApiError::bad("modalities", "the model writes text alone"));
    }
    let messages: Vec<Message> = fields.need("messages")?;
    if messages.is_empty() {
        return Err(ApiError::bad("messages", "`messages` is empty"));
    }
    let wanted = wanted(fields)?;
    let tools = Tools::take(fields, text.format)?;
    let mut sampling = sampling(fields, text.open.recommended.as_ref(), app.default_max_tokens)?;
    sampling.top_logprobs = top_logprobs;
    let n: usize = fields.take("n")?.unwrap_or(1);
    if n == 0 || n > 128 {
        return Err(ApiError::bad("n", "from 1 to 128 answers"));
    }
    let ignore_eos = fields.take("ignore_eos")?.unwrap_or_default();
    let prompt = text.encode(&text.render(messages, tools.as_ref())?)?;
    Ok(Order { wanted, tools, n, ignore_eos, ..Order::new(prompt, sampling) })
}

/// A finished answer.
fn choice(whole: &Whole, text: &Text, logprobs: bool) -> Value {
    let has_calls = !whole.calls.is_empty();
    let content = if has_calls && whole.text.is_empty() { Value::Null } else { whole.text.as_str().into() };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if has_calls {
        let call = |(at, (name, arguments)): (usize, &(String, String))| json!({"id": call_id(whole.index, at), "type": "function", "function": {"name": name, "arguments": arguments}});
        message["tool_calls"] = whole.calls.iter().enumerate().map(call).collect();
    }
    let rated = logprobs.then(|| {
        json!({
            "content": whole.tokens.iter().map(|token| rated(token, text)).collect::<Vec<_>>(), "refusal": null,
        })
    });
    json!({"index": whole.index, "message": message, "logprobs": rated, "finish_reason": whole.ending_name()})
}

/// A name for a call: an answer refers to it, so it need only differ from others of the conversation.
pub(crate) fn call_id(choice: usize, call: usize) -> String {
    format!("call_{:016x}{choice:02x}{call:02x}", crate::params::random_seed())
}

/// A token with its log-probability and its rivals.
fn rated(token: &Token, text: &Text) -> Value {
    let one = |id: u32, logprob: f32| {
        let (text, bytes) = text.spell(id);
        json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
    };
    let mut value = one(token.id, token.logprob);
    value["top_logprobs"] = token.top_logprobs.iter().map(|&(id, logprob)| one(id, logprob)).collect();
    value
}

/// JSON has no infinity; OpenAI writes this for what is too unlikely to say.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

impl Head {
    fn chunk(&self, index: usize, delta: &Value, logprobs: Option<Value>, finish_reason: Option<&str>) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason});
        self.around(json!([choice]), None)
    }

    fn around(&self, choices: Value, usage: Option<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model.name,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage.unwrap_or_default();
        }
        chunk
    }
}

async fn send_all(out: Out, head: Head, writers: Vec<Writer>, warnings: Vec<String>) -> Result<(), Gone> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in writers {
        tasks.spawn(send(out.clone(), head.clone(), writer));
    }
    let mut cost = Vec::new();
    while let Some(result) = tasks.join_next().await {
        match result {
            Ok(Ok(usage)) => cost.push(usage),
            // It has been said, or nobody listens.
            Ok(Err(Gone)) | Err(_) => return Err(Gone),
        }
    }
    if head.include_usage || !warnings.is_empty() {
        let usage = head.include_usage.then(|| usage(Usage::of_all(cost)));
        let mut last = head.around(json!([]), usage);
        warn(&mut last, warnings);
        out.send(None, &last).await?;
    }
    out.raw("data: [DONE]\n\n").await
}

/// Sends one answer.
async fn send(out: Out, head: Head, mut writer: Writer) -> Result<Usage, Gone> {
    let index = writer.index;
    let first = json!({"role": "assistant", "content": "", "refusal": null});
    out.send(None, &head.chunk(index, &first, None, None)).await?;
    loop {
        let news = match out.next(&mut writer).await? {
            Ok(news) => news,
            Err(error) => {
                out.send(None, &error.body()).await?;
                return Err(Gone);
            }
        };
        let ending = news.ending;
        for (delta, logprobs) in deltas(news, &head, index) {
            out.send(None, &head.chunk(index, &delta, logprobs, None)).await?;
        }
        if let Some(ending) = ending {
            out.send(None, &head.chunk(index, &json!({}), None, Some(ending.name()))).await?;
            return Ok(writer.usage);
        }
    }
}

/// What is new, as changes of the message; the token's log-probability goes with the first of them.
fn deltas(news: News, head: &Head, choice: usize) -> Vec<(Value, Option<Value>)> {
    let text = head.model.writes().filter(|_| head.logprobs);
    let mut logprobs = match (news.token, text) {
        (Some(token), Some(text)) => Some(json!({"content": [rated(&token, text)], "refusal": null})),
        _ => None,
    };
    let mut all: Vec<(Value, Option<Value>)> = Vec::new();
    for piece in news.pieces {
        let delta = match piece {
            Piece::Text(text) => json!({"content": text}),
            Piece::Call { index, name } => json!({"tool_calls": [{
                "index": index, "id": call_id(choice, index), "type": "function",
                "function": {"name": name, "arguments": ""},
            }]}),
            Piece::Arguments { index, text } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        };
        all.push((delta, logprobs.take()));
    }
    if logprobs.is_some() {
        all.push((json!({"content": ""}), logprobs));
    }
    all
}
