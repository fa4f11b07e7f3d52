//! One worker connection, for the time of one request.

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::AbortHandle};

use super::Pool;
use crate::{index::WorkerSlot, limits};

/// A connection and the task that drives it; dropping it closes the socket at once.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Connection {
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Gives a socket to hyper and starts driving it on this thread.
pub(super) async fn handshake(stream: TcpStream) -> Connection {
    let mut builder = http1::Builder::new();
    builder.max_headers(limits::HEADERS_MAX).writev(true);
    let (sender, driver) =
        builder.handshake(TokioIo::new(stream)).await.expect("an HTTP/1 handshake does no IO");
    let driver = tokio::task::spawn_local(async move {
        if let Err(error) = driver.await {
            tracing::trace!(%error, "worker connection ended");
        }
    });
    Connection { sender, driver: driver.abort_handle() }
}

/// A connection leased to one request. [`Lease::put_back`] returns it to its pool; dropping it closes it, and the worker
/// gives up what it was doing.
#[derive(Debug)]
pub struct Lease {
    pool: Pool,
    slot: WorkerSlot,
    connection: Connection,
    reused: bool,
}

impl Lease {
    pub(super) fn new(pool: Pool, slot: WorkerSlot, connection: Connection, reused: bool) -> Self {
        Self { pool, slot, connection, reused }
    }

    /// Whether it served a request before: such a connection may turn out to be closed only when it is used.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) fn sender(&mut self) -> &mut SendRequest<Full<Bytes>> {
        &mut self.connection.sender
    }

    /// The response has been read to its end: the connection may serve another request.
    pub fn put_back(self) {
        let Self { pool, slot, connection, .. } = self;
        pool.put(slot, connection);
    }
}
