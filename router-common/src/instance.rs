//! The `instance` map: who publishes the maps beside it.

use crate::bytes::map_value;

map_value! {
    /// The process behind a pin directory. Its one entry tells a reader whether it understands the other maps.
    pub struct InstanceValue {
        /// [`SCHEMA_VERSION`](crate::SCHEMA_VERSION) of the writer.
        pub schema_version: u32,
        /// In the writer's PID namespace.
        pub pid: u32,
        /// `CLOCK_MONOTONIC` when the maps were made, nanoseconds.
        pub started_ns: u64,
        /// Data threads, hence entries of `cores`.
        pub threads: u32,
        pub padding: u32,
    }
}
