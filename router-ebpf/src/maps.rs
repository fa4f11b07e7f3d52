//! The maps, as BTF definitions (`.maps`), so that bpftool prints fields by name. Keys, values and names are
//! described in `router-common`.

use aya_ebpf::{
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ReusePortSockArray, RingBuf, SkStorage, SockHash,
        SockMap,
    },
    macros::btf_map,
};
use router_common::{
    cores::{CoreValue, SteeringCounts},
    decisions::DecisionValue,
    flows::{FLOWS_MAX, FlowValue},
    guard::{Counts, Hits, Rule, RuleKey, Settings, Source, SourceKey},
    instance::InstanceValue,
    latency::{LATENCIES, LatencyValue},
    limits::{CORES_MAX, DECISIONS_MAX, GUARD_RULES_MAX, GUARD_SOURCES_MAX, PREFIXES_MAX, WORKERS_MAX},
    prefixes::PrefixValue,
    relay::{CLIENTS_MAX, EVENTS_BYTES, Event, Order, SLOTS, State},
    splice,
    workers::WorkerValue,
};

/// `BPF_F_MMAPABLE` (Linux 5.5): the data threads write their reports without a system call.
const MMAPABLE: usize = 1 << 10;

#[btf_map(name = "workers")]
pub(crate) static WORKERS: HashMap<u32, WorkerValue, { WORKERS_MAX as usize }> = HashMap::new();

/// The loader lowers the number of entries to the number of data threads.
#[btf_map(name = "cores")]
pub(crate) static CORES: Array<CoreValue, { CORES_MAX as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "steering")]
pub(crate) static STEERING: PerCpuArray<SteeringCounts, 1> = PerCpuArray::new();

#[btf_map(name = "instance")]
pub(crate) static INSTANCE: Array<InstanceValue, 1> = Array::new();

#[btf_map(name = "flows")]
pub(crate) static FLOWS: Array<FlowValue, { FLOWS_MAX as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "latency")]
pub(crate) static LATENCY: Array<LatencyValue, { LATENCIES as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "prefixes")]
pub(crate) static PREFIXES: HashMap<u64, PrefixValue, { PREFIXES_MAX as usize }> = HashMap::new();

#[btf_map(name = "decisions")]
pub(crate) static DECISIONS: Array<DecisionValue, { DECISIONS_MAX as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "listeners")]
pub(crate) static LISTENERS: ReusePortSockArray<{ CORES_MAX as usize }> = ReusePortSockArray::new();

/// What one run of the steering program keeps while it looks at the threads.
///
/// In a map and not on the stack, because the verifier forgets what it knew of a number that comes from a map: so
/// all ways through one turn of a loop meet again in one state. With the same numbers in registers it gives up
/// after a million instructions.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) least_lag_us: u64,
    pub(crate) lag_limit_us: u64,
    pub(crate) best: u64,
}

#[btf_map(name = "steer_scratch")]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[btf_map(name = "relay_workers")]
pub(crate) static RELAY_WORKERS: SockMap<{ SLOTS as usize }> = SockMap::new();

#[btf_map(name = "relay_clients")]
pub(crate) static RELAY_CLIENTS: SockHash<u64, { CLIENTS_MAX as usize }> = SockHash::new();

#[btf_map(name = "relay_slots")]
pub(crate) static RELAY_SLOTS: SkStorage<u32> = SkStorage::new();

#[btf_map(name = "relay_orders")]
pub(crate) static RELAY_ORDERS: Array<Order, { SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "relay_states")]
pub(crate) static RELAY_STATES: Array<State, { SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "relay_events")]
pub(crate) static RELAY_EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

// The splice relay; clients' sockets are in `relay_clients`.

#[btf_map(name = "splice_workers")]
pub(crate) static SPLICE_WORKERS: SockMap<{ splice::SLOTS as usize }> = SockMap::new();

#[btf_map(name = "splice_slots")]
pub(crate) static SPLICE_SLOTS: HashMap<u64, u32, { splice::SLOTS as usize }> = HashMap::new();

#[btf_map(name = "splice_orders")]
pub(crate) static SPLICE_ORDERS: Array<splice::Order, { splice::SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "splice_states")]
pub(crate) static SPLICE_STATES: Array<splice::State, { splice::SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "splice_events")]
pub(crate) static SPLICE_EVENTS: RingBuf<Event, { splice::EVENTS_BYTES as usize }> = RingBuf::new();

// The guard.

/// Two sets of rules: the one in use, and the one that is being written.
#[btf_map(name = "guard_rules")]
pub(crate) static GUARD_RULES: LpmTrie<RuleKey, Rule, { 2 * GUARD_RULES_MAX as usize }> = LpmTrie::new();

#[btf_map(name = "guard_hits")]
pub(crate) static GUARD_HITS: PerCpuArray<Hits, { 2 * GUARD_RULES_MAX as usize }> = PerCpuArray::new();

#[btf_map(name = "guard_src")]
pub(crate) static GUARD_SRC: LruHashMap<SourceKey, Source, { GUARD_SOURCES_MAX as usize }> =
    LruHashMap::new();

#[btf_map(name = "guard_stats")]
pub(crate) static GUARD_STATS: PerCpuArray<Counts, 1> = PerCpuArray::new();

#[btf_map(name = "guard_settings")]
pub(crate) static GUARD_SETTINGS: Array<Settings, 1, MMAPABLE> = Array::new();

#[btf_map(name = "guard_log")]
pub(crate) static GUARD_LOG: Array<u64, 1> = Array::new();
