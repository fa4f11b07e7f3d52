//! Metrics of traces.

use prometheus::IntCounter;

use super::metrics::{Maker, Result};

/// See the module.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    /// Spans that the collector has taken.
    pub exported: IntCounter,
    /// Spans that it has not.
    pub failed: IntCounter,
    /// Traces that found the queue full.
    pub dropped: IntCounter,
}

impl TraceMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let spans = make.counters(
            "warmpath_trace_spans_total",
            "Spans for the collector: exported, failed (it did not take them).",
            &["result"],
        )?;
        Ok(Self {
            exported: spans.with_label_values(&["exported"]),
            failed: spans.with_label_values(&["failed"]),
            dropped: make
                .counter("warmpath_traces_dropped_total", "Traced requests that found the queue full.")?,
        })
    }
}
