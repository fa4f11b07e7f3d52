//! What `top` shows, wherever it comes from.

use router_common::latency::BUCKETS;

use crate::admin::{Buckets, Percentiles};

/// A gateway at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// Where the figures come from.
    pub(super) source: String,
    /// Seconds that the gateway has run.
    pub(super) uptime_s: Option<f64>,
    /// Requests per second, all workers together.
    pub(super) requests_per_s: Option<f64>,
    pub(super) workers: Vec<WorkerLine>,
    /// The longest under way first.
    pub(super) streams: Vec<StreamLine>,
    /// The most used first.
    pub(super) prefixes: Vec<PrefixLine>,
    /// The newest first.
    pub(super) decisions: Vec<DecisionLine>,
}

/// One worker.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerLine {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) breaker: String,
    pub(super) in_flight: u64,
    /// 0 to 1.
    pub(super) kv_cache: f64,
    pub(super) queued_prefill_tokens: u64,
    pub(super) requests_per_s: Option<f64>,
    pub(super) first_token: Times,
    pub(super) between_tokens: Times,
}

/// Seconds; none while nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Times {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

impl Times {
    pub(super) fn of(buckets: &Buckets) -> Self {
        let Percentiles { p50, p99, .. } = Percentiles::of(buckets);
        Self { p50, p99 }
    }
}

/// Nothing measured.
pub(super) const NO_TIMES: Buckets = [0; BUCKETS];

/// One response under way.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamLine {
    pub(super) client: String,
    pub(super) worker: String,
    pub(super) moved_by: String,
    pub(super) age_s: f64,
    pub(super) first_token_s: Option<f64>,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// One prefix.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefixLine {
    pub(super) hash: String,
    pub(super) blocks: u64,
    pub(super) hits: u64,
    pub(super) idle_s: f64,
    pub(super) workers: Vec<String>,
}

/// One decision.
#[derive(Debug, Clone, Default)]
pub(super) struct DecisionLine {
    pub(super) age_s: f64,
    pub(super) request_id: String,
    pub(super) worker: String,
    pub(super) reason: String,
    pub(super) prompt_tokens: u64,
    pub(super) matched_tokens: u64,
    pub(super) new_tokens: u64,
}
