//! Anthropic's `/v1/messages`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use loam_chat::{Message, Part, Role, ToolCall};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{Ending, Order, Usage, Writer};
use crate::app::App;
use crate::body::Fields;
use crate::error::ApiError;
use crate::model::{Model, Text};
use crate::params::sampling;
use crate::stream::{Framing, Gone, Out, response};
use crate::tools::{Choice, Piece, Tool, Tools, no_parameters};

#[derive(Deserialize)]
struct Turn {
    role: Role,
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text { text: String },
    ToolUse { id: String, name: String, input: Value },
    ToolResult { tool_use_id: String, content: Option<Content> },
}

impl Content {
    /// The text alone; what is no text is refused.
    fn text(self, param: &str) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Blocks(blocks) => blocks
                .into_iter()
                .map(|block| match block {
                    Block::Text { text } => Ok(text),
                    _ => Err(ApiError::bad(param, "only text may stand here")),
                })
                .collect(),
        }
    }
}

#[derive(Deserialize)]
struct GivenTool {
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
}

#[derive(Deserialize)]
struct GivenChoice {
    r#type: String,
    name: Option<String>,
    #[serde(default)]
    disable_parallel_tool_use: bool,
}

/// Answers a conversation.
pub(crate) async fn handle(State(app): State<Arc<App>>, body: Body) -> Response {
    answer(app, body).await.unwrap_or_else(ApiError::into_anthropic)
}

/// Says how long a conversation is.
pub(crate) async fn count(State(app): State<Arc<App>>, body: Body) -> Response {
    let count = async {
        let mut fields = Fields::read(body, app.body_limit).await?;
        let name: Option<String> = fields.take("model")?;
        let model = app.model(name.as_deref())?;
        let text = model.text()?;
        let (messages, tools) = conversation(&mut fields, text)?;
        Ok(text.encode(&text.render(messages, tools.as_ref())?)?.len())
    };
    match count.await {
        Ok(count) => Json(json!({"input_tokens": count})).into_response(),
        Err(error) => ApiError::into_anthropic(error),
    }
}

async fn answer(app: Arc<App>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let text = model.text()?;
    let is_stream: bool = fields.take("stream")?.unwrap_or_default();
    if let Some(stops) = fields.take::<Value>("stop_sequences")? {
        fields.put("stop", stops);
    }
    if let Some(thinking) = fields.take::<Value>("thinking")?
        && thinking["type"] != "disabled"
    {
        return Err(ApiError::bad("thinking", "`thinking` is not supported"));
    }
    let (messages, tools) = conversation(&mut fields, text)?;
    let most: usize = fields.need("max_tokens")?;
    fields.put("max_tokens", most.into());
    let sampling = sampling(&mut fields, text.open.recommended.as_ref(), app.default_max_tokens)?;
    let prompt = text.encode(&text.render(messages, tools.as_ref())?)?;
    let order = Order { tools, ..Order::new(prompt, sampling) };
    let id = app.id("msg_");
    let mut writers = order.place(&app, &model).await?;
    let writer = writers.remove(0);
    if is_stream {
        return Ok(response(Framing::Events, move |out| send(out, id, model, writer)));
    }
    let whole = writer.whole().await?;
    let mut content = Vec::new();
    if !whole.text.is_empty() || whole.calls.is_empty() {
        content.push(json!({"type": "text", "text": whole.text, "citations": null}));
    }
    for (at, (name, arguments)) in whole.calls.iter().enumerate() {
        // Cut off by the limit, arguments may be no JSON.
        let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
        content.push(json!({"type": "tool_use", "id": tool_id(&id, at), "name": name, "input": input}));
    }
    let mut message = head(&id, &model, whole.usage);
    message["content"] = content.into();
    message["stop_reason"] = reason(whole.ending, whole.stop.as_deref()).into();
    message["stop_sequence"] = whole.stop.into();
    Ok(Json(message).into_response())
}

/// The messages, the system's among them, and the tools.
fn conversation(fields: &mut Fields, text: &Text) -> Result<(Vec<Message>, Option<Tools>), ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = fields.take::<Content>("system")? {
        messages.push(Message::system(system.text("system")?));
    }
    let turns: Vec<Turn> = fields.need("messages")?;
    if turns.is_empty() {
        return Err(ApiError::bad("messages", "`messages` is empty"));
    }
    for (index, turn) in turns.into_iter().enumerate() {
        let param = format!("messages[{index}]");
        match turn.content {
            Content::Text(text) => messages.push(Message::new(turn.role, text)),
            Content::Blocks(blocks) => {
                let mut message = Message { content: Vec::new(), ..Message::new(turn.role, "") };
                for block in blocks {
                    match block {
                        Block::Text { text } => message.content.push(Part::text(text)),
                        Block::ToolUse { id, name, input } => message.tool_calls.push(ToolCall::new(id, name, input)),
                        Block::ToolResult { tool_use_id, content } => {
                            let text = content.map_or_else(|| Ok(String::new()), |content| content.text(&param))?;
                            messages.push(Message::tool(tool_use_id, text));
                        }
                    }
                }
                if !message.content.is_empty() || !message.tool_calls.is_empty() {
                    messages.push(message);
                }
            }
        }
    }
    let given: Vec<GivenTool> = fields.take("tools")?.unwrap_or_default();
    let choice: Option<GivenChoice> = fields.take("tool_choice")?;
    let tools = given.into_iter().map(|tool| Tool {
        name: tool.name,
        description: tool.description,
        parameters: tool.input_schema.unwrap_or_else(no_parameters),
    });
    let tools: Vec<Tool> = tools.collect();
    let parallel = !choice.as_ref().is_some_and(|choice| choice.disable_parallel_tool_use);
    let (kind, name) = choice.map_or(("auto".to_owned(), None), |choice| (choice.r#type, choice.name));
    let kind = match kind.as_str() {
        "none" => return Ok((messages, None)),
        "auto" => Choice::Auto,
        "any" | "tool" => Choice::Required,
        other => return Err(ApiError::bad("tool_choice", format!("`{other}`: expected auto, any, tool or none"))),
    };
    Ok((messages, Tools::new(tools, kind, name.as_deref(), parallel, text.format)?))
}

fn tool_id(id: &str, at: usize) -> String {
    format!("toolu_{}_{at}", id.trim_start_matches("msg_"))
}

fn reason(ending: Option<Ending>, stop: Option<&str>) -> &'static str {
    match ending {
        Some(Ending::Length) => "max_tokens",
        Some(Ending::Calls) => "tool_use",
        _ if stop.is_some() => "stop_sequence",
        _ => "end_turn",
    }
}

fn cost(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens, "output_tokens": usage.written_tokens,
        "cache_read_input_tokens": usage.cached_tokens, "cache_creation_input_tokens": 0,
    })
}

fn head(id: &str, model: &Model, usage: Usage) -> Value {
    json!({
        "id": id, "type": "message", "role": "assistant", "model": model.name, "content": [], "stop_reason": null,
        "stop_sequence": null, "usage": cost(usage),
    })
}

async fn send(out: Out, id: String, model: Arc<Model>, mut writer: Writer) -> Result<(), Gone> {
    let event = async |name: &str, mut value: Value| {
        value["type"] = name.into();
        out.send(Some(name), &value).await
    };
    event("message_start", json!({"message": head(&id, &model, writer.usage)})).await?;
    // The block that is open: its number, and whether it is a call.
    let mut open: Option<(usize, bool)> = None;
    let mut next = 0;
    loop {
        let news = match out.next(&mut writer).await? {
            Ok(news) => news,
            Err(error) => return out.send(Some("error"), &error.anthropic_body()).await,
        };
        for piece in news.pieces {
            let is_call = !matches!(piece, Piece::Text(_));
            let begins = matches!(piece, Piece::Call { .. }) || open.is_none_or(|(_, was_call)| was_call != is_call);
            if begins {
                if let Some((index, _)) = open {
                    event("content_block_stop", json!({"index": index})).await?;
                }
                let block = match &piece {
                    Piece::Call { index, name } => {
                        json!({"type": "tool_use", "id": tool_id(&id, *index), "name": name, "input": {}})
                    }
                    _ => json!({"type": "text", "text": ""}),
                };
                event("content_block_start", json!({"index": next, "content_block": block})).await?;
                open = Some((next, is_call));
                next += 1;
            }
            let delta = match piece {
                Piece::Text(text) => json!({"type": "text_delta", "text": text}),
                Piece::Arguments { text, .. } => json!({"type": "input_json_delta", "partial_json": text}),
                Piece::Call { .. } => continue,
            };
            event("content_block_delta", json!({"index": next - 1, "delta": delta})).await?;
        }
        if let Some(ending) = news.ending {
            if let Some((index, _)) = open {
                event("content_block_stop", json!({"index": index})).await?;
            }
            let reason = reason(Some(ending), news.stop.as_deref());
            let delta = json!({"stop_reason": reason, "stop_sequence": news.stop});
            event("message_delta", json!({"delta": delta, "usage": cost(writer.usage)})).await?;
            return event("message_stop", json!({})).await;
        }
    }
}
