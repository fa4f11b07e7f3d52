//! What the kernel's two ways of moving bodies, [`bypass`](super::bypass) and [`splice`](super::splice), have in common:
//! the clients' sockets, what both programs are told of this kernel, why a stream comes back, and how many bytes a
//! client's socket has really been given.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, SockHash},
};
use parking_lot::Mutex;
use router_common::{
    names,
    relay::{STOP_END, STOP_ERROR_EVENT, STOP_FAST, STOP_FRAMING, STOP_ROOM},
};

use super::{error::KernelError, sys, vmlinux::Vmlinux};

/// Why the kernel gave a stream back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The body is complete.
    End,
    /// The client is slow: what is in its way is user space's, and TCP's, to handle.
    Room,
    /// The body ends, or breaks, inside a message, which is to be read by user space.
    Framing,
    /// The engine says in its stream that it died: user space is to see it.
    ErrorEvent,
    /// Its events come faster than they should be moved one by one.
    Fast,
    /// The client's socket is gone, or did not take what it was given.
    Failed,
}

impl Stop {
    /// From the number in a program's state, one of `STOP_…`.
    pub(super) fn of(number: u32) -> Self {
        match number {
            STOP_END => Self::End,
            STOP_ROOM => Self::Room,
            STOP_FRAMING => Self::Framing,
            STOP_ERROR_EVENT => Self::ErrorEvent,
            STOP_FAST => Self::Fast,
            _ => Self::Failed,
        }
    }

    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Room => "room",
            Self::Framing => "framing",
            Self::ErrorEvent => "error_event",
            Self::Fast => "fast",
            Self::Failed => "failed",
        }
    }
}

/// A client's socket that a stream can be redirected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEnd {
    pub(super) cookie: u64,
}

/// The sockets that streams can be redirected into: a socket hash without a program of its own. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    map: Arc<Mutex<SockHash<MapData, u64>>>,
}

impl Clients {
    /// Takes the map. The programs that refer to it must have been loaded.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        const NAME: &str = names::RELAY_CLIENTS;
        let map = ebpf.take_map(NAME).ok_or(KernelError::Missing { what: "map", name: NAME })?;
        let map = map.try_into().map_err(|source| KernelError::Map { name: NAME.to_owned(), source })?;
        Ok(Self { map: Arc::new(Mutex::new(map)) })
    }

    /// Makes a client's socket, whose cookie this is, one of them. It leaves the map when it is closed.
    pub fn add(&self, socket: impl AsFd, cookie: u64) -> Option<ClientEnd> {
        self.map.lock().insert(cookie, socket.as_fd().as_raw_fd(), 0).ok()?;
        Some(ClientEnd { cookie })
    }
}

/// Whether a way may be used. Off is for good: the kernel did something that it must not do.
pub(super) struct Switch(AtomicBool);

impl Switch {
    pub(super) fn on() -> Self {
        Self(AtomicBool::new(true))
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(super) fn off(&self) {
        self.0.store(false, Relaxed);
    }
}

/// Where the programs find what they read of this kernel's structs.
pub(super) struct Offsets {
    write_seq: u32,
    copied_seq: u32,
    wmem_queued: u32,
    sndbuf: u32,
    cookie: u32,
    /// A segment's sequence number is where `sk_skb` programs may read it: the part of the control block that is open to
    /// them begins with it.
    pub(super) segments_show_sequence: bool,
}

impl Offsets {
    /// Takes about 20 ms.
    pub(super) fn read() -> Result<Self, KernelError> {
        let vmlinux = Vmlinux::read()?;
        let is_first = |name, field| vmlinux.offset(name, field).is_ok_and(|offset| offset == 0);
        Ok(Self {
            write_seq: vmlinux.offset("tcp_sock", "write_seq")?,
            copied_seq: vmlinux.offset("tcp_sock", "copied_seq")?,
            wmem_queued: vmlinux.offset("sock", "sk_wmem_queued")?,
            sndbuf: vmlinux.offset("sock", "sk_sndbuf")?,
            cookie: vmlinux.offset("sock_common", "skc_cookie")?,
            segments_show_sequence: is_first("sk_skb_cb", "data") && is_first("tcp_skb_cb", "seq"),
        })
    }

    pub(super) fn give<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("TCP_WRITE_SEQ", &self.write_seq, true)
            .override_global("TCP_COPIED_SEQ", &self.copied_seq, true)
            .override_global("SOCK_WMEM_QUEUED", &self.wmem_queued, true)
            .override_global("SOCK_SNDBUF", &self.sndbuf, true)
            .override_global("SOCK_COOKIE", &self.cookie, true);
    }
}

/// Bytes that were ever given to this socket's TCP, by whomever.
pub fn written(socket: impl AsFd) -> io::Result<u64> {
    loop {
        // What is acknowledged between the two readings would be missing from, or be twice in, the sum.
        let acknowledged = sys::bytes_acknowledged(&socket)?;
        let outstanding = sys::bytes_outstanding(&socket)?;
        if sys::bytes_acknowledged(&socket)? == acknowledged {
            return Ok(acknowledged + u64::from(outstanding));
        }
    }
}

/// Bytes that the peer of this socket has not acknowledged yet.
pub fn outstanding(socket: impl AsFd) -> io::Result<u32> {
    sys::bytes_outstanding(&socket)
}

/// Whether the connection of this socket stands, in both directions or in ours.
pub fn is_established(socket: impl AsFd) -> bool {
    sys::is_writable_connection(&socket)
}
