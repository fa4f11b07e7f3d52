//! Metrics of decision records: the decision log, and who follows decisions.

use prometheus::{IntCounter, IntGauge};

use super::metrics::{Maker, Result};

/// See the module.
#[derive(Debug, Clone)]
pub struct RecordMetrics {
    /// The decision log.
    pub log: DecisionLogMetrics,
    /// Connections that follow decisions now.
    pub followers: IntGauge,
    /// Events that they were too slow for.
    pub follow_lost: IntCounter,
}

/// The decision log's.
#[derive(Debug, Clone)]
pub struct DecisionLogMetrics {
    /// Records in the file.
    pub written: IntCounter,
    /// Records that found the queue full.
    pub dropped: IntCounter,
    /// Records that could not be written.
    pub failed: IntCounter,
    /// Bytes written.
    pub bytes: IntCounter,
    /// 1 while the file cannot be written.
    pub is_failing: IntGauge,
}

impl RecordMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let records = make.counters(
            "warmpath_decision_log_records_total",
            "Decision records for the log: written, dropped (the queue was full), failed (the file cannot be written).",
            &["result"],
        )?;
        Ok(Self {
            log: DecisionLogMetrics {
                written: records.with_label_values(&["written"]),
                dropped: records.with_label_values(&["dropped"]),
                failed: records.with_label_values(&["failed"]),
                bytes: make
                    .counter("warmpath_decision_log_bytes_total", "Bytes written to the decision log.")?,
                is_failing: make.gauge(
                    "warmpath_decision_log_failing",
                    "1 while the decision log cannot be written (the log says why).",
                )?,
            },
            followers: make.gauge("warmpath_decision_followers", "Connections that follow decisions.")?,
            follow_lost: make.counter(
                "warmpath_decision_follow_lost_total",
                "Events that followers of decisions were too slow for.",
            )?,
        })
    }
}
