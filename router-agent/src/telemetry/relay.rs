//! Metrics of response bodies, by the way that they take to the client.

use prometheus::{IntCounter, IntGaugeVec};

use super::metrics::{Maker, Result};
use crate::kernel::relay::Stop;

/// A way of moving bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayPath {
    /// This process.
    Copy,
    /// The kernel, from a worker on this host.
    Bypass,
    /// The kernel, from this gateway's socket to the worker.
    Splice,
}

impl RelayPath {
    /// For metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Bypass => "bypass",
            Self::Splice => "splice",
        }
    }
}

/// What the kernel moved on one way.
#[derive(Debug)]
pub struct MovedMetrics {
    /// Responses whose body it was given, for all or a part of it.
    pub responses: IntCounter,
    /// Bytes of them that it moved past this process.
    pub bytes: IntCounter,
}

/// Bodies by the way they took.
#[derive(Debug)]
pub struct RelayMetrics {
    available: IntGaugeVec,
    /// Responses whose body was copied from its first byte to its last.
    pub copy: IntCounter,
    bypass: MovedMetrics,
    splice: MovedMetrics,
    /// Times that a stream was lent to the kernel.
    pub lent: IntCounter,
    returned: [IntCounter; 6],
    /// Redirected bytes that the client's socket did not take as they were counted: always a defect.
    pub mismatches: IntCounter,
}

impl RelayMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let responses = make.counters(
            "warmpath_relay_responses_total",
            "Responses by the way their body takes to the client.",
            &["path"],
        )?;
        let returned = make.counters(
            "warmpath_relay_returns_total",
            "Streams that the kernel gave back, by reason (end: the body is complete).",
            &["reason"],
        )?;
        let bytes = make.counters(
            "warmpath_relay_bytes_total",
            "Bytes of response bodies that the kernel moved past this process.",
            &["path"],
        )?;
        let moved = |path: RelayPath| MovedMetrics {
            responses: responses.with_label_values(&[path.label()]),
            bytes: bytes.with_label_values(&[path.label()]),
        };
        Ok(Self {
            available: make.gauges(
                "warmpath_relay_available",
                "Ways of moving response bodies: 1 usable, 0 not (the log says why).",
                &["path"],
            )?,
            copy: responses.with_label_values(&["copy"]),
            bypass: moved(RelayPath::Bypass),
            splice: moved(RelayPath::Splice),
            lent: make.counter(
                "warmpath_relay_lent_total",
                "Times that a stream was offered to the kernel; more than the responses where clients are slow.",
            )?,
            returned: RETURNS.map(|stop| returned.with_label_values(&[stop.label()])),
            mismatches: make.counter(
                "warmpath_relay_mismatches_total",
                "Streams whose redirected bytes the client's socket did not take as counted: always a defect.",
            )?,
        })
    }

    /// Notes whether a path can be used.
    pub fn available(&self, path: RelayPath, available: bool) {
        self.available.with_label_values(&[path.label()]).set(i64::from(available));
    }

    /// What the kernel did on one of its ways. For copies, that of the bypass: nobody asks.
    pub fn by(&self, path: RelayPath) -> &MovedMetrics {
        if path == RelayPath::Splice { &self.splice } else { &self.bypass }
    }

    /// Streams that the kernel gave back for this reason.
    pub fn returned(&self, stop: Stop) -> &IntCounter {
        &self.returned[RETURNS.iter().position(|other| *other == stop).unwrap_or_default()]
    }
}

const RETURNS: [Stop; 6] = [Stop::End, Stop::Room, Stop::Framing, Stop::ErrorEvent, Stop::Fast, Stop::Failed];
