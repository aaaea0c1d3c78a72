//! A page to chat in. It is one file, part of the binary, and asks nobody else for anything.

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

/// The page. Its policy lets it talk to this server alone.
pub(crate) async fn page() -> Response {
    let mut response = Html(include_str!("page.html")).into_response();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}
