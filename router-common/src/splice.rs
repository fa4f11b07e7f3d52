//! The splice relay's side of the shared memory: what user space orders, what the `sk_skb` program answers.
//!
//! Each lent connection to a worker has a slot, its flow's: an [`Order`], written by user space, and a [`State`], written by the
//! program, each in a `BPF_F_MMAPABLE` array. A position is a count of the bytes that have gone through the program since
//! the connection was lent, so it starts at 0 and never comes twice.
//!
//! The hand-over: user space has read and passed on every byte before position `p`, and stores `p` in `arm_at`, after all
//! other fields of the order and with a full barrier; then it reads [`State::position`]. For each segment the program
//! adds the length to `position`, with a full barrier, and only then reads `arm_at`. So at least one of the two sees the
//! other. A segment that starts exactly at `p` makes the program take over; if `position` is past `p` and nobody took
//! over, bytes were passed, user space reads them, and the order is given again. Each byte is moved by one side only.
//!
//! The reasons for which the program gives a stream back are those of the bypass: `STOP_…` in [`crate::relay`].

use crate::{bytes::map_value, flows::FLOWS_MAX, framing::Framing};

/// Connections that can be lent at once, over all data threads: those whose response has a flow.
pub const SLOTS: u32 = FLOWS_MAX;
/// Bytes that were redirected to one client and that its TCP has not taken: with a segment that would exceed this the
/// stream goes back to user space, and from there, by TCP, to the worker. A single segment is always taken.
pub const BACKLOG_BYTES_MAX: u32 = 256 * 1024;
/// Bytes of the ring of [`Event`](crate::relay::Event)s: one for each slot, several times over.
pub const EVENTS_BYTES: u32 = 256 * 1024;

map_value! {
    /// What user space wants of a slot.
    pub struct Order {
        /// Take over at this position, or [`DISARMED`](crate::relay::DISARMED). Written last.
        pub arm_at: u64,
        /// Cookie of the client's socket.
        pub target: u64,
        /// The scanner's state at `arm_at`: [`Framing::remaining`].
        pub remaining: u64,
        /// [`Framing::state`].
        pub state: u32,
        /// [`Framing::overhead`].
        pub overhead: u32,
        /// Not 0: an event stream. It is given back before an event that begins with
        /// [`ERROR_EVENT`](crate::relay::ERROR_EVENT), and its times are noted.
        pub is_event_stream: u32,
        /// Not 0: leave segments as the kernel hands them over, overlaps and all. Only to prove that the self-test
        /// sees what the cut is for.
        pub keep_overlaps: u32,
    }
}

/// What the program did with a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Even: user space moves the bytes. Odd: the kernel does. One more at each turn, written last and with a full
    /// barrier.
    pub turn: u64,
    /// Bytes of the worker's that have gone through the program, each once.
    pub position: u64,
    /// Those of them that were redirected.
    pub redirected: u64,
    /// Segments redirected.
    pub segments: u64,
    /// Cookie of the client's socket.
    pub target: u64,
    /// The scanner after the last redirected byte.
    pub framing: Framing,
    /// The scanner's working copy.
    pub scan: Framing,
    /// How far in the segment it is.
    pub scan_at: u32,
    /// Events that it has met in the segment.
    pub scan_events: u32,
    /// Eight bytes of the segment, for the scanner.
    pub window: u64,
    /// Where in the segment those are.
    pub window_at: u32,
    /// Why the program gave the stream back last.
    pub stop: u32,
    /// The client socket's sequence number at the take-over.
    pub target_seq: u32,
    /// Bytes redirected since.
    pub since: u32,
    /// Sequence number of the first byte of the worker's that has not come yet.
    pub next_seq: u32,
    /// Whether that is known.
    pub has_next_seq: u32,
    /// Segments that brought bytes again, and were cut.
    pub overlaps: u32,
    /// Not 0: a segment could not be cut, or one is missing. No byte after it can be trusted.
    pub lost: u32,
}
