//! `cache:`: the response cache.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::{ConfigError, file::set, schema};
use crate::limits::{self, CACHE_ENTRIES_MIN};

/// Whose answers are given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Nobody's.
    #[default]
    Off,
    /// Those to requests at temperature 0 or with a seed.
    Deterministic,
    /// All.
    All,
}

/// The response cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// For requests whose keys do not say.
    pub mode: CacheMode,
    /// Bytes of all entries.
    pub bytes_max: usize,
    /// Bytes of a request and its answer.
    pub entry_bytes_max: usize,
    /// Older entries are not used.
    pub ttl: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            mode: CacheMode::Off,
            bytes_max: limits::CACHE_BYTES_MAX,
            entry_bytes_max: limits::CACHE_ENTRY_BYTES_MAX,
            ttl: limits::CACHE_TTL,
        }
    }
}

impl Cache {
    /// Checks what the types cannot say.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let value = |key, message: String| Err(ConfigError::Value { key, message });
        let Self { bytes_max, entry_bytes_max, ttl, .. } = *self;
        if ttl.is_zero() {
            return value(
                "cache.ttl",
                "0s: must be longer than zero; mode: off switches the cache off".to_owned(),
            );
        }
        if entry_bytes_max < limits::CACHE_ENTRY_BYTES_MIN {
            return value(
                "cache.max_entry",
                format!("{entry_bytes_max} bytes: at least {}", limits::CACHE_ENTRY_BYTES_MIN),
            );
        }
        if entry_bytes_max > bytes_max / CACHE_ENTRIES_MIN {
            return value(
                "cache.max_entry",
                format!(
                    "{entry_bytes_max} bytes: at most 1/{CACHE_ENTRIES_MIN} of cache.max_bytes, {bytes_max}"
                ),
            );
        }
        Ok(())
    }
}

/// The section as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CacheFile {
    /// Whose answers are given again, for keys that do not say: nobody's, those to requests at temperature 0 or with a
    /// seed, or all.
    mode: Option<CacheMode>,
    /// All entries together.
    #[schemars(with = "Option<schema::BytesText>")]
    max_bytes: Option<ByteSize>,
    /// A request and its answer together; longer ones are not cached. At most an eighth of `max_bytes`.
    #[schemars(with = "Option<schema::BytesText>")]
    max_entry: Option<ByteSize>,
    /// Older entries are not used.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    ttl: Option<Duration>,
}

impl CacheFile {
    pub(super) fn apply(self, cache: &mut Cache) {
        let bytes = |size: ByteSize| size.as_u64() as usize;
        set(&mut cache.mode, self.mode);
        set(&mut cache.bytes_max, self.max_bytes.map(bytes));
        set(&mut cache.entry_bytes_max, self.max_entry.map(bytes));
        set(&mut cache.ttl, self.ttl);
    }
}
