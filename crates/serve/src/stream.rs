//! Answers that are sent as they come: server-sent events, or a JSON value per line.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::answer::{News, Writer};
use crate::error::ApiError;

/// Pieces that a slow reader may be behind; further ones wait in the engine's channel, whose length the request bounds.
const BEHIND: usize = 64;
/// Silence after which a comment tells client and proxies that the connection lives.
const PING: Duration = Duration::from_secs(10);

/// How values are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Events,
    Lines,
}

/// The way to the client.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    sender: mpsc::Sender<Bytes>,
    framing: Framing,
}

/// The client is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone;

impl Out {
    /// Sends a value, under a name where events have one.
    pub async fn send(&self, name: Option<&str>, value: &Value) -> Result<(), Gone> {
        let text = match (self.framing, name) {
            (Framing::Lines, _) => format!("{value}\n"),
            (Framing::Events, None) => format!("data: {value}\n\n"),
            (Framing::Events, Some(name)) => format!("event: {name}\ndata: {value}\n\n"),
        };
        self.raw(text).await
    }

    /// Sends text as it is.
    pub async fn raw(&self, text: impl Into<Bytes>) -> Result<(), Gone> {
        self.sender.send(text.into()).await.map_err(|_| Gone)
    }

    /// Waits for news, and lets the client know that it does.
    pub async fn next(&self, writer: &mut Writer) -> Result<Result<News, ApiError>, Gone> {
        loop {
            match tokio::time::timeout(PING, writer.next()).await {
                Ok(news) => return Ok(news),
                Err(_) if self.framing == Framing::Events => self.raw(": ping\n\n").await?,
                Err(_) => {}
            }
        }
    }
}

/// A response that `work` writes, until it ends or the client goes away.
pub(crate) fn response<F, W>(framing: Framing, work: W) -> Response
where
    W: FnOnce(Out) -> F,
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BEHIND);
    let work = work(Out { sender: sender.clone(), framing });
    tokio::spawn(async move {
        tokio::select! {
            // Also while the work waits for its turn.
            () = sender.closed() => {}
            _ = work => {}
        }
    });
    let mut response = Response::new(Body::from_stream(Chunks(receiver)));
    let kind = match framing {
        Framing::Events => "text/event-stream",
        Framing::Lines => "application/x-ndjson",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Or nginx would hold the pieces back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Chunks(mpsc::Receiver<Bytes>);

impl Stream for Chunks {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(Ok))
    }
}
