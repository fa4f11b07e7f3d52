//! A connection to a worker: TCP, and TLS over it where its URL says so.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
};

use crate::{fleet::Worker, limits, tls::WorkerTlsStream};

/// Why a worker could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its name has no address.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The host as configured.
        host: String,
        /// The resolver's word.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address that was tried last.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// Its certificate is not what was expected, or it does not speak TLS.
    #[error("no TLS with {address}: {source}")]
    Tls {
        /// The address that was connected to.
        address: SocketAddr,
        /// The word of rustls, or the system's.
        source: io::Error,
    },
    /// It took too long.
    #[error("connecting took longer than {0:?}")]
    Timeout(Duration),
}

impl ConnectError {
    /// The kind of the system's error, `TimedOut` for a timeout.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Resolve { source, .. } | Self::Connect { source, .. } | Self::Tls { source, .. } => {
                source.kind()
            }
            Self::Timeout(_) => io::ErrorKind::TimedOut,
        }
    }
}

/// Whether this host has no socket left to give, which says nothing about a worker.
pub(super) fn is_out_of_sockets(error: &io::Error) -> bool {
    let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| lacks.contains(&code))
}

/// Connects within `timeout`, trying the host's addresses in order, and notes the one that answered.
pub(super) async fn connect(worker: &Worker, timeout: Duration) -> Result<WorkerStream, ConnectError> {
    let connect = async {
        let (stream, address) = connect_any(worker).await?;
        let tls = worker.access().tls.clone();
        match tls {
            None => Ok(WorkerStream::Plain(stream)),
            Some(tls) => match tls.connect(stream).await {
                Ok(stream) => Ok(WorkerStream::Tls(Box::new(stream))),
                Err(source) => Err(ConnectError::Tls { address, source }),
            },
        }
    };
    tokio::time::timeout(timeout, connect).await.map_err(|_| ConnectError::Timeout(timeout))?
}

/// A connection as far as HTTP sees it.
#[derive(Debug)]
pub(super) enum WorkerStream {
    Plain(TcpStream),
    Tls(Box<WorkerTlsStream>),
}

impl WorkerStream {
    /// The socket, where its bytes are the HTTP's own.
    pub(super) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(_) => None,
        }
    }
}

/// The same call on whichever it is.
macro_rules! on_stream {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            WorkerStream::Plain($inner) => {
                let $inner = Pin::new($inner);
                $call
            }
            WorkerStream::Tls($inner) => {
                let $inner = Pin::new(&mut **$inner);
                $call
            }
        }
    };
}

impl AsyncRead for WorkerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for WorkerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

async fn connect_any(worker: &Worker) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let host = &worker.url.host;
    let resolve = |source| ConnectError::Resolve { host: host.clone(), source };
    let addresses = lookup_host((host.as_str(), worker.url.port)).await.map_err(resolve)?;
    let mut last = resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A request is one write and a token one segment: waiting to fill a packet only adds latency.
                let _ = stream.set_nodelay(true);
                // A host that vanishes says nothing: without this its streams would wait for ever.
                let _ = SockRef::from(&stream).set_tcp_keepalive(&limits::tcp_keepalive());
                worker.set_address(address);
                return Ok((stream, address));
            }
            Err(source) => last = ConnectError::Connect { address, source },
        }
    }
    Err(last)
}
