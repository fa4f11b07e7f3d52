//! Reading the maps of a running gateway from another process, by their pins.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use router_common::{
    MapValue, SCHEMA_VERSION, decisions::DecisionValue, instance::InstanceValue, names, prefixes::PrefixValue,
};

use super::{decisions, error::KernelError, pins, sys::monotonic_ns};

/// The pin directory of an instance, readable.
#[derive(Debug)]
pub struct PinnedMaps {
    directory: PathBuf,
}

/// One pinned map, as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedMap {
    pub name: String,
    pub kind: String,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub max_entries: u32,
}

/// One entry. Per-CPU maps have one per CPU and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<V, K = u32> {
    pub key: K,
    pub value: V,
}

impl PinnedMaps {
    /// The pins of `instance`, or an I/O error of kind `NotFound` if it has none.
    pub fn open(root: &Path, instance: Option<&str>) -> Result<Self, KernelError> {
        let directory = pins::directory(root, instance);
        let listed = fs::read_dir(&directory).and_then(|mut entries| entries.next().transpose());
        match listed {
            Ok(Some(_)) => Ok(Self { directory }),
            Ok(None) => Err(KernelError::Io { path: directory, source: io::ErrorKind::NotFound.into() }),
            Err(source) => Err(KernelError::Io { path: directory, source }),
        }
    }

    /// The running instances that have pins below `root`; `None` is the default one.
    pub fn instances(root: &Path) -> Vec<Option<String>> {
        let held = pins::instances(root).into_iter().filter(|(_, directory)| pins::is_held(directory));
        held.map(|(name, _)| name).collect()
    }

    /// Whether their gateway is running: a killed one's maps stay until the next one starts.
    pub fn is_live(&self) -> bool {
        pins::is_held(&self.directory)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Who publishes here. The other maps can be read if its schema version is this one's.
    pub fn instance(&self) -> Result<InstanceValue, KernelError> {
        let rows = self.rows::<InstanceValue>(names::INSTANCE)?;
        rows.first()
            .map(|row| row.value)
            .ok_or_else(|| KernelError::Entry { name: names::INSTANCE.to_owned() })
    }

    /// Whether the writer's layouts are the ones that this program knows.
    pub fn is_readable(instance: &InstanceValue) -> bool {
        instance.schema_version == SCHEMA_VERSION
    }

    /// All pinned maps, by name.
    pub fn list(&self) -> Result<Vec<PinnedMap>, KernelError> {
        let io = |source| KernelError::Io { path: self.directory.clone(), source };
        let mut maps = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            let info = self.data(&name)?.info().map_err(|source| error(&name, source))?;
            let kind = info.map_type().map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}"));
            maps.push(PinnedMap {
                kind,
                key_bytes: info.key_size(),
                value_bytes: info.value_size(),
                max_entries: info.max_entries(),
                name,
            });
        }
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(maps)
    }

    /// All entries of a map, by key. A map whose keys or values have another size than `V` is an error.
    pub fn rows<V>(&self, name: &str) -> Result<Vec<Row<V>>, KernelError>
    where
        V: MapValue,
        V::Bytes: Pod,
    {
        let map = self.data(name)?;
        let map = Map::from_map_data(map).map_err(|source| error(name, source))?;
        let mut rows = Vec::new();
        let mut keep = |key: u32, bytes: &V::Bytes| {
            let value = V::from_bytes(bytes).ok_or_else(|| KernelError::Entry { name: name.to_owned() })?;
            rows.push(Row { key, value });
            Ok(())
        };
        match map {
            Map::Array(_) => {
                let array: Array<_, V::Bytes> = map.try_into().map_err(|source| error(name, source))?;
                for (key, bytes) in (0..).zip(array.iter()) {
                    keep(key, &bytes.map_err(|source| error(name, source))?)?;
                }
            }
            Map::PerCpuArray(_) => {
                let array: PerCpuArray<_, V::Bytes> = map.try_into().map_err(|source| error(name, source))?;
                for (key, cpus) in (0..).zip(array.iter()) {
                    for bytes in cpus.map_err(|source| error(name, source))?.iter() {
                        keep(key, bytes)?;
                    }
                }
            }
            other => return hash_rows(name, other),
        }
        Ok(rows)
    }

    /// The entries of `prefixes`, by block hash.
    pub fn prefixes(&self) -> Result<Vec<Row<PrefixValue, u64>>, KernelError> {
        let map = self.data(names::PREFIXES)?;
        let map = Map::from_map_data(map).map_err(|source| error(names::PREFIXES, source))?;
        hash_rows(names::PREFIXES, map)
    }

    /// The ring of decisions, oldest first; a record that is being written is left out.
    pub fn decisions(&self) -> Result<Vec<DecisionValue>, KernelError> {
        decisions::read(&self.data(names::DECISIONS)?)
    }

    pub(super) fn data(&self, name: &str) -> Result<MapData, KernelError> {
        MapData::from_pin(self.directory.join(name)).map_err(|source| error(name, source))
    }
}

fn hash_rows<K, V>(name: &str, map: Map) -> Result<Vec<Row<V, K>>, KernelError>
where
    K: Pod + Ord,
    V: MapValue,
    V::Bytes: Pod,
{
    let hash: HashMap<_, K, V::Bytes> = map.try_into().map_err(|source| error(name, source))?;
    let mut rows = Vec::new();
    for entry in &hash {
        let (key, bytes) = entry.map_err(|source| error(name, source))?;
        let value = V::from_bytes(&bytes).ok_or_else(|| KernelError::Entry { name: name.to_owned() })?;
        rows.push(Row { key, value });
    }
    rows.sort_by_key(|row| row.key);
    Ok(rows)
}

/// Now, by the clock of every `_ns` field in the maps (`CLOCK_MONOTONIC`), in nanoseconds.
pub fn now_ns() -> u64 {
    monotonic_ns()
}

fn error(name: &str, source: MapError) -> KernelError {
    KernelError::Map { name: name.to_owned(), source }
}
