//! One worker connection, for the time of one request.

use std::{
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::AbortHandle};

use super::{
    Pool,
    connect::WorkerStream,
    outgoing::OutgoingBody,
    pool::Parked,
    seam::{Hold, Seam, Taken},
};
use crate::{fleet::WorkerId, kernel::bypass::Ends, limits};

/// A connection and the task that drives it; dropping it closes the socket at once.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<OutgoingBody>,
    driver: AbortHandle,
    seam: Rc<Seam>,
}

impl Connection {
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Gives a socket to hyper, and starts driving it on this thread.
    pub(super) fn start(socket: WorkerStream) -> Self {
        let seam = Seam::new(socket);
        let mut builder = http1::Builder::new();
        builder.max_headers(limits::HEADERS_MAX).max_buf_size(limits::WORKER_BUFFER_BYTES).writev(true);
        let handshake = pin!(builder.handshake(TokioIo::new(seam.io())));
        let Poll::Ready(Ok((sender, driver))) = handshake.poll(&mut Context::from_waker(Waker::noop()))
        else {
            unreachable!("an HTTP/1 handshake does no IO, so it cannot wait or fail");
        };
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::trace!(%error, "worker connection ended");
            }
        });
        Self { sender, driver: driver.abort_handle(), seam }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A connection leased to one request. [`Lease::put_back`] returns it to its pool; dropping it closes it, and the worker
/// gives up what it was doing.
#[derive(Debug)]
pub struct Lease {
    pool: Pool,
    worker: WorkerId,
    connection: Connection,
    reused: bool,
}

impl Lease {
    pub(super) fn new(pool: Pool, worker: WorkerId, connection: Connection, reused: bool) -> Self {
        Self { pool, worker, connection, reused }
    }

    /// Whether it served a request before: such a connection may turn out to be closed only when it is used.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) fn sender(&mut self) -> &mut SendRequest<OutgoingBody> {
        &mut self.connection.sender
    }

    /// Prepares the connection for `request`. The response about to come stops after its head, if it is one of those that
    /// `hold` says, until [`Lease::open_body`] or [`Lease::take_body`].
    pub(super) fn begin(&self, request: Request<Bytes>, hold: Hold) -> Request<OutgoingBody> {
        let seam = &self.connection.seam;
        seam.hold_after_head(hold);
        request.map(|body| seam.progress().begin(body))
    }

    /// Ready when a byte of a held body is here; an error if there will be none.
    pub(super) fn poll_first_byte(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.seam.poll_first_byte(cx)
    }

    /// Of a held body, whether `words` are in what is here of it.
    pub(super) fn has_early(&self, words: &[u8]) -> bool {
        self.connection.seam.early(|bytes| memchr::memmem::find(bytes, words).is_some())
    }

    /// hyper may read the body.
    pub fn open_body(&self) {
        self.connection.seam.open();
    }

    /// The connection's ends, while hyper has it; none over TLS.
    pub fn ends(&self) -> Option<Ends> {
        self.connection.seam.ends()
    }

    /// Takes a held body, and the connection with it, away from hyper. Gives the lease back where that cannot be: the worker
    /// answered before it had all of the request, for one.
    pub fn take_body(self) -> Result<RawBody, Self> {
        let Some(Taken { socket, early }) = self.connection.seam.take() else { return Err(self) };
        Ok(RawBody { place: Place { pool: self.pool, worker: self.worker }, socket, early })
    }

    /// The response has been read to its end: the connection may serve another request, if the worker has all of this one.
    pub fn put_back(self) {
        let Self { pool, worker, connection, .. } = self;
        if connection.seam.progress().is_whole() {
            pool.put(worker, Parked::Driven(connection));
        }
    }
}

/// A worker connection in the middle of a response, without hyper: the body is there byte for byte as it was sent.
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct RawBody {
    place: Place,
    /// The connection.
    pub socket: TcpStream,
    /// Body bytes that came with the head.
    pub early: BytesMut,
}

impl RawBody {
    /// The body has been read to its last byte: the connection may serve another request.
    pub fn put_back(self) {
        let Self { place: Place { pool, worker }, socket, .. } = self;
        pool.put(worker, Parked::Raw(RawConnection { socket }));
    }

    /// Takes the connection out of this thread's reactor; its early bytes were taken before.
    pub fn into_parts(self) -> io::Result<(Place, std::net::TcpStream)> {
        Ok((self.place, self.socket.into_std()?))
    }
}

/// Where a connection is put back.
#[derive(Debug)]
pub struct Place {
    pool: Pool,
    worker: WorkerId,
}

impl Place {
    /// The reverse of [`RawBody::into_parts`], on the same thread.
    pub fn body(self, socket: std::net::TcpStream) -> io::Result<RawBody> {
        socket.set_nonblocking(true)?;
        Ok(RawBody { place: self, socket: TcpStream::from_std(socket)?, early: BytesMut::new() })
    }
}

/// An idle worker connection that hyper will get when it is used again.
#[derive(Debug)]
pub(super) struct RawConnection {
    socket: TcpStream,
}

impl RawConnection {
    /// Open, and nothing has come that nobody asked for.
    pub(super) fn is_idle(&self) -> bool {
        self.socket.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    pub(super) fn start(self) -> Connection {
        Connection::start(WorkerStream::Plain(self.socket))
    }
}
