//! What the simulation itself counts, for tests: beside, not in, vLLM's metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number of things that exist now; each holds a guard.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn enter(&self) -> GaugeGuard<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        GaugeGuard(&self.0)
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

pub(crate) struct GaugeGuard<'a>(&'a AtomicU64);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: Counter,
    pub(crate) aborts: Counter,
    pub(crate) accepted: Counter,
    pub(crate) open: Gauge,
    pub(crate) generating: Gauge,
}

impl Stats {
    /// Counters back to zero; gauges count what exists.
    pub(crate) fn reset(&self) {
        for counter in [&self.requests, &self.aborts, &self.accepted] {
            counter.0.store(0, Ordering::Relaxed);
        }
    }
}

/// A snapshot of one worker's counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SimStats {
    /// HTTP requests of any kind.
    pub requests: u64,
    /// Generation requests whose client left before the end.
    pub aborts: u64,
    pub connections_accepted: u64,
    pub connections_open: u64,
    /// Generation requests under way.
    pub generating: u64,
    /// Sequences in the engine's batch.
    pub running: u64,
    /// Sequences that wait for it.
    pub waiting: u64,
    /// Sequences that ended by themselves.
    pub finished: u64,
    pub preemptions: u64,
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    pub generated_tokens: u64,
    /// KV blocks that hold reusable content.
    pub cached_blocks: u64,
    /// KV blocks in use, 0..=1.
    pub kv_usage: f64,
    /// Requests whose KV blocks are kept for other workers now.
    pub kv_kept: u64,
    /// Requests whose KV blocks were fetched by another worker.
    pub kv_sent: u64,
    /// Requests whose KV blocks were fetched from another worker.
    pub kv_loaded: u64,
    /// Requests whose KV blocks nobody fetched in time.
    pub kv_expired: u64,
    /// KV event batches published.
    pub event_batches: u64,
}
