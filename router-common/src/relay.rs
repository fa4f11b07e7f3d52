//! The bypass relay's side of the shared memory: what user space orders, what the `sk_msg` program answers.
//!
//! Each stream that is lent to the kernel has a slot: an [`Order`], written by user space, and a [`State`], written by
//! the program, each in a `BPF_F_MMAPABLE` array, so that taking a stream back and lending it again costs no system
//! call. A position is a count of the bytes that the worker has sent since the stream was lent first, modulo 2^32: the
//! two sides never differ by more than a send buffer, so equal numbers are equal positions.
//!
//! The hand-over (`docs/relay.md` has the argument): user space has read and passed on every byte before position `p`
//! and stores `p` in `arm_at`, after all other fields of the order. A message of the worker that starts exactly at `p`
//! makes the program take over; any other message goes the ordinary way, is read by user space, and the order is
//! given again with a later position. So each byte is moved by one side only, and no lock is needed.

use crate::{bytes::map_value, flows::FLOWS_MAX, framing::Framing};

/// Streams that can be lent at once, over all data threads: those that have a flow.
pub const SLOTS: u32 = FLOWS_MAX;
/// Sockets of clients that can be redirected into.
pub const CLIENTS_MAX: u32 = 65_536;
/// `arm_at` when nothing is ordered.
pub const DISARMED: u64 = u64::MAX;
/// Memory that unsent bytes to one client may take before the stream goes back to user space, and from there, by
/// TCP, to the worker. One message that still found room comes on top.
pub const BACKLOG_BYTES_MAX: u32 = 256 * 1024;
/// Bytes of the ring of [`Event`]s: one for each slot, several times over.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// What the lending program is asked, as the bytes of its test run's packet: put the worker's end of this connection
/// into the socket map at `slot`.
///
/// Addresses are IPv6, or IPv4 mapped into them, in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lend {
    /// Where an Ethernet header would be.
    pub padding: [u8; 16],
    /// The worker's end.
    pub worker: [u8; 16],
    /// This gateway's end.
    pub gateway: [u8; 16],
    /// Cookie of the client's socket.
    pub target: u64,
    /// Port of the worker's end.
    pub worker_port: u16,
    /// Port of this gateway's end.
    pub gateway_port: u16,
    /// The stream's slot.
    pub slot: u32,
}

/// The lending program's answer: the kernel has the socket.
pub const LENT: u32 = 0;
/// There is no such connection in this network namespace: the worker is on another host, or behind a translation of
/// addresses.
pub const LEND_NO_WORKER: u32 = 1;
/// The client's socket is not in its map (any more).
pub const LEND_NO_CLIENT: u32 = 2;
/// The kernel does not take the worker's socket into the map: it is another program's, or TLS is.
pub const LEND_REFUSED: u32 = 3;

map_value! {
    /// What user space wants of a slot.
    pub struct Order {
        /// Take over at this position, or [`DISARMED`]. Written last; the program disarms as it takes over.
        pub arm_at: u64,
        /// Cookie of the client's socket.
        pub target: u64,
        /// Kernel address of that socket; written by the lending program, checked by the cookie at each use.
        pub target_address: u64,
        /// The scanner's state at `arm_at`: [`Framing::remaining`].
        pub remaining: u64,
        /// [`Framing::state`].
        pub state: u32,
        /// [`Framing::overhead`].
        pub overhead: u32,
        /// The worker's sequence number at position 0; written by the lending program.
        pub first_seq: u32,
        /// Not 0: an event stream. It is given back before an event that begins with [`ERROR_EVENT`], and its times are
        /// noted.
        pub is_event_stream: u32,
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
    /// Bytes redirected since the stream was lent first.
    pub redirected: u64,
    /// Messages redirected.
    pub messages: u64,
    /// The scanner after the last redirected byte.
    pub framing: Framing,
    /// The scanner's working copy.
    pub scan: Framing,
    /// Events that begin in the message, as far as it was scanned.
    pub scan_events: u32,
    pub padding: u32,
    /// Why the program gave the stream back last: one of `STOP_…`.
    pub stop: u32,
    /// The client socket's sequence number at the take-over.
    pub target_seq: u32,
    /// Bytes redirected since.
    pub since: u32,
    /// [`Order::is_event_stream`].
    pub is_event_stream: u32,
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
/// [`FAST_MESSAGES`] messages with events came within [`FAST_NS`]: no engine's pace. Copied, many go in one piece.
pub const STOP_FAST: u32 = 6;

/// See [`STOP_FAST`]: a thousand events a second.
pub const FAST_NS: u64 = 256_000_000;
/// See [`STOP_FAST`].
pub const FAST_MESSAGES: u32 = 256;

/// Something has happened that user space should look at: a stream's first bytes ([`EVENT_FIRST`]), or a slot given
/// back (`STOP_…`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub slot: u32,
    pub what: u32,
}

/// The first bytes of an event stream were redirected.
pub const EVENT_FIRST: u32 = 0;
