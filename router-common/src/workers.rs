//! The `workers` map: the load state of every worker as the gateway sees it, for people and tools to look at.
//!
//! User space writes, nobody in the kernel reads it yet. A hash rather than an array, so that a dump shows the
//! workers that exist and an update replaces an entry as a whole (a reader never sees half of one).

use crate::bytes::{map_enum, map_value};
use crate::limits::WORKER_NAME_BYTES;

map_enum! {
    /// Whether requests may go to the worker.
    pub enum WorkerState {
        /// Not probed yet.
        Unknown = 0,
        /// Answers its health checks.
        Healthy = 1,
        /// Does not.
        Unhealthy = 2,
        /// Finishes what it has; gets nothing new.
        Draining = 3,
        /// In flight, but silent for longer than it should be; probed before it is believed again.
        Suspect = 4,
        /// Taken out by an operator.
        Disabled = 5,
    }
}

map_enum! {
    /// The worker's circuit breaker.
    pub enum BreakerState {
        /// Requests flow.
        Closed = 0,
        /// Too many faults: none flow.
        Open = 1,
        /// One probe request flows.
        HalfOpen = 2,
    }
}

map_value! {
    /// One worker. Counts are those of this gateway instance unless said otherwise.
    pub struct WorkerValue {
        /// UTF-8, NUL-padded; cut at [`WORKER_NAME_BYTES`].
        pub name: [u8; WORKER_NAME_BYTES],
        /// Network byte order; IPv4 as an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`).
        pub address: [u8; 16],
        pub state: WorkerState,
        pub breaker: BreakerState,
        /// Requests sent by this instance and not yet finished.
        pub in_flight: u32,
        /// Requests in the engine's batch, from its last scrape (all clients).
        pub running: u32,
        /// Requests in the engine's queue, from its last scrape (all clients).
        pub waiting: u32,
        /// KV cache use in thousandths, from its last scrape.
        pub kv_usage_permille: u32,
        /// Prompt tokens sent whose first body byte has not come back.
        pub queued_prefill_tokens: u64,
        /// Blocks that the prefix index holds for the worker.
        pub cached_blocks: u64,
        /// Since the worker was added.
        pub requests_total: u64,
        /// Of these, the worker's faults (not the clients').
        pub errors_total: u64,
        /// `CLOCK_MONOTONIC` of this entry's last update, nanoseconds.
        pub updated_ns: u64,
        /// Host byte order.
        pub port: u16,
        pub padding: [u8; 6],
    }
}

impl WorkerValue {
    /// A worker of which nothing but name and address is known.
    pub fn new(name: &str, address: core::net::SocketAddr) -> Self {
        let mut cut = name.len().min(WORKER_NAME_BYTES);
        while !name.is_char_boundary(cut) {
            cut -= 1;
        }
        let mut bytes = [0; WORKER_NAME_BYTES];
        bytes[..cut].copy_from_slice(&name.as_bytes()[..cut]);
        Self {
            name: bytes,
            address: match address.ip() {
                core::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                core::net::IpAddr::V6(ip) => ip.octets(),
            },
            state: WorkerState::Unknown,
            breaker: BreakerState::Closed,
            in_flight: 0,
            running: 0,
            waiting: 0,
            kv_usage_permille: 0,
            queued_prefill_tokens: 0,
            cached_blocks: 0,
            requests_total: 0,
            errors_total: 0,
            updated_ns: 0,
            port: address.port(),
            padding: [0; 6],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cell, MapValue};
    use core::net::{Ipv6Addr, SocketAddr};

    fn sample() -> WorkerValue {
        let mut value = WorkerValue::new("gpu-a:8000", SocketAddr::from(([10, 1, 2, 3], 8000)));
        value.state = WorkerState::Draining;
        value.breaker = BreakerState::HalfOpen;
        value.in_flight = 3;
        value.queued_prefill_tokens = 1 << 40;
        value.updated_ns = u64::MAX;
        value
    }

    #[test]
    fn bytes_hold_every_field() {
        let value = sample();
        assert_eq!(WorkerValue::from_bytes(&value.to_bytes()), Some(value));
        assert_eq!(size_of::<WorkerValue>() % align_of::<u64>(), 0);
    }

    #[test]
    fn an_unknown_state_is_refused() {
        let mut bytes = sample().to_bytes();
        let at = core::mem::offset_of!(WorkerValue, state);
        bytes[at..at + 4].copy_from_slice(&99_u32.to_ne_bytes());
        assert_eq!(WorkerValue::from_bytes(&bytes), None);
    }

    #[test]
    fn fields_are_visited_by_name_without_padding() {
        let mut seen = 0;
        sample().visit(&mut |name, cell| {
            assert_ne!(name, "padding");
            if name == "state" {
                assert_eq!(cell, Cell::Name("Draining"));
            }
            seen += 1;
        });
        assert_eq!(seen, 14);
    }

    #[test]
    fn addresses_are_mapped() {
        assert_eq!(sample().address, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]);
        let v6 = WorkerValue::new("x", SocketAddr::from((Ipv6Addr::LOCALHOST, 1)));
        assert_eq!(v6.address, Ipv6Addr::LOCALHOST.octets());
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let name = "é".repeat(40);
        let value = WorkerValue::new(&name, SocketAddr::from(([127, 0, 0, 1], 1)));
        assert_eq!(core::str::from_utf8(&value.name), Ok("é".repeat(24).as_str()));
        let odd = WorkerValue::new(&("x".repeat(47) + "é"), SocketAddr::from(([127, 0, 0, 1], 1)));
        assert_eq!(&odd.name[46..], b"x\0");
    }
}
