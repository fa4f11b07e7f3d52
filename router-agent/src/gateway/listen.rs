//! The data threads' listeners: one socket each on the same address, by `SO_REUSEPORT` (Linux 3.9).

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait for accept, per listener; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why the gateway cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else has the port.
    #[error("{address} is in use by another program: stop it, or choose another address with --{flag}")]
    InUse {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// Another reason.
    #[error("cannot listen on {address} (--{flag}): {source}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// The system's word.
        source: io::Error,
    },
}

/// One listener per data thread, all on the same address.
#[derive(Debug)]
pub struct Listeners {
    /// The address; its port is the one that the system chose where 0 was asked for.
    pub address: SocketAddr,
    /// In the order of the data threads.
    pub sockets: Vec<TcpListener>,
}

impl Listeners {
    /// Opens `count` listeners. `SO_REUSEPORT` would let a second gateway share the port without a word, so the address
    /// is first bound without it: in use means in use.
    pub fn open(address: SocketAddr, count: usize) -> Result<Self, ListenError> {
        let fail = |source: io::Error| Self::explain(address, "listen", source);
        let exclusive = bind(address, false).map_err(fail)?;
        let address = exclusive.local_addr().ok().and_then(|a| a.as_socket()).unwrap_or(address);
        drop(exclusive);
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            let socket = bind(address, true).map_err(fail)?;
            socket.listen(BACKLOG).map_err(fail)?;
            sockets.push(socket.into());
        }
        Ok(Self { address, sockets })
    }

    /// Turns a system error into one that names the flag to change.
    pub fn explain(address: SocketAddr, flag: &'static str, source: io::Error) -> ListenError {
        match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { address, flag },
            _ => ListenError::Other { address, flag, source },
        }
    }
}

fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if !reuse_port {
        // Two sockets may be bound to one address with SO_REUSEADDR; only one may listen.
        socket.listen(1)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_share_one_address_that_nobody_else_may_take() {
        let listeners = Listeners::open(SocketAddr::from(([127, 0, 0, 1], 0)), 3).unwrap();
        assert_eq!(listeners.sockets.len(), 3);
        for socket in &listeners.sockets {
            assert_eq!(socket.local_addr().unwrap(), listeners.address);
        }
        let error = Listeners::open(listeners.address, 1).unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("--listen"), "{error}");
    }
}
