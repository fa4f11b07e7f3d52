//! One client connection, from accept to close.

use std::{cell::Cell, convert::Infallible, net::SocketAddr, rc::Rc, time::Instant};

use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{net::TcpStream, sync::watch};

use super::{
    client_io::{ClientIo, ClientSocket, Phases, Verdict},
    panics::{Contained, contained},
    relay::GatewayBody,
    request,
    route::Route,
    thread::{Phase, ThreadContext},
};
use crate::limits;

/// Serves requests until either side closes, the connection idles for too long, or the gateway drains.
pub(super) async fn serve(
    open: OpenConnection,
    stream: TcpStream,
    client: SocketAddr,
    mut phase: watch::Receiver<Phase>,
) {
    let context = &open.context;
    let _ = stream.set_nodelay(true);
    // So that a client that vanished in the middle of a stream is missed, and its worker can stop.
    let _ = SockRef::from(&stream).set_tcp_keepalive(&limits::tcp_keepalive());
    let phases = Phases::new();
    // A successor takes connections: the next response here says that it is the last.
    let is_last = Cell::new(*phase.borrow() == Phase::HandOver);
    let is_last = &is_last;
    let socket = ClientSocket::new(stream);
    let service = service_fn(|request: Request<Incoming>| {
        let serving = phases.serve();
        let (context, socket) = (context.clone(), socket.clone());
        async move {
            let client = request::Client { address: client, socket, is_tls: false };
            let metrics = &context.shared.metrics;
            let route = Route::of(request.method(), request.uri().path());
            let handler = request::handle(&context, client, request);
            let response = contained(metrics, route, handler, GatewayBody::own).await;
            let mut response = response.map(|body| Contained::new(body.hold(serving), metrics.clone()));
            if is_last.get() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .max_headers(limits::HEADERS_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(ClientIo::new(socket.clone(), phases.clone())), service);
    let mut connection = std::pin::pin!(connection);

    let watchdog = tokio::time::sleep(context.config().timeouts.head);
    let mut watchdog = std::pin::pin!(watchdog);
    let is_over = |phase: &watch::Receiver<Phase>| matches!(*phase.borrow(), Phase::Drain | Phase::Stop);
    let mut draining = is_over(&phase);
    if draining {
        connection.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    if error.is_user() {
                        socket.abandon(); // the response's body broke off
                    }
                    tracing::debug!(%client, %error, "client connection ended");
                }
                return;
            }
            changed = phase.changed(), if !draining => {
                is_last.set(true);
                draining = changed.is_err() || is_over(&phase);
                if draining && changed.is_ok() {
                    connection.as_mut().graceful_shutdown();
                }
            }
            () = watchdog.as_mut() => {
                let timeouts = context.config().timeouts;
                match phases.judge(Instant::now(), timeouts.head, timeouts.keep_alive) {
                    Verdict::Fine(next) => watchdog.as_mut().reset(next.into()),
                    Verdict::Idle => {
                        connection.as_mut().graceful_shutdown();
                        watchdog.as_mut().reset((Instant::now() + timeouts.head).into());
                    }
                    Verdict::SlowHead => {
                        context.shared.metrics.errors.with_label_values(&["client", "head_timeout"]).inc();
                        return;
                    }
                }
            }
        }
    }
}

/// Counts a connection from accept to close, and a panic outside of its requests that ends it, if one does.
pub(super) struct OpenConnection {
    context: Rc<ThreadContext>,
}

impl OpenConnection {
    /// Call after a place was taken with [`super::Shared::enter`].
    pub(super) fn count(context: Rc<ThreadContext>) -> Self {
        context.connections.set(context.connections.get() + 1);
        context.shared.metrics.connections.inc();
        Self { context }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let Self { context } = self;
        if std::thread::panicking() {
            context.shared.metrics.panics.inc();
        }
        context.shared.leave();
        context.shared.metrics.connections.dec();
        context.connections.set(context.connections.get() - 1);
        if context.connections.get() == 0 {
            context.empty.notify_waiters();
        }
    }
}
