//! `/v1/models`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::model::Model;

fn card(model: &Model) -> Value {
    let mut card = json!({
        "id": model.name, "object": "model", "created": model.created, "owned_by": "loam",
        "max_model_len": model.context(), "capabilities": {"completion": model.writes().is_some(), "embedding": model.embedder().is_ok()},
    });
    if let Some(text) = model.writes() {
        card["summary"] = text.open.model.spec().summary().into();
    }
    if let Some(adapter) = &model.adapter {
        card["parent"] = adapter.parent.as_str().into();
        card["root"] = adapter.path.as_str().into();
    }
    card
}

/// All models.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    let data: Vec<Value> = app.models().iter().map(|model| card(model)).collect();
    Json(json!({"object": "list", "data": data})).into_response()
}

/// One model, by its own name.
pub(crate) async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let found = app.models().into_iter().find(|model| model.name == id);
    let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("there is no model `{id}`"));
    let model = found.ok_or_else(|| missing().about("model").with_code("model_not_found"))?;
    Ok(Json(card(&model)).into_response())
}
