//! `/v1/embeddings`, and ranking by them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::warn;
use crate::app::App;
use crate::body::Fields;
use crate::error::ApiError;
use crate::model::Model;

/// Most texts of a request: OpenAI's limit.
const MOST_TEXTS: usize = 2048;

/// Texts in any of the forms that clients send.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Input {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// Vectors, and how many tokens they took.
pub(crate) struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    pub tokens: usize,
}

/// Embeds texts on the threads that compute, one request at a time.
pub(crate) async fn embed(app: &Arc<App>, model: &Arc<Model>, input: Input) -> Result<Embedded, ApiError> {
    let embedder = Arc::clone(model.embedder()?);
    let limit = embedder.settings().max_tokens;
    let vocab_size = embedder.model().spec().vocab_size;
    let tokens = match input {
        Input::Text(text) => embedder.tokens(&[text]),
        Input::Texts(texts) => embedder.tokens(&texts),
        // An empty list is one of texts as well.
        Input::Tokens(tokens) if tokens.is_empty() => Ok(Vec::new()),
        Input::Tokens(tokens) => Ok(vec![tokens]),
        Input::ManyTokens(many) => Ok(many),
    };
    let tokens = tokens?;
    if tokens.is_empty() || tokens.len() > MOST_TEXTS {
        return Err(ApiError::bad("input", format!("from 1 to {MOST_TEXTS} texts, found {}", tokens.len())));
    }
    for (index, text) in tokens.iter().enumerate() {
        let param = || format!("input[{index}]");
        if text.is_empty() {
            return Err(ApiError::bad(param(), "an empty text has no embedding"));
        }
        if text.len() > limit {
            let message = format!("{} tokens, more than the {limit} that the model reads", text.len());
            return Err(ApiError::bad(param(), message).with_code("context_length_exceeded"));
        }
        if let Some(id) = text.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ApiError::bad(param(), format!("there is no token {id}: the vocabulary ends at {vocab_size}")));
        }
    }
    let count = tokens.iter().map(Vec::len).sum();
    let broken = |reason: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, reason);
    let _place = app.places(1)?;
    let _turn = app.embedding.acquire().await.map_err(|error| broken(error.to_string()))?;
    let pool = Arc::clone(&app.pool);
    let work = move || pool.install(|| embedder.embed_tokens(&tokens, &mut |_| {}));
    let vectors = tokio::task::spawn_blocking(work).await.map_err(|error| broken(error.to_string()))??;
    Ok(Embedded { vectors, tokens: count })
}

/// Scales to length 1; what has no length stays.
pub(crate) fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// Turns texts into vectors.
pub(crate) async fn handle(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let input: Input = fields.need("input")?;
    let format: String = fields.take("encoding_format")?.unwrap_or_else(|| "float".into());
    if !["float", "base64"].contains(&format.as_str()) {
        return Err(ApiError::bad("encoding_format", format!("`{format}`: expected float or base64")));
    }
    let dimensions: Option<usize> = fields.take("dimensions")?;
    let width = model.embedder()?.width();
    if dimensions.is_some_and(|count| count == 0 || count > width) {
        return Err(ApiError::bad("dimensions", format!("from 1 to {width}")));
    }
    let warnings = fields.warnings();
    let mut found = embed(&app, &model, input).await?;
    if let Some(count) = dimensions.filter(|count| *count < width) {
        for vector in &mut found.vectors {
            vector.truncate(count);
            normalise(vector);
        }
    }
    let coded = |vector: &Vec<f32>| -> Value {
        match format.as_str() {
            "base64" => STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into(),
            _ => vector.as_slice().into(),
        }
    };
    let one = |(index, vector)| json!({"object": "embedding", "index": index, "embedding": coded(vector)});
    let data: Vec<Value> = found.vectors.iter().enumerate().map(one).collect();
    let mut body = json!({
        "object": "list", "data": data, "model": model.name,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
    });
    warn(&mut body, warnings);
    Ok(Json(body).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

/// Ranks documents by how near their vectors are to the query's (Jina's and Cohere's form).
pub(crate) async fn rerank(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body, app.body_limit).await?;
    let name: Option<String> = fields.take("model")?;
    let model = app.model(name.as_deref())?;
    let query: String = fields.need("query")?;
    let documents: Vec<Document> = fields.need("documents")?;
    let top_n: usize = fields.take("top_n")?.unwrap_or(documents.len());
    let return_documents: bool = fields.take("return_documents")?.unwrap_or_default();
    let warnings = fields.warnings();
    let texts: Vec<String> = documents
        .into_iter()
        .map(|document| match document {
            Document::Text(text) | Document::Object { text } => text,
        })
        .collect();
    let all = [query].into_iter().chain(texts.iter().cloned()).collect();
    let mut found = embed(&app, &model, Input::Texts(all)).await?;
    found.vectors.iter_mut().for_each(|vector| normalise(vector));
    let (query, vectors) = found.vectors.split_at(1);
    let score =
        |vector: &[f32]| -> f64 { vector.iter().zip(&query[0]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let mut ranked: Vec<(usize, f64)> = vectors.iter().map(|vector| score(vector)).enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(top_n);
    let one = |(index, score): (usize, f64)| {
        let mut result = json!({"index": index, "relevance_score": score});
        if return_documents {
            result["document"] = json!({"text": texts[index]});
        }
        result
    };
    let results: Vec<Value> = ranked.into_iter().map(one).collect();
    let mut body = json!({
        "id": app.id("rerank-"), "model": model.name, "results": results, "usage": {"total_tokens": found.tokens},
    });
    warn(&mut body, warnings);
    Ok(Json(body).into_response())
}
