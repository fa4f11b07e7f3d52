//! Metrics of the LMCache controller's answers.

use prometheus::{Histogram, IntCounter, IntGauge, IntGaugeVec};

use super::metrics::{Maker, Result};

/// From a cache in the same rack to the longest that a request waits.
const LOOKUP_BUCKETS_SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5];

/// How a lookup went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupOutcome {
    Answered,
    /// Not within the time.
    Late,
    /// No connection, or no sense.
    Failed,
    /// It had failed too often just before.
    NotAsked,
    /// The prompt's tokens are not known.
    NoTokens,
}

impl LookupOutcome {
    const ALL: [(Self, &str); 5] = [
        (Self::Answered, "answered"),
        (Self::Late, "late"),
        (Self::Failed, "failed"),
        (Self::NotAsked, "not_asked"),
        (Self::NoTokens, "no_tokens"),
    ];
}

/// Lookups, and what the instances hold.
#[derive(Debug)]
pub struct LmcacheMetrics {
    lookups: [IntCounter; 5],
    /// How long lookups took, late ones included.
    pub seconds: Histogram,
    keys: IntGaugeVec,
    /// Instances that are no worker here.
    pub strangers: IntGauge,
}

impl LmcacheMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let lookups = make.counters(
            "warmpath_lmcache_lookups_total",
            "Prompts that the LMCache controller was to be asked for, by outcome.",
            &["outcome"],
        )?;
        Ok(Self {
            lookups: LookupOutcome::ALL.map(|(_, label)| lookups.with_label_values(&[label])),
            seconds: make.histogram(
                "warmpath_lmcache_lookup_seconds",
                "Time of a lookup at the LMCache controller.",
                LOOKUP_BUCKETS_SECONDS,
            )?,
            keys: make.gauges(
                "warmpath_lmcache_keys",
                "Chunks that the LMCache controller counts for a worker.",
                &["worker"],
            )?,
            strangers: make.gauge(
                "warmpath_lmcache_unknown_instances",
                "Instances that the LMCache controller lists and that are no worker of this gateway.",
            )?,
        })
    }

    /// Counts a lookup.
    pub fn count(&self, outcome: LookupOutcome) {
        if let Some(at) = LookupOutcome::ALL.iter().position(|(other, _)| *other == outcome) {
            self.lookups[at].inc();
        }
    }

    /// Notes what a worker holds.
    pub fn set_keys(&self, worker: &str, keys: u64) {
        self.keys.with_label_values(&[worker]).set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}
