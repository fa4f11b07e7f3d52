//! The `flows` map: every streamed or lent response under way, whoever moves its bytes.
//!
//! An array, not a hash by socket cookie: both sides write to it through shared memory at every event, and a hash would
//! cost user space a system call each. Free entries say so; readers leave them out. Fields are read and written whole,
//! but not all of them at one instant.

use crate::bytes::{map_enum, map_value};

/// Responses that have an entry at once, over all data threads; those beyond are copied and not shown.
pub const FLOWS_MAX: u32 = 4096;

map_enum! {
    /// Who moves a response's body now.
    pub enum FlowState {
        /// No response has this entry.
        Free = 0,
        /// User space.
        Copy = 1,
        /// The kernel, from the worker's `sendmsg` (`sk_msg`).
        Bypass = 2,
        /// The kernel, from this gateway's socket to the worker (`sk_skb`).
        Splice = 3,
    }
}

map_value! {
    /// One response.
    pub struct FlowValue {
        /// Cookie of the client's socket (`SO_COOKIE`).
        pub cookie: u64,
        /// The client, network byte order; IPv4 as an IPv4-mapped IPv6 address.
        pub client: [u8; 16],
        /// Host byte order.
        pub client_port: u32,
        /// Index of the worker.
        pub worker: u32,
        /// `CLOCK_MONOTONIC` at which the request was sent to the worker, nanoseconds. As all times here.
        pub started_ns: u64,
        /// The first body byte; 0 before it.
        pub first_byte_ns: u64,
        /// The last bytes that began an event.
        pub last_event_ns: u64,
        /// Body bytes moved to the client, framing included where the kernel moved them.
        pub bytes: u64,
        /// Events: chunks of the body that begin with `data:`.
        pub events: u64,
        pub state: FlowState,
        /// 1: an event stream; its times go into the `latency` map.
        pub is_event_stream: u32,
        /// Messages with events that the kernel has moved since `pace_since_ns`: see `STOP_FAST` in [`crate::relay`].
        pub paced: u32,
        pub padding: u32,
        /// When the first of them came.
        pub pace_since_ns: u64,
    }
}

/// What an event's first bytes are.
pub const EVENT_PREFIX: &[u8; 5] = b"data:";
