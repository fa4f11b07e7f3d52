//! The response body on its way from worker to client.
//!
//! Whatever way a response ends, [`Relay`] sees it: the last byte (the worker's connection goes back to its
//! pool), a worker that breaks off (the client is told, in the stream's own form where it has one), a client that leaves
//! (both are dropped: the worker's connection closes with them, and the worker stops generating).

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::{
    account::{Attempt, RequestAccount},
    ending::Ending,
    phases::Serving,
    raw::{Ledger, RawError, RawRelay},
    shared_body::SharedBody,
};
use crate::{cache::Interrupted, upstream::Lease};

/// What the client reads: a worker's body, or the gateway's own words.
pub(super) struct GatewayBody {
    content: Content,
    /// Keeps the client's connection in its "serving" phase until the body is gone.
    serving: Option<Serving>,
}

enum Content {
    Own(Full<Bytes>),
    Relay(Box<Relay>),
    Raw(Box<RawRelay>),
    Shared(Box<SharedBody>),
}

impl GatewayBody {
    pub(super) fn own(body: Full<Bytes>) -> Self {
        Self { content: Content::Own(body), serving: None }
    }

    pub(super) fn relay(relay: Relay) -> Self {
        Self { content: Content::Relay(Box::new(relay)), serving: None }
    }

    pub(super) fn raw(relay: RawRelay) -> Self {
        Self { content: Content::Raw(Box::new(relay)), serving: None }
    }

    pub(super) fn shared(body: SharedBody) -> Self {
        Self { content: Content::Shared(Box::new(body)), serving: None }
    }

    /// It is a worker's body that was relayed here to an end as it should be.
    pub(super) fn is_good(&self) -> bool {
        matches!(&self.content, Content::Relay(relay) if relay.end == Some(End::Good))
    }

    pub(super) fn hold(mut self, serving: Serving) -> Self {
        self.serving = Some(serving);
        self
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match &mut self.content {
            Content::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Content::Relay(relay) => relay.poll_frame(cx),
            Content::Raw(relay) => relay.poll_frame(cx).map_err(RelayError::Raw),
            Content::Shared(body) => body.poll_frame(cx).map_err(RelayError::Shared),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(body) => body.is_end_stream(),
            Content::Relay(relay) => relay.is_end_stream(),
            Content::Raw(relay) => relay.is_end_stream(),
            Content::Shared(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(body) => body.size_hint(),
            Content::Relay(relay) => relay.body.size_hint(),
            Content::Raw(relay) => relay.size_hint(),
            Content::Shared(body) => body.size_hint(),
        }
    }
}

/// The worker broke off where the client cannot be told in the body: the client's connection is closed unfinished.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error("the worker's response broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the worker was removed while it was answering")]
    Removed,
    #[error("the stream ended without its last event")]
    Unfinished,
    #[error(transparent)]
    Raw(RawError),
    #[error(transparent)]
    Shared(Interrupted),
}

/// One worker response under way.
pub(super) struct Relay {
    body: Incoming,
    /// The connection that the body comes from, until it has been read to its end.
    lease: Option<Lease>,
    attempt: Attempt,
    account: RequestAccount,
    status: StatusCode,
    /// Server-sent events: errors can be told in the stream.
    is_event_stream: bool,
    ending: Option<Ending>,
    /// The last data ended a server-sent event.
    at_event_boundary: bool,
    end: Option<End>,
}

/// How a body came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Whole, and as it should be.
    Good,
    Bad,
}

impl Relay {
    pub(super) fn new(body: Incoming, lease: Lease, ledger: Ledger) -> Self {
        let Ledger { attempt, account, status, is_event_stream, ending } = ledger;
        let (lease, at_event_boundary, end) = (Some(lease), true, None);
        let mut relay =
            Self { body, lease, attempt, account, status, is_event_stream, ending, at_event_boundary, end };
        if relay.body.is_end_stream() {
            relay.end();
        }
        relay
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_some()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        if self.end.is_some() {
            return Poll::Ready(None);
        }
        if self.attempt.cut().poll(cx).is_ready() {
            return self.broke_off(RelayError::Removed);
        }
        match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.attempt.body_data(data);
                    self.account.body_data(data);
                    if self.is_event_stream {
                        self.at_event_boundary = data.ends_with(b"\n\n");
                    }
                    if let Some(ending) = &mut self.ending {
                        ending.push(data);
                        if ending.has_failed() {
                            self.attempt.fail("error_event"); // the engine died; vLLM says so in the stream
                        }
                    }
                }
                if self.body.is_end_stream() {
                    self.end(); // hyper asks no further once the length is reached
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None if self.is_unfinished() => {
                self.put_back();
                self.broke_off(RelayError::Unfinished)
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => self.broke_off(error.into()),
        }
    }

    /// There will be no more: the client is told where that can be done.
    fn broke_off(&mut self, error: RelayError) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        self.end = Some(End::Bad);
        let is_unfinished = matches!(error, RelayError::Unfinished);
        self.attempt.fail(if is_unfinished { "unfinished_stream" } else { "broken_stream" });
        self.account.answered(self.status);
        tracing::warn!(worker = %self.attempt.worker().name, %error, "response broke off");
        // A body with a length would be cut there, and look complete.
        if self.is_event_stream && self.body.size_hint().exact().is_none() {
            Poll::Ready(Some(Ok(Frame::data(self.error_event()))))
        } else {
            Poll::Ready(Some(Err(error)))
        }
    }

    /// The whole response has been read.
    fn end(&mut self) {
        let is_good = !self.is_event_stream || self.ending.as_ref().is_some_and(Ending::is_good);
        self.end = Some(if is_good { End::Good } else { End::Bad });
        if self.is_unfinished() {
            self.attempt.fail("unfinished_stream"); // of known length: the client has all of it already
        }
        self.attempt.complete(self.status);
        self.attempt.used(self.account.usage());
        self.account.answered(self.status);
        self.put_back();
    }

    /// The worker has ended its stream in order, and has not said that it is complete.
    fn is_unfinished(&self) -> bool {
        self.ending.as_ref().is_some_and(Ending::is_unfinished)
    }

    fn put_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.put_back();
        }
    }

    fn error_event(&self) -> Bytes {
        error_event(self.at_event_boundary)
    }
}

/// What vLLM itself sends when its engine dies under a stream, so that clients need to know one form only.
pub(super) fn error_event(at_event_boundary: bool) -> Bytes {
    const EVENT: &str = "data: {\"error\":{\"message\":\"the worker failed while it was answering\",\
        \"type\":\"server_error\",\"param\":null,\"code\":502}}\n\ndata: [DONE]\n\n";
    if at_event_boundary { Bytes::from_static(EVENT.as_bytes()) } else { Bytes::from(format!("\n\n{EVENT}")) }
}
