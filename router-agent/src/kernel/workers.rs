//! The `workers` map's writer.

use aya::maps::{HashMap, Map, MapData, MapError};
use router_common::{MapValue, names::WORKERS, workers::WorkerValue};

use super::{error::KernelError, sys::monotonic_ns};

/// Publishes the fleet's load state for `bpftool`, `warmpath maps` and other processes.
///
/// One `bpf(2)` call per update, about two microseconds: meant for a control thread a few times per second, not for the
/// path of a request. An update replaces a worker's entry as a whole.
pub struct WorkersMap {
    map: HashMap<MapData, u32, <WorkerValue as MapValue>::Bytes>,
}

impl WorkersMap {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        Ok(Self { map: HashMap::try_from(map).map_err(error)? })
    }

    /// Writes the worker at `index`, stamping `updated_ns` with the present. Fails with `E2BIG` beyond
    /// [`WORKERS_MAX`](router_common::limits::WORKERS_MAX) workers.
    pub fn publish(&mut self, index: u32, worker: &WorkerValue) -> Result<(), KernelError> {
        let stamped = WorkerValue { updated_ns: monotonic_ns(), ..*worker };
        self.map.insert(index, stamped.to_bytes(), 0).map_err(error)
    }

    /// Removes the worker at `index`; nothing happens if it is not there.
    pub fn remove(&mut self, index: u32) -> Result<(), KernelError> {
        match self.map.remove(&index) {
            Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(error),
        }
    }
}

fn error(source: MapError) -> KernelError {
    KernelError::Map { name: WORKERS.to_owned(), source }
}
