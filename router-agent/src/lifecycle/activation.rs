//! Socket activation: listening sockets that systemd has opened (`LISTEN_FDS`, sd_listen_fds(3)).
//!
//! A socket named `admin` (`FileDescriptorName=admin`) is for operators, every other one for clients: one of them, which the
//! data threads share, or with `ReusePort=yes` several on one address.

use std::{io, net::TcpListener};

use listenfd::ListenFd;

/// The sockets that were passed.
#[derive(Debug, Default)]
pub struct Activated {
    /// For clients.
    pub clients: Vec<TcpListener>,
    /// For operators.
    pub admin: Option<TcpListener>,
}

impl Activated {
    /// Takes what was passed to this process; nothing where it was not started that way. Call it once. Fails where a socket
    /// is none of TCP.
    pub fn take() -> io::Result<Self> {
        // Before the sockets are taken: the variables go with that.
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut activated = Self::default();
        for number in 0..passed.len() {
            let name = names.next().unwrap_or_default();
            let Some(socket) = passed.take_tcp_listener(number)? else { continue };
            socket.set_nonblocking(true)?;
            if name == "admin" {
                activated.admin = Some(socket);
            } else {
                activated.clients.push(socket);
            }
        }
        Ok(activated)
    }
}
