//! The `prefixes` map's writer.

use std::collections::HashSet;

use aya::maps::{HashMap, Map, MapData, MapError};
use router_common::{MapValue, limits::PREFIXES_MAX, names::PREFIXES, prefixes::PrefixValue};

use super::error::KernelError;

/// Publishes a sample of the prefix index for `bpftool`, `warmpath maps` and other processes.
///
/// One `bpf(2)` call per entry, about two microseconds: for a control thread, once a second.
pub struct PrefixesMap {
    map: HashMap<MapData, u64, <PrefixValue as MapValue>::Bytes>,
    published: HashSet<u64>,
}

impl PrefixesMap {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        Ok(Self { map: HashMap::try_from(map).map_err(error)?, published: HashSet::new() })
    }

    /// Replaces the entries by these, of which those beyond [`PREFIXES_MAX`] are left out. A reader that comes in
    /// between sees some of both.
    pub fn publish(&mut self, prefixes: &[(u64, PrefixValue)]) -> Result<(), KernelError> {
        let prefixes = &prefixes[..prefixes.len().min(PREFIXES_MAX as usize)];
        let wanted: HashSet<u64> = prefixes.iter().map(|(hash, _)| *hash).collect();
        // First, so that there is room.
        for gone in self.published.difference(&wanted) {
            match self.map.remove(gone) {
                Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other.map_err(error)?,
            }
        }
        self.published.retain(|hash| wanted.contains(hash));
        for (hash, value) in prefixes {
            self.map.insert(hash, value.to_bytes(), 0).map_err(error)?;
            self.published.insert(*hash);
        }
        Ok(())
    }
}

fn error(source: MapError) -> KernelError {
    KernelError::Map { name: PREFIXES.to_owned(), source }
}
