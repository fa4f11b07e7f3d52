//! One small request on a connection of its own, for health checks, scrapes, probes and comparisons on the control thread.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::{ConnectError, connect::connect};
use crate::fleet::Worker;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No whole response within the time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Not HTTP, or the connection broke.
    #[error("broken response: {0}")]
    Http(#[from] hyper::Error),
    /// The body is longer than allowed, or broke off.
    #[error("broken body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// `GET path` from a worker; the status and the whole body (at most `bytes_max`), all within `timeout`.
pub async fn get(
    worker: &Worker,
    path: &'static str,
    timeout: Duration,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), FetchError> {
    fetch(worker, (Method::GET, path), OWN, Bytes::new(), timeout, bytes_max).await
}

/// `POST path` of a JSON body to a worker; otherwise as [`get`].
pub async fn post(
    worker: &Worker,
    path: &'static str,
    json: Bytes,
    timeout: Duration,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), FetchError> {
    fetch(worker, (Method::POST, path), OWN, json, timeout, bytes_max).await
}

/// As [`post`], under a name of its own: whoever counts a worker's requests can leave these out.
pub async fn probe(
    worker: &Worker,
    path: &'static str,
    json: Bytes,
    timeout: Duration,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), FetchError> {
    fetch(worker, (Method::POST, path), PROBE, json, timeout, bytes_max).await
}

/// What this gateway calls itself.
const OWN: &str = concat!("warmpath/", env!("CARGO_PKG_VERSION"));
const PROBE: &str = concat!("warmpath-probe/", env!("CARGO_PKG_VERSION"));

async fn fetch(
    worker: &Worker,
    (method, path): (Method, &'static str),
    user_agent: &'static str,
    body: Bytes,
    timeout: Duration,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), FetchError> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, worker.host_header.clone())
        .header(header::USER_AGENT, user_agent)
        .header(header::CONNECTION, "close");
    if let Some(key) = &worker.access().authorization {
        request = request.header(header::AUTHORIZATION, key.clone());
    }
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let request = request.body(Full::new(body)).expect("a constant path and checked headers make a request");
    tokio::time::timeout(timeout, exchange(worker, request, timeout, bytes_max))
        .await
        .map_err(|_| FetchError::Timeout(timeout))?
}

async fn exchange(
    worker: &Worker,
    request: Request<Full<Bytes>>,
    timeout: Duration,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), FetchError> {
    let stream = connect(worker, timeout).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), bytes_max).collect().await.map_err(FetchError::Body)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer);
    tokio::select! {
        // The connection is driven here and dropped with this call, whichever way it ends.
        biased;
        answer = &mut answer => answer,
        closed = connection => match closed {
            // What was read before the close is still to be had.
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}
