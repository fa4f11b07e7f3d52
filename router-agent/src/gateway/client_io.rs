//! A client's socket as hyper sees it over HTTP/1.1 without TLS, and who may write to it.
//!
//! hyper writes all heads and most bodies. A body that is relayed as it stands on the worker's wire is written by
//! others ([`super::raw`]); hyper, which knows nothing of it, writes a stand-in of known length that is swallowed here.

use std::{
    cell::{Cell, OnceCell},
    io,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::phases::Phases;
use crate::kernel::{self, Relays, relay::ClientEnd};

/// A client's socket, shared by hyper and the relay of a raw body.
#[derive(Debug)]
pub(super) struct ClientSocket {
    pub(super) stream: TcpStream,
    writer: Cell<Writer>,
    /// `SO_COOKIE`, once it was needed.
    cookie: OnceCell<u64>,
    /// Of the response under way: its end is the connection's, so it cannot be broken off in order.
    ends_with_connection: Cell<bool>,
    /// As a target of redirection, once that was wanted.
    kernel: OnceCell<Option<ClientEnd>>,
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Hyper,
    /// hyper, up to its next flush: a head.
    HyperUntilFlushed,
    Relay,
    /// hyper writes this many bytes more that nobody shall see.
    Swallow(u64),
}

impl ClientSocket {
    pub(super) fn new(stream: TcpStream) -> Rc<Self> {
        Rc::new(Self {
            stream,
            writer: Cell::new(Writer::Hyper),
            cookie: OnceCell::new(),
            ends_with_connection: Cell::new(false),
            kernel: OnceCell::new(),
        })
    }

    /// This socket as a target of the kernel's redirection. System calls the first time only.
    pub(super) fn known_to(&self, relays: &Relays) -> Option<ClientEnd> {
        *self.kernel.get_or_init(|| relays.client(&self.stream, self.cookie()))
    }

    /// The kernel's number for this socket; 0 if it has none to give.
    pub(super) fn cookie(&self) -> u64 {
        *self.cookie.get_or_init(|| kernel::socket_cookie(&self.stream).unwrap_or(0))
    }

    /// A request is answered over it whose client knows no chunks.
    pub(super) fn set_ends_with_connection(&self, ends: bool) {
        self.ends_with_connection.set(ends);
    }

    /// The socket itself, when HTTP has left it.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The connection closes in the middle of a response: by a reset where that would look like its end.
    pub(super) fn abandon(&self) {
        if self.ends_with_connection.get() {
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// hyper has a head in its buffer; when it has flushed that, writing is the relay's.
    pub(super) fn await_head(&self) {
        debug_assert_eq!(self.writer.get(), Writer::Hyper);
        self.writer.set(Writer::HyperUntilFlushed);
    }

    /// Whether the head has been written.
    pub(super) fn is_relays(&self) -> bool {
        self.writer.get() == Writer::Relay
    }

    /// The relay has written the body; hyper is about to write its stand-in of `bytes`.
    pub(super) fn swallow(&self, bytes: u64) {
        debug_assert_eq!(self.writer.get(), Writer::Relay);
        self.writer.set(if bytes == 0 { Writer::Hyper } else { Writer::Swallow(bytes) });
    }

    /// Writes all of it. For the relay only.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// hyper writes `length` bytes by `write`, or believes that it does.
    fn poll_hyper_write(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        match self.writer.get() {
            Writer::Hyper | Writer::HyperUntilFlushed => loop {
                std::task::ready!(self.stream.poll_write_ready(cx))?;
                match write(&self.stream) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            },
            Writer::Relay => Poll::Ready(Err(io::Error::other("hyper writes into a relayed body"))),
            Writer::Swallow(left) => {
                let count = left.min(length as u64);
                self.writer.set(if count == left { Writer::Hyper } else { Writer::Swallow(left - count) });
                Poll::Ready(Ok(count as usize))
            }
        }
    }
}

/// hyper's handle on a client's socket.
#[derive(Debug)]
pub(super) struct ClientIo {
    socket: Rc<ClientSocket>,
    phases: Rc<Phases>,
    /// Read already, by a hyper before this one.
    read: Bytes,
}

impl ClientIo {
    pub(super) fn new(socket: Rc<ClientSocket>, phases: Rc<Phases>, read: Bytes) -> Self {
        Self { socket, phases, read }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let count = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read.split_to(count));
            self.phases.bytes_came();
            return Poll::Ready(Ok(()));
        }
        let stream = &self.socket.stream;
        let count = loop {
            std::task::ready!(stream.poll_read_ready(cx))?;
            match stream.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        if count > 0 {
            self.phases.bytes_came();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_hyper_write(cx, buf.len(), |stream| stream.try_write(buf))
    }

    /// hyper calls this when its own buffer is empty; the socket has none.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket.writer.get() == Writer::HyperUntilFlushed {
            self.socket.writer.set(Writer::Relay);
        }
        self.phases.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.socket.stream).shutdown(Shutdown::Write))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        self.socket.poll_hyper_write(cx, length, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
