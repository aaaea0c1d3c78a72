//! `/v1/completions`: plain continuation, and how likely a given text is.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use loam_infer::Token;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::{StreamOptions, finite};
use super::{usage, warn};
use crate::answer::{self, Order, Usage, Whole, Writer};
use crate::app::App;
use crate::body::Fields;
use crate::error::ApiError;
use crate::model::{Model, Text};
use crate::params::{sampling, wanted};
use crate::stream::{Framing, Gone, Out, response};
use crate::tools::Piece;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most alternatives to a token that may be asked for.
const MOST_ALTERNATIVES: usize = 20;

/// A prompt in any of the forms that clients send.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// What the answers are made of besides their text.
#[derive(Debug, Clone)]
struct Shape {
    id: String,
    created: u64,
    model: Arc<Model>,
    /// Alternatives per token, where log-probabilities are wanted.
    logprobs: Option<usize>,
    echo: bool,
    /// Whether the answer is the prompt alone.
    nothing_new: bool,
    include_usage: bool,
}

/// Continues texts.
pub(crate) async fn handle(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let text = model.text()?;
    fields.refuse(&["suffix"])?;
    let is_stream: bool = fields.take("stream")?.unwrap_or_default();
    let options: StreamOptions = fields.take("stream_options")?.unwrap_or_default();
    let logprobs: Option<usize> = fields.take("logprobs")?;
    let echo: bool = fields.take("echo")?.unwrap_or_default();
    if logprobs.is_some_and(|count| count > MOST_ALTERNATIVES) {
        return Err(ApiError::bad("logprobs", format!("at most {MOST_ALTERNATIVES} alternatives to a token")));
    }
    if is_stream && echo {
        return Err(ApiError::bad("echo", "`echo` beside `stream` is not supported"));
    }
    // Nothing new may be asked for where the prompt is wanted back.
    let nothing_new = fields.take::<usize>("max_tokens")?.map(|max_tokens| {
        fields.put("max_tokens", max_tokens.max(1).into());
        max_tokens == 0
    });
    let nothing_new = nothing_new.unwrap_or_default();
    if nothing_new && !echo {
        return Err(ApiError::bad("max_tokens", "at least 1, or 0 with `echo`"));
    }
    let n: usize = fields.take("n")?.unwrap_or(1);
    if fields.take::<usize>("best_of")?.is_some_and(|best_of| best_of != n) {
        return Err(ApiError::bad("best_of", "`best_of` other than `n` is not supported"));
    }
    let prompts: Prompt = fields.need("prompt")?;
    let wanted = wanted(&mut fields)?;
    let mut sampling = sampling(&mut fields, text.open.recommended.as_ref(), DEFAULT_MAX_TOKENS)?;
    sampling.top_logprobs = logprobs.unwrap_or_default();
    let ignore_eos: bool = fields.take("ignore_eos")?.unwrap_or_default();
    let warnings = fields.warnings();
    let prompts = encode(prompts, text)?;
    if prompts.is_empty() || n == 0 || prompts.len().saturating_mul(n) > 128 {
        return Err(ApiError::bad("prompt", "from 1 to 128 answers in all"));
    }
    let mut writers = Vec::new();
    for prompt in prompts {
        let prompt_logprobs = echo && logprobs.is_some();
        let mut order = Order::new(prompt.clone(), sampling.clone());
        order = Order { wanted: wanted.clone(), n, prompt_logprobs, ignore_eos, ..order };
        let prompt = Arc::new(prompt);
        writers.extend(order.place(&app, &model).await?.into_iter().map(|writer| (Arc::clone(&prompt), writer)));
    }
    for (index, (_, writer)) in writers.iter_mut().enumerate() {
        writer.index = index;
    }
    let include_usage = options.include_usage;
    let (id, created) = (app.id("cmpl-"), App::now());
    let shape = Shape { id, created, model: Arc::clone(&model), logprobs, echo, nothing_new, include_usage };
    if is_stream {
        let writers = writers.into_iter().map(|(_, writer)| writer).collect();
        return Ok(response(Framing::Events, move |out| send_all(out, shape, writers)));
    }
    let (prompts, writers): (Vec<_>, Vec<_>) = writers.into_iter().unzip();
    let all = answer::all(writers).await?;
    let mut choices = Vec::new();
    for (whole, prompt) in all.iter().zip(&prompts) {
        choices.push(shape.choice(whole, prompt, text)?);
    }
    let prompt_tokens = all.iter().map(|whole| whole.usage.prompt_tokens).sum::<usize>() / n;
    let cost = Usage { prompt_tokens, ..Usage::of_all(all.iter().map(|whole| whole.usage)) };
    let mut body = shape.around(choices.into(), Some(usage(cost)));
    warn(&mut body, warnings);
    Ok(Json(body).into_response())
}

fn encode(prompts: Prompt, text: &Text) -> Result<Vec<Vec<u32>>, ApiError> {
    let texts = match prompts {
        Prompt::Text(text) => vec![text],
        Prompt::Texts(texts) => texts,
        Prompt::Tokens(tokens) => return Ok(vec![tokens]),
        Prompt::ManyTokens(many) => return Ok(many),
    };
    let generator = text.open.generator();
    texts
        .iter()
        .map(|text| generator.encode_prompt(text).map_err(|error| ApiError::from(error).about("prompt")))
        .collect()
}

impl Shape {
    fn around(&self, choices: Value, usage: Option<Value>) -> Value {
        let mut body = json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model.name,
            "choices": choices,
        });
        if let Some(usage) = usage {
            body["usage"] = usage;
        } else if self.include_usage {
            body["usage"] = Value::Null;
        }
        body
    }

    fn choice(&self, whole: &Whole, prompt: &[u32], text: &Text) -> Result<Value, ApiError> {
        let before = if self.echo { text.open.tokenizer.decode(prompt, true)? } else { String::new() };
        let new = if self.nothing_new { "" } else { whole.text.as_str() };
        let tokens = if self.nothing_new { &[] } else { whole.tokens.as_slice() };
        let logprobs = self.logprobs.map(|_| {
            let mut rated = Rated::default();
            if self.echo {
                let known = whole.prompt.iter().flatten();
                // Nothing comes before the first.
                rated.add(prompt[0], None, text);
                known.for_each(|token| rated.add(token.id, Some(token), text));
            }
            tokens.iter().for_each(|token| rated.add(token.id, Some(token), text));
            rated.value()
        });
        let finish_reason = if self.nothing_new { "length" } else { whole.ending_name() };
        Ok(json!({
            "index": whole.index, "text": format!("{before}{new}"), "logprobs": logprobs,
            "finish_reason": finish_reason,
        }))
    }
}

/// Log-probabilities in the columns of this API.
#[derive(Debug, Default)]
struct Rated {
    tokens: Vec<String>,
    logprobs: Vec<Option<f32>>,
    top: Vec<Option<Map<String, Value>>>,
    offsets: Vec<usize>,
    length: usize,
}

impl Rated {
    fn add(&mut self, id: u32, token: Option<&Token>, text: &Text) {
        let spelled = text.spell(id).0;
        self.offsets.push(self.length);
        self.length += spelled.chars().count();
        self.tokens.push(spelled);
        self.logprobs.push(token.map(|token| finite(token.logprob)));
        self.top.push(token.map(|token| {
            let alternatives = token.top_logprobs.iter();
            alternatives.map(|&(id, logprob)| (text.spell(id).0, finite(logprob).into())).collect()
        }));
    }

    fn value(self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.top,
            "text_offset": self.offsets,
        })
    }
}

async fn send_all(out: Out, shape: Shape, writers: Vec<Writer>) -> Result<(), Gone> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in writers {
        tasks.spawn(send(out.clone(), shape.clone(), writer));
    }
    let mut cost = Vec::new();
    while let Some(result) = tasks.join_next().await {
        match result {
            Ok(Ok(usage)) => cost.push(usage),
            // It has been said, or nobody listens.
            Ok(Err(Gone)) | Err(_) => return Err(Gone),
        }
    }
    if shape.include_usage {
        out.send(None, &shape.around(json!([]), Some(usage(Usage::of_all(cost))))).await?;
    }
    out.raw("data: [DONE]\n\n").await
}

async fn send(out: Out, shape: Shape, mut writer: Writer) -> Result<Usage, Gone> {
    let mut offset = 0;
    loop {
        let news = match out.next(&mut writer).await? {
            Ok(news) => news,
            Err(error) => {
                out.send(None, &error.body()).await?;
                return Err(Gone);
            }
        };
        let mut text = String::new();
        for piece in news.pieces {
            if let Piece::Text(more) = piece {
                text.push_str(&more);
            }
        }
        let logprobs = match (news.token, shape.logprobs, shape.model.writes()) {
            (Some(token), Some(_), Some(model)) => {
                let mut rated = Rated { length: offset, ..Rated::default() };
                rated.add(token.id, Some(&token), model);
                offset = rated.length;
                Some(rated.value())
            }
            _ => None,
        };
        let ending = news.ending.map(answer::Ending::name);
        if !text.is_empty() || logprobs.is_some() || ending.is_some() {
            let choice = json!({"index": writer.index, "text": text, "logprobs": logprobs, "finish_reason": ending});
            out.send(None, &shape.around(json!([choice]), None)).await?;
        }
        if ending.is_some() {
            return Ok(writer.usage);
        }
    }
}
