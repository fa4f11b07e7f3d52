//! A panic in a request is that request's end and nobody else's: it is counted, the client is answered 500 if nothing was
//! sent yet, else its response breaks off unfinished; every other request of the thread goes on.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::{GatewayError, route::Route};
use crate::telemetry::Metrics;

/// What a request's handler answers; 500 if it panics.
pub(super) async fn contained<B>(
    metrics: &Metrics,
    route: Route,
    handler: impl Future<Output = Response<B>>,
    own: impl FnOnce(Full<Bytes>) -> B,
) -> Response<B> {
    let mut handler = pin!(handler);
    // What the handler had is dropped with it: nothing is seen half-changed but what threads share, which has no invariant
    // over more than one lock or atomic.
    let answer = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_printed) => Poll::Ready(None),
    });
    if let Some(response) = answer.await {
        return response;
    }
    metrics.panics.inc();
    let error = GatewayError::Panicked;
    metrics.errors.with_label_values(&[error.source_label(), error.kind()]).inc();
    error.response(route).map(own)
}

/// A response body that breaks off where it would panic.
pub(super) struct Contained<B> {
    body: Pin<Box<B>>,
    metrics: Arc<Metrics>,
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContainedError<E> {
    #[error(transparent)]
    Body(#[from] E),
    #[error("relaying the response panicked")]
    Panicked,
}

impl<B> Contained<B> {
    pub(super) fn new(body: B, metrics: Arc<Metrics>) -> Self {
        Self { body: Box::pin(body), metrics }
    }
}

impl<B: Body> Body for Contained<B> {
    type Data = B::Data;
    type Error = ContainedError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let body = self.body.as_mut();
        match catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx))) {
            Ok(poll) => poll.map_err(ContainedError::Body),
            Err(_printed) => {
                self.metrics.panics.inc();
                Poll::Ready(Some(Err(ContainedError::Panicked)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, StatusCode};
    use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
    use hyper::{
        body::Incoming,
        client::conn::http1::{self as client, SendRequest},
        server::conn::http1 as server,
        service::service_fn,
    };
    use hyper_util::rt::TokioIo;
    use tokio::task::LocalSet;

    use super::*;

    /// A first chunk, a pause in which it is sent, then a panic.
    struct Breaks(u8);

    impl Body for Breaks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0 += 1;
            match self.0 {
                1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"first"))))),
                2 => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                _ => panic!("the body panics"),
            }
        }
    }

    type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

    async fn handle(request: Request<Incoming>) -> Response<AnyBody> {
        tokio::task::yield_now().await;
        match request.uri().path() {
            "/panic" => panic!("the handler panics"),
            "/body" => Response::new(Breaks(0).boxed_unsync()),
            _ => Response::new(Full::from("fine").boxed_unsync()),
        }
    }

    /// A client's connection to a server whose requests do what their path says.
    async fn connect(metrics: &Arc<Metrics>) -> SendRequest<Empty<Bytes>> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let metrics = metrics.clone();
        let service = service_fn(move |request| {
            let metrics = metrics.clone();
            async move {
                let response = contained(&metrics, Route::Other, handle(request), Full::boxed_unsync).await;
                Ok::<_, Infallible>(response.map(|body| Contained::new(body, metrics)))
            }
        });
        tokio::task::spawn_local(async move {
            let _ = server::Builder::new().serve_connection(TokioIo::new(far), service).await;
        });
        let (sender, connection) = client::handshake(TokioIo::new(near)).await.expect("a handshake");
        tokio::task::spawn_local(connection);
        sender
    }

    async fn ask(
        sender: &mut SendRequest<Empty<Bytes>>,
        path: &str,
    ) -> (StatusCode, Result<Bytes, hyper::Error>) {
        let request = Request::get(path).header("host", "test").body(Empty::new()).expect("a request");
        let (head, body) = sender.send_request(request).await.expect("a response head").into_parts();
        (head.status, body.collect().await.map(http_body_util::Collected::to_bytes))
    }

    #[tokio::test]
    async fn a_panic_before_the_response_is_a_500_and_the_connection_goes_on() {
        let metrics = Metrics::new().expect("a fresh registry");
        let test = async {
            let mut sender = connect(&metrics).await;
            let (status, body) = ask(&mut sender, "/panic").await;
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
            let error: serde_json::Value =
                serde_json::from_slice(&body.expect("a whole body")).expect("JSON");
            assert_eq!(error["error"]["code"], "internal_error");
            assert_eq!(error["error"]["type"], "server_error");
            let (status, body) = ask(&mut sender, "/").await;
            assert_eq!((status, &body.expect("a whole body")[..]), (StatusCode::OK, &b"fine"[..]));
        };
        LocalSet::new().run_until(test).await;
        assert_eq!(metrics.panics.get(), 1);
    }

    #[tokio::test]
    async fn a_panic_in_a_body_breaks_that_response_off_and_no_other() {
        let metrics = Metrics::new().expect("a fresh registry");
        let test = async {
            let (mut broken, mut other) = (connect(&metrics).await, connect(&metrics).await);
            let (status, body) = ask(&mut broken, "/body").await;
            assert!(status == StatusCode::OK && body.is_err(), "it does not look complete");
            let (status, body) = ask(&mut other, "/").await;
            assert_eq!((status, &body.expect("a whole body")[..]), (StatusCode::OK, &b"fine"[..]));
        };
        LocalSet::new().run_until(test).await;
        assert_eq!(metrics.panics.get(), 1);
    }
}
