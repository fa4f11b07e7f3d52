//! Limits of the kernel side, in one place. Those of the gateway are its own.

/// Entries of the `workers` map. The gateway's default is 256; this is the most that one instance can publish.
pub const WORKERS_MAX: u32 = 1024;

/// Data threads that steering can place connections on. More threads than this run on the kernel's hash.
pub const CORES_MAX: u32 = 64;

/// A data thread says that it is alive at least this often.
pub const CORE_REPORT_EVERY_MS: u64 = 25;

/// A data thread silent for longer than this gets no new connection. With a report every
/// [`CORE_REPORT_EVERY_MS`], a thread that blocks is passed over at most this long after it blocked, and two late
/// reports in a row are forgiven.
pub const CORE_STALLED_AFTER_MS: u64 = 75;

/// Event-loop lag that counts as none: below it, timers and the scheduler speak, not the thread's load. With more busy
/// threads than CPUs a thread waits for a few time slices of others without having done anything; at 5 ms, that noise
/// alone spread connections worse than a hash does.
pub const CORE_LAG_FLOOR_US: u32 = 20_000;

/// Bytes of a worker's name in the `workers` map; longer names are cut at a character boundary.
pub const WORKER_NAME_BYTES: usize = 48;

/// Slots of the `decisions` ring.
pub const DECISIONS_MAX: u32 = 4096;

/// Bytes of `x-request-id` in the `decisions` map; the hash beside them covers the whole.
pub const REQUEST_ID_BYTES: usize = 64;

/// Entries of the `prefixes` map.
pub const PREFIXES_MAX: u32 = 256;

/// Words of 64 workers in the `prefixes` map: the gateway's limit of 256.
pub const PREFIX_WORKER_WORDS: usize = 4;

/// Rules of the guard in one set, deny and allow together.
pub const GUARD_RULES_MAX: u32 = 4096;

/// Sources whose SYN rate the guard remembers; beyond, the least recently seen is forgotten.
pub const GUARD_SOURCES_MAX: u32 = 65_536;
