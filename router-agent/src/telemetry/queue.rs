//! Metrics of what waits for a worker, and of what is not let in.

use prometheus::{Gauge, Histogram, IntCounterVec, IntGauge};

use super::metrics::{Maker, Result};

/// From a place that is free at once to the usual limit of the queue.
const WAIT_BUCKETS_SECONDS: &[f64] = &[0.001, 0.005, 0.02, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];

/// Why a request is not let through.
const REASONS: [&str; 7] = [
    "queue_full",
    "pushed_out",
    "queue_timeout",
    "too_late",
    "no_worker",
    "deadline_exceeded",
    "bodies_too_large",
];

/// The queue, and the memory of request bodies.
#[derive(Debug)]
pub struct QueueMetrics {
    /// Requests that wait now.
    pub length: IntGauge,
    /// Prompt tokens that it lets through per second.
    pub drain_rate: Gauge,
    /// Waits of requests that were let through.
    pub wait: Histogram,
    refused: IntCounterVec,
    /// Bytes of request bodies in memory.
    pub body_bytes: IntGauge,
}

impl QueueMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let refused = make.counters(
            "warmpath_refused_total",
            "Requests that were not let through to a worker, by why.",
            &["reason"],
        )?;
        for reason in REASONS {
            refused.with_label_values(&[reason]);
        }
        Ok(Self {
            length: make.gauge("warmpath_queue_requests", "Requests that wait for a worker.")?,
            drain_rate: make.float_gauge(
                "warmpath_queue_drain_tokens_per_second",
                "Prompt tokens that the queue lets through, while anybody waits; 0 while not known.",
            )?,
            wait: make.histogram(
                "warmpath_queue_wait_seconds",
                "Waiting for a worker, of requests that had to and got one.",
                WAIT_BUCKETS_SECONDS,
            )?,
            refused,
            body_bytes: make.gauge("warmpath_request_body_bytes", "Memory of request bodies.")?,
        })
    }

    /// A request was not let through.
    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}
