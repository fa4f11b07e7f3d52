//! A TCP connection to a worker.

use std::{io, net::SocketAddr, time::Duration};

use socket2::SockRef;
use tokio::net::{TcpStream, lookup_host};

use crate::{fleet::Worker, limits};

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
    /// It took too long.
    #[error("connecting took longer than {0:?}")]
    Timeout(Duration),
}

impl ConnectError {
    /// The kind of the system's error, `TimedOut` for a timeout.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Resolve { source, .. } | Self::Connect { source, .. } => source.kind(),
            Self::Timeout(_) => io::ErrorKind::TimedOut,
        }
    }
}

/// Connects within `timeout`, trying the host's addresses in order, and notes the one that answered.
pub(super) async fn connect(worker: &Worker, timeout: Duration) -> Result<TcpStream, ConnectError> {
    tokio::time::timeout(timeout, connect_any(worker)).await.map_err(|_| ConnectError::Timeout(timeout))?
}

async fn connect_any(worker: &Worker) -> Result<TcpStream, ConnectError> {
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
                return Ok(stream);
            }
            Err(source) => last = ConnectError::Connect { address, source },
        }
    }
    Err(last)
}
