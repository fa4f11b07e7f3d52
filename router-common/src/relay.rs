//! The bypass relay's side of the shared memory: what user space orders, what the `sk_msg` program answers.
//!
//! Each connection to a worker that takes part has a slot: an [`Order`], written by user space, and a [`State`],
//! written by the program, each in a `BPF_F_MMAPABLE` array, so that handing a response over costs no system call.
//! A position is a count of the bytes that the worker has sent on this connection, modulo 2^32: the two sides never
//! differ by more than a send buffer, so equal numbers are equal positions.
//!
//! The hand-over (`docs/relay.md` has the argument): user space has read and passed on every byte before position `p`
//! and stores `p` in `arm_at`, after all other fields of the order. A message of the worker that starts exactly at `p`
//! makes the program take over; any other message goes the ordinary way, is read by user space, and the order is
//! given again with a later position. So each byte is moved by one side only, and no lock is needed.

use crate::{bytes::map_value, framing::Framing};

/// Connections to workers that can take part at once, over all data threads.
pub const SLOTS: u32 = 4096;
/// Sockets of clients and workers that are known; the least recently used are forgotten, and copied.
pub const SOCKETS_MAX: u32 = 65_536;
/// Ports that the `sock_ops` program looks at.
pub const PORTS_MAX: u32 = 1024;
/// `arm_at` when nothing is ordered.
pub const DISARMED: u64 = u64::MAX;
/// Memory that unsent bytes to one client may take before the stream goes back to user space, and from there, by
/// TCP, to the worker. One message that still found room comes on top.
pub const BACKLOG_BYTES_MAX: u32 = 256 * 1024;
/// Bytes of the ring of [`Event`]s: one for each slot, several times over.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// In the map of ports: connections accepted here are a worker's.
pub const PORT_OF_WORKER: u32 = 1;
/// In the map of ports: connections accepted here are this gateway's clients.
pub const PORT_OF_CLIENTS: u32 = 2;

map_value! {
    /// A connection as the accepting side names it: IPv6 addresses, or IPv4 mapped into them, as 32-bit words in
    /// network byte order.
    pub struct Pair {
        pub local: [u8; 16],
        pub remote: [u8; 16],
        pub local_port: u32,
        pub remote_port: u32,
    }
}

map_value! {
    /// A worker's accepted connection.
    pub struct Accepted {
        /// The socket's cookie.
        pub cookie: u64,
        /// Its TCP sequence number at position 0.
        pub first_seq: u32,
        pub padding: u32,
    }
}

map_value! {
    /// What user space wants of a slot.
    pub struct Order {
        /// Take over at this position, or [`DISARMED`]. Written last; the program disarms as it takes over.
        pub arm_at: u64,
        /// Cookie of the client's socket.
        pub target: u64,
        /// The scanner's state at `arm_at`: [`Framing::remaining`].
        pub remaining: u64,
        /// [`Framing::state`].
        pub state: u32,
        /// [`Framing::overhead`].
        pub overhead: u32,
        /// The worker socket's sequence number at position 0.
        pub first_seq: u32,
        /// Not 0: give the stream back before an event that begins with [`ERROR_EVENT`].
        pub watch_errors: u32,
    }
}

/// How vLLM tells in a stream that its engine died. It is a fault of the worker, so user space must see it.
pub const ERROR_EVENT: &[u8; 15] = b"data: {\"error\":";

/// What the program did with a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Even: user space moves the bytes. Odd: the kernel does. One more at each turn, written last and with a full
    /// barrier.
    pub turn: u64,
    /// Bytes redirected on this connection, all responses together.
    pub redirected: u64,
    /// Messages redirected.
    pub messages: u64,
    /// Cookie of the client's socket.
    pub target: u64,
    /// Kernel address of that socket; checked by the cookie at each use.
    pub target_address: u64,
    /// The scanner after the last redirected byte.
    pub framing: Framing,
    /// The scanner's working copy.
    pub scan: Framing,
    /// Why the program gave the stream back last: one of `STOP_…`.
    pub stop: u32,
    /// The client socket's sequence number at the take-over.
    pub target_seq: u32,
    /// Bytes redirected since.
    pub since: u32,
    /// [`Order::watch_errors`].
    pub watch_errors: u32,
}

/// The body is complete.
pub const STOP_END: u32 = 1;
/// The message does not fit the client's send buffer, or the backlog is at its limit.
pub const STOP_ROOM: u32 = 2;
/// The body ends inside the message, or its framing is broken: nothing of the message was redirected.
pub const STOP_FRAMING: u32 = 3;
/// The client's socket is gone, or has not taken what it was given.
pub const STOP_FAILED: u32 = 4;
/// The message has an [`ERROR_EVENT`].
pub const STOP_ERROR_EVENT: u32 = 5;

/// The kernel gave a slot back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub slot: u32,
    pub stop: u32,
}
