//! `/v1/responses`, without a memory: every request brings the whole conversation.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use loam_chat::{Message, Part, Role, ToolCall};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::call_id;
use super::warn;
use crate::answer::{Ending, Order, Usage, Writer};
use crate::app::App;
use crate::body::Fields;
use crate::error::ApiError;
use crate::model::Text;
use crate::params::{sampling, wanted};
use crate::stream::{Framing, Gone, Out, response};
use crate::tools::{Piece, Tools};

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Call { call_id: String, name: String, arguments: String },
    Output { call_id: String, output: Content },
    Message { role: Role, content: Content },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<TextPart>),
}

#[derive(Deserialize)]
struct TextPart {
    text: String,
}

impl Content {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// The answer so far: what it says of the request, and its items.
struct Record {
    body: Value,
    id: String,
}

/// Answers a conversation.
pub(crate) async fn handle(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let text = model.text()?;
    fields.refuse(&["previous_response_id", "conversation", "prompt", "background"])?;
    let is_stream: bool = fields.take("stream")?.unwrap_or_default();
    let instructions: Option<String> = fields.take("instructions")?;
    let messages = messages(fields.need("input")?, instructions.as_deref());
    // The shapes of the older API, which knows the same things.
    let tools: Vec<Value> = fields.take("tools")?.unwrap_or_default();
    let choice: Value = fields.take("tool_choice")?.unwrap_or_else(|| "auto".into());
    let told = |tool: &Value| match tool["type"] == "function" {
        true => json!({"type": "function", "function": tool}),
        false => tool.clone(),
    };
    fields.put("tools", tools.iter().map(told).collect());
    let chosen = if choice.is_object() { json!({"function": {"name": choice["name"]}}) } else { choice.clone() };
    fields.put("tool_choice", chosen);
    let parallel: bool = fields.take("parallel_tool_calls")?.unwrap_or(true);
    fields.put("parallel_tool_calls", parallel.into());
    let form: Value = fields.take("text")?.unwrap_or_default();
    match form["format"]["type"].as_str() {
        Some("json_schema") => {
            fields.put("response_format", json!({"type": "json_schema", "json_schema": form["format"]}))
        }
        Some(_) => fields.put("response_format", form["format"].clone()),
        None => {}
    }
    let most: Option<usize> = fields.take("max_output_tokens")?;
    if let Some(most) = most {
        fields.put("max_tokens", most.into());
    }
    for unused in ["reasoning", "truncation"] {
        fields.take::<Value>(unused)?;
    }
    let wanted = wanted(&mut fields)?;
    let offered = Tools::take(&mut fields, text.format)?;
    let sampling = sampling(&mut fields, text.open.recommended.as_ref(), app.default_max_tokens)?;
    let warnings = fields.warnings();
    let id = app.id("resp_");
    let mut format = form.get("format").cloned().unwrap_or_else(|| json!({"type": "text"}));
    if format["type"] == "json_schema" && format.get("name").is_none() {
        format["name"] = "schema".into();
    }
    let tools: Vec<Value> = tools.into_iter().map(repeated).collect();
    let mut body = json!({
        "id": id, "object": "response", "created_at": App::now(), "status": "in_progress", "background": false,
        "error": null, "incomplete_details": null, "instructions": instructions, "max_output_tokens": most,
        "model": model.name, "output": [], "parallel_tool_calls": parallel, "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null}, "store": false, "temperature": sampling.temperature,
        "text": {"format": format}, "tool_choice": choice, "tools": tools, "top_p": sampling.top_p,
        "truncation": "disabled", "metadata": {},
    });
    warn(&mut body, warnings);
    let prompt = prompt(text, messages, offered.as_ref())?;
    let order = Order { wanted, tools: offered, ..Order::new(prompt, sampling) };
    let mut writers = order.place(&app, &model).await?;
    let writer = writers.remove(0);
    let record = Record { body, id };
    if is_stream {
        return Ok(response(Framing::Events, move |out| send(out, record, writer)));
    }
    let whole = writer.whole().await?;
    let mut items = Vec::new();
    if !whole.text.is_empty() || whole.calls.is_empty() {
        items.push(message_item(&record.id, 0, Some(&whole.text)));
    }
    for (name, arguments) in &whole.calls {
        items.push(call_item(&record.id, items.len(), &call_id(0, items.len()), name, Some(arguments)));
    }
    Ok(Json(record.finished(items, whole.ending, whole.usage)).into_response())
}

/// A tool as an answer repeats it: calls obey their schema, whether that was asked for or not.
fn repeated(mut tool: Value) -> Value {
    tool["strict"] = true.into();
    if tool.get("parameters").is_none() {
        tool["parameters"] = Value::Null;
    }
    tool
}

fn messages(input: Input, instructions: Option<&str>) -> Vec<Message> {
    let mut messages: Vec<Message> = instructions.map(Message::system).into_iter().collect();
    let items = match input {
        Input::Text(text) => {
            messages.push(Message::user(text));
            return messages;
        }
        Input::Items(items) => items,
    };
    for item in items {
        match item {
            Item::Message { role, content } => messages.push(Message::new(role, content.text())),
            Item::Output { call_id, output } => messages.push(Message::tool(call_id, output.text())),
            Item::Call { call_id, name, arguments } => {
                let call = ToolCall::new(call_id, name, arguments.into());
                match messages.last_mut().filter(|last| last.role == Role::Assistant) {
                    Some(last) => last.tool_calls.push(call),
                    None => messages.push(Message {
                        content: Vec::<Part>::new(),
                        tool_calls: vec![call],
                        ..Message::assistant("")
                    }),
                }
            }
        }
    }
    messages
}

fn prompt(text: &Text, messages: Vec<Message>, tools: Option<&Tools>) -> Result<Vec<u32>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::bad("input", "`input` is empty"));
    }
    text.encode(&text.render(messages, tools)?)
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// An item of text, whole or just begun.
fn message_item(id: &str, at: usize, text: Option<&str>) -> Value {
    json!({
        "type": "message", "id": format!("msg_{id}_{at}"), "role": "assistant",
        "status": if text.is_some() { "completed" } else { "in_progress" },
        "content": text.map(text_part).into_iter().collect::<Vec<_>>(),
    })
}

/// A call, whole or just begun.
fn call_item(id: &str, at: usize, call: &str, name: &str, arguments: Option<&str>) -> Value {
    json!({
        "type": "function_call", "id": format!("fc_{id}_{at}"), "call_id": call, "name": name,
        "arguments": arguments.unwrap_or_default(),
        "status": if arguments.is_some() { "completed" } else { "in_progress" },
    })
}

impl Record {
    fn finished(&self, items: Vec<Value>, ending: Option<Ending>, usage: Usage) -> Value {
        let mut body = self.body.clone();
        let is_cut = ending == Some(Ending::Length);
        body["status"] = if is_cut { "incomplete" } else { "completed" }.into();
        if is_cut {
            body["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        body["output"] = items.into();
        body["usage"] = json!({
            "input_tokens": usage.prompt_tokens, "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.written_tokens, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.written_tokens,
        });
        body
    }
}

/// Sends events under growing numbers.
struct Events {
    out: Out,
    number: usize,
    id: String,
    /// Items that are finished.
    items: Vec<Value>,
    open: Option<Open>,
}

/// The item that is being written.
struct Open {
    /// Of a call: its name for answers, and the function.
    call: Option<(String, String)>,
    text: String,
}

impl Events {
    async fn send(&mut self, name: &str, mut value: Value) -> Result<(), Gone> {
        value["type"] = name.into();
        value["sequence_number"] = self.number.into();
        self.number += 1;
        self.out.send(Some(name), &value).await
    }

    fn item(&self, open: &Open, is_done: bool) -> Value {
        let (at, text) = (self.items.len(), is_done.then_some(open.text.as_str()));
        match &open.call {
            Some((call, name)) => call_item(&self.id, at, call, name, text),
            None => message_item(&self.id, at, text),
        }
    }

    async fn begin(&mut self, call: Option<String>) -> Result<(), Gone> {
        self.end().await?;
        let at = self.items.len();
        let open = Open { call: call.map(|name| (call_id(0, at), name)), text: String::new() };
        let item = self.item(&open, false);
        let (item_id, is_text) = (item["id"].clone(), open.call.is_none());
        self.open = Some(open);
        self.send("response.output_item.added", json!({"output_index": at, "item": item})).await?;
        if is_text {
            let part = json!({"item_id": item_id, "output_index": at, "content_index": 0, "part": text_part("")});
            self.send("response.content_part.added", part).await?;
        }
        Ok(())
    }

    async fn add(&mut self, text: &str) -> Result<(), Gone> {
        let at = self.items.len();
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.text.push_str(text);
        let item_id = self.item(&open, false)["id"].clone();
        let is_text = open.call.is_none();
        self.open = Some(open);
        let mut delta = json!({"item_id": item_id, "output_index": at, "delta": text});
        if !is_text {
            return self.send("response.function_call_arguments.delta", delta).await;
        }
        delta["content_index"] = 0.into();
        delta["logprobs"] = json!([]);
        self.send("response.output_text.delta", delta).await
    }

    async fn end(&mut self) -> Result<(), Gone> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let (at, item) = (self.items.len(), self.item(&open, true));
        let mut done = json!({"item_id": item["id"], "output_index": at});
        if let Some((_, name)) = &open.call {
            done["arguments"] = open.text.as_str().into();
            done["name"] = name.as_str().into();
            self.send("response.function_call_arguments.done", done).await?;
        } else {
            done["content_index"] = 0.into();
            let mut part = done.clone();
            done["text"] = open.text.as_str().into();
            done["logprobs"] = json!([]);
            self.send("response.output_text.done", done).await?;
            part["part"] = text_part(&open.text);
            self.send("response.content_part.done", part).await?;
        }
        self.send("response.output_item.done", json!({"output_index": at, "item": item})).await?;
        self.items.push(item);
        Ok(())
    }
}

async fn send(out: Out, record: Record, mut writer: Writer) -> Result<(), Gone> {
    let mut events = Events { out, number: 0, id: record.id.clone(), items: Vec::new(), open: None };
    events.send("response.created", json!({"response": record.body})).await?;
    events.send("response.in_progress", json!({"response": record.body})).await?;
    loop {
        let out = events.out.clone();
        let news = match out.next(&mut writer).await? {
            Ok(news) => news,
            Err(error) => {
                let mut body = record.body.clone();
                body["status"] = "failed".into();
                body["error"] = json!({"code": "server_error", "message": error.message});
                return events.send("response.failed", json!({"response": body})).await;
            }
        };
        for piece in news.pieces {
            match piece {
                Piece::Text(text) => {
                    if events.open.as_ref().is_none_or(|open| open.call.is_some()) {
                        events.begin(None).await?;
                    }
                    events.add(&text).await?;
                }
                Piece::Call { name, .. } => events.begin(Some(name)).await?,
                Piece::Arguments { text, .. } => events.add(&text).await?,
            }
        }
        if let Some(ending) = news.ending {
            if events.open.is_none() && events.items.is_empty() {
                events.begin(None).await?;
            }
            events.end().await?;
            let items = std::mem::take(&mut events.items);
            let body = record.finished(items, Some(ending), writer.usage);
            let name = if ending == Ending::Length { "response.incomplete" } else { "response.completed" };
            return events.send(name, json!({"response": body})).await;
        }
    }
}
