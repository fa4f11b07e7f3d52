//! What the kernel programs and user space share: the keys and values of the BPF maps, their names and their
//! limits, and the arithmetic both sides must agree on.
//!
//! Every value is a `#[repr(C)]` struct without implicit padding (checked when it is compiled) and every enum is
//! fieldless and `#[repr(u32)]`, so that the BTF in the object lets `bpftool map dump pinned …` print field and
//! variant names. User space never casts bytes to these types: [`MapValue`] writes and reads them field by field,
//! so a foreign or damaged entry is an error, not undefined behaviour.
//!
//! A change to any layout here is a change of [`SCHEMA_VERSION`].
#![no_std]
#![forbid(unsafe_code)]

mod bytes;
pub mod cores;
pub mod decisions;
pub mod flows;
pub mod framing;
pub mod guard;
pub mod instance;
pub mod latency;
pub mod limits;
pub mod prefixes;
pub mod relay;
pub mod splice;
pub mod workers;

#[cfg(not(target_arch = "bpf"))]
pub use bytes::{Cell, Field, MapValue};

/// The version of all layouts in this crate; stored in the `instance` map, checked by readers in other processes.
pub const SCHEMA_VERSION: u32 = 4;

/// Names of the maps, as the kernel, bpftool and the pin directory show them (at most 15 bytes: `BPF_OBJ_NAME_LEN`
/// is 16 with its NUL).
pub mod names {
    /// `u32` worker index → [`WorkerValue`](crate::workers::WorkerValue); hash.
    pub const WORKERS: &str = "workers";
    /// `u32` data thread → [`CoreValue`](crate::cores::CoreValue); mmapable array.
    pub const CORES: &str = "cores";
    /// `0` → [`SteeringCounts`](crate::cores::SteeringCounts); per-CPU array.
    pub const STEERING: &str = "steering";
    /// `0` → [`InstanceValue`](crate::instance::InstanceValue); array.
    pub const INSTANCE: &str = "instance";
    /// `u32` slot → [`FlowValue`](crate::flows::FlowValue); mmapable array.
    pub const FLOWS: &str = "flows";
    /// [`latency::key`](crate::latency::key) → [`LatencyValue`](crate::latency::LatencyValue); mmapable array.
    pub const LATENCY: &str = "latency";
    /// `u64` block hash → [`PrefixValue`](crate::prefixes::PrefixValue); hash.
    pub const PREFIXES: &str = "prefixes";
    /// `u32` slot → [`DecisionValue`](crate::decisions::DecisionValue); mmapable array.
    pub const DECISIONS: &str = "decisions";
    /// `u32` data thread → its listening socket; reuseport socket array, never pinned.
    pub const LISTENERS: &str = "listeners";

    /// `u32` slot → a worker's socket, with the `sk_msg` program; socket map, never pinned.
    pub const RELAY_WORKERS: &str = "relay_workers";
    /// `u64` cookie → a client's socket; socket hash without a program, never pinned.
    pub const RELAY_CLIENTS: &str = "relay_clients";
    /// A worker's socket → `u32` slot; socket storage, never pinned.
    pub const RELAY_SLOTS: &str = "relay_slots";
    /// `u32` slot → [`Order`](crate::relay::Order); mmapable array, never pinned.
    pub const RELAY_ORDERS: &str = "relay_orders";
    /// `u32` slot → [`State`](crate::relay::State); mmapable array, never pinned.
    pub const RELAY_STATES: &str = "relay_states";
    /// [`Event`](crate::relay::Event)s; ring buffer, never pinned.
    pub const RELAY_EVENTS: &str = "relay_events";

    /// `u32` slot → our socket to a worker, with the `sk_skb` program; socket map, never pinned.
    pub const SPLICE_WORKERS: &str = "splice_workers";
    /// `u64` cookie of our socket to a worker → `u32` slot; hash, never pinned.
    pub const SPLICE_SLOTS: &str = "splice_slots";
    /// `u32` slot → [`Order`](crate::splice::Order); mmapable array, never pinned.
    pub const SPLICE_ORDERS: &str = "splice_orders";
    /// `u32` slot → [`State`](crate::splice::State); mmapable array, never pinned.
    pub const SPLICE_STATES: &str = "splice_states";
    /// [`Event`](crate::relay::Event)s; ring buffer, never pinned.
    pub const SPLICE_EVENTS: &str = "splice_events";
    /// [`RuleKey`](crate::guard::RuleKey) → [`Rule`](crate::guard::Rule); longest-prefix trie.
    pub const GUARD_RULES: &str = "guard_rules";
    /// `u32` rule → [`Hits`](crate::guard::Hits); per-CPU array.
    pub const GUARD_HITS: &str = "guard_hits";
    /// [`SourceKey`](crate::guard::SourceKey) → [`Source`](crate::guard::Source); LRU hash.
    pub const GUARD_SRC: &str = "guard_src";
    /// `0` → [`Counts`](crate::guard::Counts); per-CPU array.
    pub const GUARD_STATS: &str = "guard_stats";
    /// `0` → [`Settings`](crate::guard::Settings); mmapable array.
    pub const GUARD_SETTINGS: &str = "guard_settings";
    /// `0` → when the log may be written at its full rate again; array, never pinned.
    pub const GUARD_LOG: &str = "guard_log";

    const ALL: [&str; 26] = [
        WORKERS,
        CORES,
        STEERING,
        INSTANCE,
        FLOWS,
        LATENCY,
        PREFIXES,
        DECISIONS,
        LISTENERS,
        RELAY_WORKERS,
        RELAY_CLIENTS,
        RELAY_SLOTS,
        RELAY_ORDERS,
        RELAY_STATES,
        RELAY_EVENTS,
        SPLICE_WORKERS,
        SPLICE_SLOTS,
        SPLICE_ORDERS,
        SPLICE_STATES,
        SPLICE_EVENTS,
        GUARD_RULES,
        GUARD_HITS,
        GUARD_SRC,
        GUARD_STATS,
        GUARD_SETTINGS,
        GUARD_LOG,
    ];
    const _: () = {
        let mut i = 0;
        while i < ALL.len() {
            assert!(ALL[i].len() <= 15);
            i += 1;
        }
    };
}
