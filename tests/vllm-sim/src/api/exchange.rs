//! One request and its response: from the parsed head to the last byte.

use std::time::Instant;

use bytes::Bytes;

use super::error::ApiError;
use super::routes::{self, Endpoint, Route};
use crate::http::connection::{Connection, Gone};
use crate::http::head::Head;
use crate::http::response::{self, ResponseHead};
use crate::worker::Worker;

const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

/// Whether the connection can carry another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Keep,
    Close,
}

/// See the module's documentation.
pub(crate) struct Exchange<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) connection: &'a mut Connection,
    pub(crate) head: &'a Head,
    request_id: Option<String>,
    started: Instant,
    status: u16,
    response_bytes: u64,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(worker: &'a Worker, connection: &'a mut Connection, head: &'a Head) -> Self {
        let request_id = worker.config.enable_request_id_headers.then(|| {
            let invent = || format!("{:016x}{:016x}", worker.rng.next_u64(), worker.rng.next_u64());
            head.request_id.clone().unwrap_or_else(invent)
        });
        Self { worker, connection, head, request_id, started: Instant::now(), status: 0, response_bytes: 0 }
    }

    /// Answers the request. An error means that the client has gone, or is to be left without an answer.
    pub(crate) async fn run(mut self) -> Result<Outcome, Gone> {
        self.worker.stats.requests.add();
        let route = routes::find(&self.head.method, &self.head.path);
        let handler = match &route {
            Route::Found(_, path) | Route::Redirect(path) => path,
            Route::MethodNotAllowed(_) | Route::NotFound => "none",
        };
        // What the body cannot change is answered before it is read.
        let endpoint = match route {
            _ if !self.is_authorised() => {
                self.plain(401, JSON, b"{\"error\":\"Unauthorized\"}").await?;
                None
            }
            Route::NotFound => {
                self.body(404, JSON, b"{\"detail\":\"Not Found\"}").await?;
                None
            }
            Route::MethodNotAllowed(allow) => {
                let head = ResponseHead { first: vec![("allow", allow)], ..self.response_head(405, JSON) };
                self.respond(head, b"{\"detail\":\"Method Not Allowed\"}").await?;
                None
            }
            Route::Redirect(path) => {
                let location = format!("http://{}{path}{}", self.head.host, self.head.query);
                let head = ResponseHead {
                    location: Some(location),
                    content_type: None,
                    ..self.response_head(307, JSON)
                };
                self.respond(head, b"").await?;
                None
            }
            Route::Found(endpoint, _) => Some(endpoint),
        };
        if endpoint.is_some() && self.head.expects_continue {
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let Some(body) = self.connection.read_body(self.head.body).await? else {
            self.connection.write(response::invalid_request().as_bytes()).await?;
            return Ok(Outcome::Close);
        };
        let request_bytes = body.len() as u64;
        if let Some(endpoint) = endpoint {
            self.dispatch(endpoint, body).await?;
        }
        self.worker.http_metrics.lock().observe(
            (&self.head.method, handler),
            self.status,
            (request_bytes, self.response_bytes),
            self.started.elapsed(),
        );
        Ok(if self.head.close { Outcome::Close } else { Outcome::Keep })
    }

    async fn dispatch(&mut self, endpoint: Endpoint, body: Bytes) -> Result<(), Gone> {
        match endpoint {
            Endpoint::Completions | Endpoint::Chat | Endpoint::Responses | Endpoint::Messages => {
                self.generate(endpoint, &body).await
            }
            _ => self.inform(endpoint, &body).await,
        }
    }

    /// vLLM guards `/v1` alone.
    fn is_authorised(&self) -> bool {
        let Some(key) = &self.worker.config.api_key else { return true };
        let given = self.head.authorization.as_deref().and_then(|own| own.strip_prefix("Bearer "));
        !self.head.path.starts_with("/v1") || self.head.method == "OPTIONS" || given == Some(key)
    }

    /// The head of a response of a known length, which [`Exchange::respond`] fills in.
    pub(crate) fn response_head(&self, status: u16, content_type: &'static str) -> ResponseHead {
        ResponseHead {
            status,
            content_length: Some(0),
            content_type: Some(content_type),
            vary: true,
            request_id: self.request_id.clone(),
            close: self.head.close,
            ..ResponseHead::default()
        }
    }

    /// Sends a whole response: the head, then the body, as two writes.
    pub(crate) async fn respond(&mut self, mut head: ResponseHead, body: &[u8]) -> Result<(), Gone> {
        head.content_length = Some(body.len());
        self.status = head.status;
        self.response_bytes = body.len() as u64;
        self.connection.write(head.encode().as_bytes()).await?;
        if self.head.method == "HEAD" {
            return Ok(());
        }
        self.connection.write(body).await
    }

    pub(crate) async fn body(
        &mut self,
        status: u16,
        content_type: &'static str,
        body: &[u8],
    ) -> Result<(), Gone> {
        self.respond(self.response_head(status, content_type), body).await
    }

    /// As [`Exchange::body`], from outside the CORS layer.
    async fn plain(&mut self, status: u16, content_type: &'static str, body: &[u8]) -> Result<(), Gone> {
        let head = ResponseHead { vary: false, ..self.response_head(status, content_type) };
        self.respond(head, body).await
    }

    pub(crate) async fn json(&mut self, body: &str) -> Result<(), Gone> {
        self.body(200, JSON, body.as_bytes()).await
    }

    pub(crate) async fn error(&mut self, error: &ApiError) -> Result<(), Gone> {
        self.respond(self.error_head(error), &error.body()).await
    }

    /// As [`Exchange::error`], in Anthropic's shape.
    pub(crate) async fn anthropic_error(&mut self, error: &ApiError) -> Result<(), Gone> {
        self.respond(self.error_head(error), &error.anthropic_body()).await
    }

    fn error_head(&self, error: &ApiError) -> ResponseHead {
        let mut head = self.response_head(error.status, JSON);
        head.first.extend(error.retry_after_s.map(|after_s| ("retry-after", after_s.to_string())));
        head
    }

    /// Sends the head of a stream, as a write of its own.
    pub(crate) async fn begin_stream(&mut self) -> Result<(), Gone> {
        let head = ResponseHead { content_length: None, ..self.response_head(200, EVENT_STREAM) };
        self.status = 200;
        self.connection.write(head.encode().as_bytes()).await
    }

    /// Sends the last chunk.
    pub(crate) async fn end_stream(&mut self) -> Result<(), Gone> {
        self.connection.write(b"0\r\n\r\n").await
    }
}
