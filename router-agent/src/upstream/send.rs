//! Sends one request to one worker, over a pooled connection or a new one.
//!
//! A pooled connection may have been closed by the worker while the request was on its way. That is no fault of the worker:
//! the request goes again, once, over a new connection. RFC 9112 section 9.3.1 allows this only where the request is
//! idempotent or was certainly not processed, so [`send`] is told which it is.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{ConnectError, Hold, Lease, Pool, connect::is_out_of_sockets};
use crate::fleet::Worker;

/// Why there is no response head.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection: the worker has seen nothing of the request.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection ended before the response head.
    #[error("the worker closed the connection before answering: {source}")]
    Broken {
        /// hyper's word.
        source: hyper::Error,
        /// Whether anything of the request was written.
        sent: bool,
    },
    /// The head is none that this request may have, or says two things about the body's end: another reader might find
    /// another response in it.
    #[error("the worker's response is malformed: {0}")]
    Malformed(&'static str),
    /// The stream ended behind its head.
    #[error("the worker ended the stream before its first byte: {0}")]
    Empty(io::Error),
    /// The stream's first byte did not come.
    #[error("no first byte of the stream within {0:?}")]
    Silent(Duration),
    /// The stream's first event is an error.
    #[error("the worker began its stream with an error")]
    ErrorEvent,
    /// The worker's engine was found to hang while the request waited there.
    #[error("the worker's engine hangs")]
    Hung,
    /// The worker was removed from the fleet, without waiting for what was in flight.
    #[error("the worker was removed while it had the request")]
    Removed,
    /// The head did not come.
    #[error("no response head within {0:?}")]
    Timeout(Duration),
}

impl SendError {
    /// Whether the worker may have begun to process the request.
    pub fn may_have_been_processed(&self) -> bool {
        match self {
            Self::Connect(_) => false,
            Self::Broken { sent, .. } => *sent,
            Self::Timeout(_)
            | Self::Malformed(_)
            | Self::Empty(_)
            | Self::Silent(_)
            | Self::ErrorEvent
            | Self::Hung
            | Self::Removed => true,
        }
    }

    /// Whether this host had no socket left: nothing was asked of the worker.
    pub fn is_out_of_sockets(&self) -> bool {
        matches!(
            self,
            Self::Connect(ConnectError::Resolve { source, .. } | ConnectError::Connect { source, .. })
                if is_out_of_sockets(source)
        )
    }

    /// A bounded label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Broken { .. } | Self::Empty(_) => "broken",
            Self::Timeout(_) | Self::Silent(_) => "timeout",
            Self::ErrorEvent => "error_event",
            Self::Hung => "hung",
            Self::Malformed(_) => "malformed",
            Self::Removed => "removed",
        }
    }
}

/// A response head, and the connection that its body comes from.
#[derive(Debug)]
pub struct Sent {
    /// Head, and the body to be read.
    pub response: Response<Incoming>,
    /// To be put back when the body has been read, dropped if nobody reads it.
    pub lease: Lease,
}

impl Sent {
    /// Completes when a byte of the body is here, or the connection ends: then there is none. At once where hyper has read
    /// more than the head; see [`send`].
    pub async fn first_byte(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.lease.poll_first_byte(cx)).await
    }

    /// Whether the stream begins with an error in vLLM's form, as far as its first bytes are here ([`Sent::first_byte`]).
    /// Inside an event's JSON the words cannot stand: its quotation marks are escaped.
    pub fn begins_with_error(&self) -> bool {
        self.lease.has_early(b"data: {\"error\"")
    }
}

/// Sends `request` (made anew by the closure for each try) and waits for the response head.
///
/// `repeatable`: the request may be processed twice without harm. `hold`: which bodies are not read before
/// [`Lease::open_body`].
pub async fn send(
    pool: &Pool,
    worker: &Worker,
    repeatable: bool,
    hold: Hold,
    head_timeout: Duration,
    request: impl Fn() -> Request<Bytes>,
) -> Result<Sent, SendError> {
    if let Some(lease) = pool.reuse(worker) {
        match exchange(lease, hold, head_timeout, request()).await {
            Err(SendError::Broken { source, sent }) if repeatable || !sent => {
                tracing::debug!(worker = %worker.name, %source, "pooled connection was closed: using a new one");
            }
            other => return other,
        }
    }
    let lease = pool.connect(worker).await?;
    exchange(lease, hold, head_timeout, request()).await
}

async fn exchange(
    mut lease: Lease,
    hold: Hold,
    head_timeout: Duration,
    request: Request<Bytes>,
) -> Result<Sent, SendError> {
    let exchange = async {
        lease.sender().ready().await.map_err(|source| SendError::Broken { source, sent: false })?;
        let request = lease.begin(request, hold);
        lease.sender().try_send_request(request).await.map_err(|mut error| {
            let sent = error.take_message().is_none();
            SendError::Broken { source: error.into_error(), sent }
        })
    };
    let response = tokio::time::timeout(head_timeout, exchange)
        .await
        .map_err(|_| SendError::Timeout(head_timeout))??;
    check(&response).map_err(SendError::Malformed)?;
    Ok(Sent { response, lease })
}

/// Whether the response is a stream of server-sent events.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// hyper refuses lengths that differ and chunks that are none; beside chunks it overlooks a length (RFC 9112 section 6.1).
/// It lets a switch of protocols pass, which is never asked for here.
fn check(response: &Response<Incoming>) -> Result<(), &'static str> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it switches protocols, which the request did not ask for");
    }
    let headers = response.headers();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(_), _) if headers.contains_key(header::CONTENT_LENGTH) => {
            Err("it has Content-Length and Transfer-Encoding")
        }
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err("it has a transfer coding other than `chunked`"),
    }
}
