//! Metrics of the response cache.

use prometheus::{IntCounter, IntGauge};

use super::metrics::{Maker, Result};

/// What the cache was to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheOutcome {
    /// The answer was there.
    Hit,
    /// A worker was asked.
    Miss,
    /// Somebody else was asking for the same.
    Shared,
    /// The request is none that is cached.
    Bypass,
}

impl CacheOutcome {
    const ALL: [Self; 4] = [Self::Hit, Self::Miss, Self::Shared, Self::Bypass];

    /// The name in metrics and in `x-warmpath-cache`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Shared => "shared",
            Self::Bypass => "bypass",
        }
    }
}

/// Requests, and what is held.
#[derive(Debug)]
pub struct CacheMetrics {
    requests: [IntCounter; 4],
    /// Bytes of answers that were given again.
    pub served_bytes: IntCounter,
    /// Entries now.
    pub entries: IntGauge,
    /// Their bytes.
    pub entry_bytes: IntGauge,
    /// Bytes of answers on their way to those who share them.
    pub in_flight_bytes: IntGauge,
    /// Entries that had to go for others.
    pub evicted_for_room: IntCounter,
    /// Entries that were found to be too old.
    pub expired: IntCounter,
    /// Entries that an operator dropped.
    pub cleared: IntCounter,
}

impl CacheMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let requests = make.counters(
            "warmpath_cache_requests_total",
            "Requests by what the response cache was to them, where it is on.",
            &["result"],
        )?;
        let evictions = make.counters(
            "warmpath_cache_evictions_total",
            "Entries that the response cache dropped, by why.",
            &["reason"],
        )?;
        let bytes = make.gauges(
            "warmpath_cache_bytes",
            "Memory of the response cache: of entries, and of answers on their way to those who share them.",
            &["of"],
        )?;
        Ok(Self {
            requests: CacheOutcome::ALL.map(|outcome| requests.with_label_values(&[outcome.label()])),
            served_bytes: make.counter(
                "warmpath_cache_served_bytes_total",
                "Bytes of bodies that the response cache gave again.",
            )?,
            entries: make.gauge("warmpath_cache_entries", "Entries of the response cache.")?,
            entry_bytes: bytes.with_label_values(&["entries"]),
            in_flight_bytes: bytes.with_label_values(&["in_flight"]),
            evicted_for_room: evictions.with_label_values(&["room"]),
            expired: evictions.with_label_values(&["expired"]),
            cleared: evictions.with_label_values(&["cleared"]),
        })
    }

    /// Counts a request.
    pub fn count(&self, outcome: CacheOutcome) {
        self.requests[outcome as usize].inc();
    }
}
