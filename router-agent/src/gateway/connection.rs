//! One client connection, from accept to close.

use std::{convert::Infallible, net::SocketAddr, rc::Rc, time::Instant};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{net::TcpStream, sync::watch};

use super::{
    client_io::{ClientIo, ClientSocket, Phases, Verdict},
    request,
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
    let socket = ClientSocket::new(stream);
    let service = service_fn(|request| {
        let serving = phases.serve();
        let (context, socket) = (context.clone(), socket.clone());
        async move {
            let client = request::Client { address: client, socket, is_tls: false };
            Ok::<_, Infallible>(
                request::handle(&context, client, request).await.map(|body| body.hold(serving)),
            )
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
    let mut draining = *phase.borrow() != Phase::Serve;
    if draining {
        connection.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%client, %error, "client connection ended");
                }
                return;
            }
            changed = phase.changed(), if !draining => {
                draining = true;
                if changed.is_ok() {
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

/// Counts a connection from accept to close, and the panic that ends it, if one does.
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
