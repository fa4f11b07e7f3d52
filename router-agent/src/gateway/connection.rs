//! One client connection, from accept to close.

use std::{
    cell::Cell, convert::Infallible, future::Future, io, net::SocketAddr, pin::Pin, rc::Rc, time::Instant,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::Service,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout_at,
};

use super::{
    client_io::{ClientIo, ClientSocket},
    epp, headers, http2, last_words,
    panics::{Contained, contained},
    phases::{Phases, Verdict, Watched},
    protocol::Protocol,
    relay::GatewayBody,
    request::{self, Client, End},
    route::Route,
    thread::{Phase, Stay, ThreadContext},
};
use crate::{
    config::Front,
    limits,
    tls::{ClientTlsStream, ServerTls},
};

/// Serves requests until either side closes, the connection idles for too long, or the gateway drains.
pub(super) async fn serve(
    open: OpenConnection,
    stream: TcpStream,
    address: SocketAddr,
    phase: watch::Receiver<Phase>,
) {
    let context = &open.context;
    let _ = stream.set_nodelay(true);
    // So that a client that vanished in the middle of a stream is missed, and its worker can stop.
    let _ = SockRef::from(&stream).set_tcp_keepalive(&limits::tcp_keepalive());
    let is_last = Rc::new(Cell::new(*phase.borrow() == Phase::HandOver));
    let connection = Connection { context, address, phase, is_last };
    // Boxed, so that a connection that only waits is small.
    if let Some(tls) = &context.shared.tls {
        return Box::pin(connection.coded(tls, stream)).await;
    }
    if connection.is_picker() {
        return Box::pin(connection.picker(stream, false)).await;
    }
    let keep_alive = context.config().timeouts.keep_alive;
    match tokio::time::timeout(keep_alive, Protocol::spoken(&stream)).await {
        Ok(Ok(Some(Protocol::Http1))) => Box::pin(connection.plain_http1(stream)).await,
        Ok(Ok(Some(Protocol::Http2))) => {
            let end = End::coded(&stream, false);
            Box::pin(connection.http2(stream, end)).await;
        }
        // It came and went, or came and said nothing.
        Ok(Ok(None) | Err(_)) | Err(_) => {}
    }
}

/// Waits for its turn and shakes hands, both within the time of a head.
async fn handshake(context: &ThreadContext, tls: &ServerTls, stream: TcpStream) -> Option<ClientTlsStream> {
    let metrics = &context.shared.metrics.tls;
    let deadline = tokio::time::Instant::now() + context.config().timeouts.head;
    let shake = async {
        let _turn = context.handshakes.acquire().await.map_err(io::Error::other)?;
        tls.accept(stream).await
    };
    match timeout_at(deadline, shake).await {
        Ok(Ok(stream)) => {
            metrics.handshake("ok").inc();
            Some(stream)
        }
        Ok(Err(error)) => {
            metrics.handshake("failed").inc();
            tracing::debug!(%error, "no TLS with a client");
            None
        }
        Err(_) => {
            metrics.handshake("timeout").inc();
            None
        }
    }
}

/// What serving needs, whatever is spoken.
struct Connection<'a> {
    context: &'a Rc<ThreadContext>,
    address: SocketAddr,
    phase: watch::Receiver<Phase>,
    /// A successor takes connections: the next response here says that it is the last.
    is_last: Rc<Cell<bool>>,
}

impl Connection<'_> {
    /// HTTP/1 as it stands on the wire: response bodies may pass this process by.
    async fn plain_http1(mut self, stream: TcpStream) {
        let (socket, phases) = (ClientSocket::new(stream), self.phases(Protocol::Http1));
        // What made it known that this is HTTP/1.
        phases.bytes_came();
        let mut service = self.service(End::Plain(socket.clone()), &phases);
        let mut read = Bytes::new();
        loop {
            let io = TokioIo::new(ClientIo::new(socket.clone(), phases.clone(), read));
            // Boxed: while the connection rests, neither hyper's state nor its buffers are there.
            let mut connection = Box::new(http1_builder().serve_connection(io, service));
            let ended =
                self.drive(Pin::new(&mut *connection), &phases, http1::Connection::graceful_shutdown).await;
            match ended {
                Ended::Well => return,
                Ended::BrokenOff => return socket.abandon(),
                // No response is under way, so this is the next one.
                Ended::SlowHead => {
                    drop(connection);
                    return last_words::say(socket.stream(), last_words::HEAD_TIMEOUT).await;
                }
                Ended::Resting => {}
            }
            // Everything was written ([`Phases`]), and what was read and is not served yet is the beginning of a head.
            let parts = connection.into_parts();
            (service, read) = (parts.service, parts.read_buf);
            drop(parts.io);
            if read.is_empty() {
                read = Bytes::new(); // an empty one still holds hyper's buffer
                if !self.rest(socket.stream(), &phases).await {
                    return;
                }
            }
        }
    }

    /// Waits for what comes next on an idle connection; false: its time is over, or the gateway's.
    async fn rest(&mut self, stream: &TcpStream, phases: &Phases) -> bool {
        let until = phases.idle_until(self.context.config().timeouts.keep_alive);
        loop {
            tokio::select! {
                // Bytes, or the end: hyper will know.
                readable = stream.readable() => return readable.is_ok(),
                changed = self.phase.changed() => {
                    self.is_last.set(true);
                    if changed.is_err() || matches!(*self.phase.borrow(), Phase::Drain | Phase::Stop) {
                        return false;
                    }
                }
                () = tokio::time::sleep_until(until.into()) => return false,
            }
        }
    }

    /// Over TLS.
    async fn coded(self, tls: &ServerTls, stream: TcpStream) {
        let end = End::coded(&stream, true);
        let Some(stream) = Box::pin(handshake(self.context, tls, stream)).await else { return };
        match Protocol::agreed(stream.get_ref().1.alpn_protocol()) {
            _ if self.is_picker() => self.picker(stream, true).await,
            Protocol::Http1 => self.coded_http1(stream, end).await,
            Protocol::Http2 => self.http2(stream, end).await,
        }
    }

    /// HTTP/1 over TLS.
    async fn coded_http1(mut self, stream: ClientTlsStream, end: End) {
        let phases = self.phases(Protocol::Http1);
        let io = TokioIo::new(Watched::new(stream, phases.clone()));
        let service = self.service(end, &phases);
        let connection = std::pin::pin!(http1_builder().serve_connection(io, service));
        self.drive(connection, &phases, http1::Connection::graceful_shutdown).await;
    }

    /// HTTP/2, over TLS or without.
    async fn http2(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, end: End) {
        let phases = self.phases(Protocol::Http2);
        let io = TokioIo::new(Watched::new(stream, phases.clone()));
        let service = self.service(end, &phases);
        let builder = http2::builder(limits::H2_STREAMS_MAX);
        let connection = std::pin::pin!(builder.serve_connection(io, service));
        self.drive(connection, &phases, hyper::server::conn::http2::Connection::graceful_shutdown).await;
    }

    /// gRPC, for Envoy.
    async fn picker(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, is_tls: bool) {
        let phases = self.phases(Protocol::Http2);
        let io = TokioIo::new(Watched::new(stream, phases.clone()));
        let service = epp::service(self.context, self.address, is_tls, &phases);
        let builder = http2::builder(limits::EPP_STREAMS_MAX);
        let connection = std::pin::pin!(builder.serve_connection(io, service));
        self.drive(connection, &phases, hyper::server::conn::http2::Connection::graceful_shutdown).await;
    }

    /// Whether Envoy is the client.
    fn is_picker(&self) -> bool {
        self.context.config().front == Front::EndpointPicker
    }

    fn phases(&self, protocol: Protocol) -> Rc<Phases> {
        Phases::new(protocol, self.context.idlers.clone())
    }

    fn service(
        &self,
        end: End,
        phases: &Rc<Phases>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Contained<GatewayBody>>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Contained<GatewayBody>>, Infallible>> + use<>,
    > + use<> {
        let (context, address, phases) = (self.context.clone(), self.address, phases.clone());
        let is_last = self.is_last.clone();
        service_fn(move |request: Request<Incoming>| {
            let serving = phases.serve();
            let (context, client) = (context.clone(), Client { address, end: end.clone() });
            let is_last = is_last.clone();
            // Boxed: hyper keeps room for it with each connection, those that only wait included.
            Box::pin(async move {
                let metrics = &context.shared.metrics;
                let route = Route::of(request.method(), request.uri().path());
                let may_close = request.version() != Version::HTTP_2;
                let has_no_body = request.body().is_end_stream();
                let handler = request::handle(&context, client, request);
                let response = contained(metrics, route, handler, GatewayBody::own).await;
                // A worker was given all of it.
                if has_no_body || response.headers().contains_key(headers::WORKER) {
                    serving.read_to_its_end();
                }
                let mut response = response.map(|body| Contained::new(body.hold(serving), metrics.clone()));
                if is_last.get() && may_close {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok(response)
            })
        })
    }

    /// Runs a connection to its end. `finish` lets what is under way be the last.
    async fn drive<C: Future<Output = hyper::Result<()>>>(
        &mut self,
        mut connection: Pin<&mut C>,
        phases: &Phases,
        finish: impl Fn(Pin<&mut C>),
    ) -> Ended {
        let watchdog = tokio::time::sleep(self.context.config().timeouts.head);
        let mut watchdog = std::pin::pin!(watchdog);
        // A successor's clients of HTTP/2 are told to go there; those of HTTP/1 with their next response.
        let is_over = |phase: &watch::Receiver<Phase>| match *phase.borrow() {
            Phase::Serve => false,
            Phase::HandOver => phases.protocol() == Protocol::Http2,
            Phase::Drain | Phase::Stop => true,
        };
        let mut draining = is_over(&self.phase);
        if draining {
            finish(connection.as_mut());
        }
        let mut was_idle = false;
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    let Err(error) = result else { return Ended::Well };
                    tracing::debug!(client = %self.address, %error, "client connection ended");
                    return if error.is_user() { Ended::BrokenOff } else { Ended::Well };
                }
                changed = self.phase.changed(), if !draining => {
                    self.is_last.set(true);
                    draining = changed.is_err() || is_over(&self.phase);
                    if draining && changed.is_ok() {
                        finish(connection.as_mut());
                    }
                }
                () = phases.told_to_rest(), if !draining => return Ended::Resting,
                () = watchdog.as_mut() => {
                    let timeouts = self.context.config().timeouts;
                    match phases.judge(Instant::now(), timeouts.head, timeouts.keep_alive) {
                        Verdict::Fine(next) => watchdog.as_mut().reset(next.into()),
                        // It was told so, and does not take even that.
                        Verdict::Idle if was_idle => return Ended::Well,
                        Verdict::Rest if !draining => return Ended::Resting,
                        Verdict::Rest => watchdog.as_mut().reset((Instant::now() + timeouts.head).into()),
                        Verdict::Idle => {
                            was_idle = true;
                            finish(connection.as_mut());
                            watchdog.as_mut().reset((Instant::now() + timeouts.head).into());
                        }
                        Verdict::SlowHead => {
                            let errors = &self.context.shared.metrics.errors;
                            errors.with_label_values(&["client", "head_timeout"]).inc();
                            return Ended::SlowHead;
                        }
                    }
                }
            }
        }
    }
}

/// How a connection came to its end.
enum Ended {
    /// By its own rules, or the client's.
    Well,
    /// A response's body broke off.
    BrokenOff,
    /// A head took too long.
    SlowHead,
    /// Not at all: it is idle.
    Resting,
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits::HEADERS_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX)
        .max_buf_size(limits::HEAD_BYTES_MAX);
    builder
}

/// Counts a connection from accept to close, and a panic outside of its requests that ends it, if one does.
pub(super) struct OpenConnection {
    context: Rc<ThreadContext>,
    _stay: Stay,
}

impl OpenConnection {
    /// Call after a place was taken with [`super::Shared::enter`].
    pub(super) fn count(context: Rc<ThreadContext>) -> Self {
        context.shared.metrics.connections.inc();
        Self { _stay: Stay::on(&context), context }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let Self { context, .. } = self;
        context.shared.leave();
        context.shared.metrics.connections.dec();
    }
}
