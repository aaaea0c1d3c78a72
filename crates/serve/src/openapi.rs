//! `/openapi.json`: what the server takes and gives, for tools that read OpenAPI 3.1.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const DOCUMENT: &str = include_str!("openapi.json");

/// The document.
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail where they find nothing")]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// Method and path of every route, from the table in the source.
    fn routes() -> BTreeSet<(String, String)> {
        let table = include_str!("server.rs").split(".route(\"").skip(1);
        let route = |row: &str| {
            let (path, rest) = row.split_once('"').unwrap();
            let method = if rest.trim_start_matches([',', ' ']).starts_with("get") { "get" } else { "post" };
            (method.to_owned(), path.replace("{*id}", "{id}"))
        };
        table.map(route).collect()
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = document();
        let mut told = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            told.extend(methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())));
        }
        let routes = routes();
        assert!(routes.len() > 20, "only {} routes were found", routes.len());
        assert_eq!(told, routes);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn what_it_refers_to_is_there() {
        let (document, mut seen) = (document(), 0);
        let mut todo = vec![&document];
        while let Some(value) = todo.pop() {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to} is missing");
                        seen += 1;
                    }
                    todo.extend(map.values());
                }
                Value::Array(list) => todo.extend(list),
                _ => {}
            }
        }
        assert!(seen > 20);
    }
}
