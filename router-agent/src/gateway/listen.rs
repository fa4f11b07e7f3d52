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

/// The data threads' listeners, all on the same address.
#[derive(Debug)]
pub struct Listeners {
    /// The address; its port is the one that the system chose where 0 was asked for.
    pub address: SocketAddr,
    /// In the order of the data threads: at least one each.
    pub threads: Vec<Vec<TcpListener>>,
    /// No two threads have the same socket.
    has_one_each: bool,
}

impl Listeners {
    /// Opens `count` listeners. `SO_REUSEPORT` would let a second gateway share the port without a word, so the address
    /// is first bound without it: in use means in use.
    pub fn open(address: SocketAddr, count: usize) -> Result<Self, ListenError> {
        let fail = |source: io::Error| Self::explain(address, "listen", source);
        let exclusive = bind(address, false).map_err(fail)?;
        let address = exclusive.local_addr().ok().and_then(|a| a.as_socket()).unwrap_or(address);
        drop(exclusive);
        let open = |_| open_one(address).map(|socket| vec![socket]);
        let threads = (0..count).map(open).collect::<io::Result<_>>().map_err(fail)?;
        Ok(Self { address, threads, has_one_each: true })
    }

    /// Listeners for `count` threads out of sockets that are listening already, one at least. Where they are too few, more
    /// are opened beside them, or, where the system does not allow that, threads share them; where they are too many, some
    /// threads have several.
    pub fn adopt(sockets: Vec<TcpListener>, count: usize) -> io::Result<Self> {
        let first = sockets.first().ok_or(io::ErrorKind::NotFound)?;
        let address = first.local_addr()?;
        let mut threads: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
        let passed = sockets.len();
        for (number, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            threads[number % count].push(socket);
        }
        let mut has_one_each = true;
        for number in passed..count {
            let socket = if let Ok(socket) = open_one(address) {
                socket
            } else {
                has_one_each = false;
                threads[number % passed][0].try_clone()?
            };
            threads[number].push(socket);
        }
        Ok(Self { address, threads, has_one_each })
    }

    /// One socket for each thread, for steering; none where threads share them.
    pub fn one_each(&self) -> Option<Vec<&TcpListener>> {
        self.has_one_each.then(|| self.threads.iter().map(|sockets| &sockets[0]).collect())
    }

    /// Second handles on all of them, the first of each thread first.
    pub fn handles(&self) -> io::Result<Vec<TcpListener>> {
        let first = self.threads.iter().filter_map(|sockets| sockets.first());
        let others = self.threads.iter().flat_map(|sockets| sockets.iter().skip(1));
        first.chain(others).map(TcpListener::try_clone).collect()
    }

    /// Turns a system error into one that names the flag to change.
    pub fn explain(address: SocketAddr, flag: &'static str, source: io::Error) -> ListenError {
        match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { address, flag },
            _ => ListenError::Other { address, flag, source },
        }
    }
}

fn open_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address, true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
        let sockets = listeners.one_each().expect("they are its own");
        assert_eq!(sockets.len(), 3);
        for socket in sockets {
            assert_eq!(socket.local_addr().unwrap(), listeners.address);
        }
        let error = Listeners::open(listeners.address, 1).unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("--listen"), "{error}");
    }

    #[test]
    fn sockets_that_are_passed_are_dealt_out_and_completed() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let passed = |count| Listeners::open(address, count).unwrap();
        let more = Listeners::adopt(passed(2).handles().unwrap(), 3).unwrap();
        assert_eq!(more.one_each().expect("one was opened beside them").len(), 3);
        let fewer = Listeners::adopt(passed(5).handles().unwrap(), 2).unwrap();
        assert_eq!(fewer.threads.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(fewer.one_each().expect("nobody shares").len(), 2);
        // As systemd opens one: without SO_REUSEPORT.
        let shared = Listeners::adopt(vec![TcpListener::bind(address).unwrap()], 2).unwrap();
        assert!(shared.one_each().is_none());
        assert_eq!(shared.threads.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        assert!(Listeners::adopt(Vec::new(), 2).is_err());
    }
}
