//! Metrics of hooks.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

use super::metrics::{Maker, Result};

/// From a service on the same host to a patient timeout.
const BUCKETS_SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// What came of a request at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookOutcome {
    /// It goes on as it is.
    Allowed,
    /// It was refused.
    Rejected,
    /// It goes on changed.
    Transformed,
    /// No answer in time.
    Late,
    /// No connection, or no sense.
    Failed,
    /// The hook had failed too often just before.
    NotAsked,
    /// It had as many requests as it may.
    Busy,
    /// The body is longer than what it is sent.
    TooLong,
}

impl HookOutcome {
    const ALL: [Self; 8] = [
        Self::Allowed,
        Self::Rejected,
        Self::Transformed,
        Self::Late,
        Self::Failed,
        Self::NotAsked,
        Self::Busy,
        Self::TooLong,
    ];

    /// The name in metrics and in `x-warmpath-hooks`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Rejected => "rejected",
            Self::Transformed => "transformed",
            Self::Late => "late",
            Self::Failed => "failed",
            Self::NotAsked => "not_asked",
            Self::Busy => "busy",
            Self::TooLong => "too_long",
        }
    }
}

/// The families; a hook's series are made when it is configured and go with it.
#[derive(Debug)]
pub struct HookMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
}

/// Those of one hook, looked up once.
#[derive(Debug)]
pub struct HookSeries {
    requests: [IntCounter; 8],
    /// From the question to the answer, or to the end of patience.
    pub seconds: Histogram,
}

impl HookMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        Ok(Self {
            requests: make.counters(
                "warmpath_hook_requests_total",
                "Requests that a hook was to see, by what came of it.",
                &["hook", "outcome"],
            )?,
            seconds: make.histograms(
                "warmpath_hook_seconds",
                "Time of a hook's answer, late ones up to the timeout.",
                &["hook"],
                BUCKETS_SECONDS,
            )?,
        })
    }

    /// The series of a hook.
    pub fn of(&self, hook: &str) -> HookSeries {
        let requests = |outcome: HookOutcome| self.requests.with_label_values(&[hook, outcome.label()]);
        HookSeries {
            requests: HookOutcome::ALL.map(requests),
            seconds: self.seconds.with_label_values(&[hook]),
        }
    }

    /// A hook is gone, and its series with it.
    pub fn forget(&self, hook: &str) {
        for outcome in HookOutcome::ALL {
            let _ = self.requests.remove_label_values(&[hook, outcome.label()]);
        }
        let _ = self.seconds.remove_label_values(&[hook]);
    }
}

impl HookSeries {
    /// Counts a request.
    pub fn count(&self, outcome: HookOutcome) {
        self.requests[outcome as usize].inc();
    }
}
