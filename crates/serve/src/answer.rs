//! One or several texts being written, as every API's handlers see them.

use std::sync::Arc;

use axum::http::StatusCode;
use loam_chat::{FinishReason, Sampling};
use loam_infer::scheduler::Event;
use loam_infer::{Request, Token};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::app::App;
use crate::error::ApiError;
use crate::model::Model;
use crate::params::Wanted;
use crate::tools::{CallReader, Piece, Tools};

/// Everything that decides what is written.
#[derive(Debug)]
pub(crate) struct Order {
    pub prompt: Vec<u32>,
    pub sampling: Sampling,
    pub wanted: Option<Wanted>,
    pub tools: Option<Tools>,
    /// How many answers, each with the next seed.
    pub n: usize,
    pub prompt_logprobs: bool,
    /// Whether end tokens end nothing.
    pub ignore_eos: bool,
}

impl Order {
    pub fn new(prompt: Vec<u32>, sampling: Sampling) -> Self {
        Self { prompt, sampling, wanted: None, tools: None, n: 1, prompt_logprobs: false, ignore_eos: false }
    }

    /// Hands the order to the model's engine: a writer per answer.
    pub async fn place(self, app: &App, model: &Arc<Model>) -> Result<Vec<Writer>, ApiError> {
        let wanted = match &self.tools {
            Some(tools) => {
                // Alone first, so that an error names the tool.
                for (index, tool) in tools.tools.iter().enumerate() {
                    let grammar = loam_infer::Grammar::JsonSchema(tool.parameters.clone());
                    let param = format!("tools[{index}].function.parameters");
                    self.constrain(model, Wanted { grammar, param }).await?;
                }
                let grammar = tools.grammar(self.wanted.as_ref())?;
                Some(Wanted { grammar, param: "tools".into() })
            }
            None => self.wanted.clone(),
        };
        let constraint = match wanted {
            Some(wanted) if self.ignore_eos => {
                return Err(ApiError::bad(wanted.param, "a constraint beside `ignore_eos`"));
            }
            Some(wanted) => Some(self.constrain(model, wanted).await?),
            None => None,
        };
        let places = Arc::new(app.places(self.n)?);
        let mut writers = Vec::with_capacity(self.n);
        for index in 0..self.n {
            let seed = self.sampling.seed.wrapping_add(index as u64);
            let request = Request {
                constraint: constraint.clone(),
                stop_ids: self.ignore_eos.then(Vec::new),
                prompt_logprobs: self.prompt_logprobs,
                adapter: model.adapter.as_ref().map(|adapter| adapter.id),
                ..Request::new(self.prompt.clone(), Sampling { seed, ..self.sampling.clone() })
            };
            writers.push(Writer {
                index,
                events: model.text()?.engine.submit(request).await?,
                calls: self.tools.as_ref().map(CallReader::new),
                usage: Usage { prompt_tokens: self.prompt.len(), ..Usage::default() },
                _places: Arc::clone(&places),
            });
        }
        Ok(writers)
    }

    /// Compiles on a thread that may take its time.
    async fn constrain(&self, model: &Arc<Model>, wanted: Wanted) -> Result<loam_infer::Constraint, ApiError> {
        let model = Arc::clone(model);
        let compiled = tokio::task::spawn_blocking(move || model.text()?.constraint(&wanted)).await;
        compiled
            .map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the constraint could not be compiled"))?
    }
}

/// What an answer cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub written_tokens: usize,
}

impl Usage {
    /// Of several answers to one prompt.
    pub fn of_all(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::default(), |sum, one| Self {
            prompt_tokens: one.prompt_tokens,
            cached_tokens: sum.cached_tokens.max(one.cached_tokens),
            written_tokens: sum.written_tokens + one.written_tokens,
        })
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Stop,
    Length,
    Calls,
}

impl Ending {
    /// OpenAI's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Calls => "tool_calls",
        }
    }
}

/// What is new of an answer.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub pieces: Vec<Piece>,
    pub token: Option<Token>,
    pub prompt: Option<Vec<Token>>,
    pub ending: Option<Ending>,
    /// The stop text that ended it.
    pub stop: Option<String>,
}

/// An answer while it is written. Dropping it ends the writing.
#[derive(Debug)]
pub(crate) struct Writer {
    pub index: usize,
    pub usage: Usage,
    events: mpsc::UnboundedReceiver<Event>,
    calls: Option<CallReader>,
    _places: Arc<OwnedSemaphorePermit>,
}

impl Writer {
    /// Waits for something new. After an ending there is nothing more.
    pub async fn next(&mut self) -> Result<News, ApiError> {
        loop {
            let Some(event) = self.events.recv().await else {
                return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine stopped"));
            };
            match event {
                Event::Started { cached_tokens } => self.usage.cached_tokens = cached_tokens,
                Event::Prompt(tokens) => return Ok(News { prompt: Some(tokens), ..News::default() }),
                Event::Token { token, text } => {
                    self.usage.written_tokens += 1;
                    let pieces = self.read(&text, false);
                    return Ok(News { pieces, token: Some(token), ..News::default() });
                }
                Event::Done { text, finish_reason, stop, .. } => {
                    let pieces = self.read(&text, true);
                    let has_calls = self.calls.as_ref().is_some_and(CallReader::has_calls);
                    let ending = match finish_reason {
                        FinishReason::Length => Ending::Length,
                        FinishReason::Stop if has_calls => Ending::Calls,
                        FinishReason::Stop => Ending::Stop,
                    };
                    return Ok(News { pieces, ending: Some(ending), stop, ..News::default() });
                }
                Event::Failed(error) => {
                    return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()));
                }
            }
        }
    }

    fn read(&mut self, text: &str, is_end: bool) -> Vec<Piece> {
        match &mut self.calls {
            Some(calls) => {
                let mut pieces = calls.push(text);
                if is_end {
                    pieces.extend(calls.finish());
                }
                pieces
            }
            None if text.is_empty() => Vec::new(),
            None => vec![Piece::Text(text.to_owned())],
        }
    }

    /// Waits for all of it.
    pub async fn whole(mut self) -> Result<Whole, ApiError> {
        let mut whole = Whole { index: self.index, ..Whole::default() };
        loop {
            let news = self.next().await?;
            whole.tokens.extend(news.token);
            whole.prompt = whole.prompt.or(news.prompt);
            for piece in news.pieces {
                match piece {
                    Piece::Text(text) => whole.text.push_str(&text),
                    Piece::Call { name, .. } => whole.calls.push((name, String::new())),
                    Piece::Arguments { index, text } => {
                        if let Some((_, arguments)) = whole.calls.get_mut(index) {
                            arguments.push_str(&text);
                        }
                    }
                }
            }
            if let Some(ending) = news.ending {
                return Ok(Whole { ending: Some(ending), stop: news.stop, usage: self.usage, ..whole });
            }
        }
    }
}

/// A finished answer.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub index: usize,
    pub text: String,
    /// Names and arguments of the calls.
    pub calls: Vec<(String, String)>,
    pub tokens: Vec<Token>,
    pub prompt: Option<Vec<Token>>,
    pub ending: Option<Ending>,
    /// The stop text that ended it.
    pub stop: Option<String>,
    pub usage: Usage,
}

impl Whole {
    pub fn ending_name(&self) -> &'static str {
        self.ending.map_or("stop", Ending::name)
    }
}

/// Waits for all answers, side by side: whoever writes first does not hold places longer than it must.
pub(crate) async fn all(writers: Vec<Writer>) -> Result<Vec<Whole>, ApiError> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in writers {
        tasks.spawn(writer.whole());
    }
    let mut found = Vec::new();
    while let Some(result) = tasks.join_next().await {
        let broken = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "an answer was lost");
        found.push(result.map_err(broken)??);
    }
    found.sort_by_key(|whole| whole.index);
    Ok(found)
}
