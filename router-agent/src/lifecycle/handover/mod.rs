//! An upgrade without downtime: a new gateway of the same name takes over the listening sockets of the one that runs.
//!
//! The sockets themselves are passed (`SCM_RIGHTS`, unix(7)), so nothing that waits in their queues is lost, whatever the
//! two processes do. The one that runs listens on an abstract unix socket that is named after its user and its instance; the
//! name lives in the network namespace, as the port does, and goes with its process. Either side looks at who the other is
//! (`SO_PEERCRED`): the same user, or root.
//!
//! ```text
//! successor                                   the one that runs
//!    ──  hello: its pid and addresses     ──▶
//!    ◀── offer: addresses, with the sockets ─
//!    loads its programs, checks the workers, starts its data threads: both accept
//!    ──  ready                            ──▶  accepts no more, releases steering, pins, guard, and this name
//!    ◀── released                         ───  finishes what it has, and ends
//!    takes them
//! ```
//!
//! A successor that fails before it is ready changes nothing: the one that runs notices the end of the connection and goes
//! on. Only where both are configured with the same address for clients is it an upgrade: gateways that have nothing but
//! their name in common leave each other alone.

mod giver;
mod taker;
mod wire;

use std::{io, net::SocketAddr, os::linux::net::SocketAddrExt, os::unix::net};

pub use giver::{Giver, Release, Sockets};
pub use taker::{Offer, take};

/// Why sockets could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other side is somebody else's process.
    #[error("the other process belongs to user {0}, and is not trusted")]
    Stranger(u32),
    /// It does not speak this protocol.
    #[error("the other process says something else than a gateway would")]
    Protocol,
    /// The connection broke, or the other side took too long.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What both sides compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
}

/// The name under which the gateway of this instance can be asked for its sockets.
fn name(instance: &str) -> io::Result<net::SocketAddr> {
    let user = rustix::process::geteuid().as_raw();
    net::SocketAddr::from_abstract_name(format!("warmpath/{user}/{instance}"))
}

/// Refuses processes of other users; root may do anything anyway.
fn check_peer(stream: &net::UnixStream) -> Result<(), HandoverError> {
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(io::Error::from)?.uid;
    if peer.is_root() || peer == rustix::process::geteuid() {
        Ok(())
    } else {
        Err(HandoverError::Stranger(peer.as_raw()))
    }
}
