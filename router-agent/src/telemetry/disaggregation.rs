//! Metrics of prefill apart from decode.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::metrics::{Maker, Result, TTFT_BUCKETS_SECONDS};

/// What became of a request while there were workers for prefill stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoffOutcome {
    /// Prefilled on one worker, decoded on another.
    HandedOver,
    /// Too little of its prompt is uncached.
    Short,
    /// One worker has to do it alone: its API, or something that it asks for.
    Unsuitable,
    /// No worker for prefill stages can take it now.
    NoWorker,
    /// The prefill stage failed.
    PrefillFailed,
    /// The prefill stage left no KV blocks.
    NoBlocks,
    /// The decode stage failed before its first byte.
    DecodeFailed,
}

impl HandoffOutcome {
    const ALL: [(Self, &str); 7] = [
        (Self::HandedOver, "handed_over"),
        (Self::Short, "short"),
        (Self::Unsuitable, "unsuitable"),
        (Self::NoWorker, "no_prefill_worker"),
        (Self::PrefillFailed, "prefill_failed"),
        (Self::NoBlocks, "no_blocks"),
        (Self::DecodeFailed, "decode_failed"),
    ];
}

/// Requests by what became of them, and the times of the stages.
#[derive(Debug)]
pub struct DisaggregationMetrics {
    requests: [IntCounter; 7],
    /// Prefill stages: sent to answered.
    pub prefill: Histogram,
    /// Decode stages of streams: sent to first token.
    pub handoff: Histogram,
    /// Uncached tokens from which on a prompt is prefilled apart.
    pub tokens_min: IntGauge,
}

impl DisaggregationMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let requests = make.counters(
            "warmpath_disaggregation_requests_total",
            "Requests with a prompt while there were workers with the role prefill, by what became of them.",
            &["outcome"],
        )?;
        Ok(Self {
            requests: HandoffOutcome::ALL.map(|(_, label)| requests.with_label_values(&[label])),
            prefill: make.histogram(
                "warmpath_disaggregation_prefill_seconds",
                "Prefill stages: request sent to answer received.",
                TTFT_BUCKETS_SECONDS,
            )?,
            handoff: make.histogram(
                "warmpath_disaggregation_handoff_seconds",
                "Decode stages of streams: request sent to first token, the transfer of the KV blocks included.",
                TTFT_BUCKETS_SECONDS,
            )?,
            tokens_min: make.gauge(
                "warmpath_disaggregation_min_tokens",
                "Uncached prompt tokens from which on a prompt is prefilled apart: configured, or as learned.",
            )?,
        })
    }

    /// Counts a request.
    pub fn count(&self, outcome: HandoffOutcome) {
        if let Some(at) = HandoffOutcome::ALL.iter().position(|(other, _)| *other == outcome) {
            self.requests[at].inc();
        }
    }
}
