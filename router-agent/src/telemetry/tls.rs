//! Metrics of TLS on the data port.

use prometheus::{IntCounter, IntCounterVec};

use super::metrics::{Maker, Result};

/// See the module.
#[derive(Debug)]
pub struct TlsMetrics {
    handshakes: IntCounterVec,
    reloads: IntCounterVec,
}

impl TlsMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let metrics = Self {
            handshakes: make.counters(
                "warmpath_tls_handshakes_total",
                "TLS handshakes with clients, by result: ok, failed, timeout.",
                &["result"],
            )?,
            reloads: make.counters(
                "warmpath_tls_certificate_reloads_total",
                "Certificates read again because their files had changed, by result: ok, failed (the old one stays).",
                &["result"],
            )?,
        };
        // There from the start, at zero.
        for result in ["ok", "failed", "timeout"] {
            metrics.handshake(result);
        }
        for result in ["ok", "failed"] {
            metrics.reloads.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// A handshake has ended so.
    pub fn handshake(&self, result: &str) -> IntCounter {
        self.handshakes.with_label_values(&[result])
    }

    /// A certificate was read again, or could not be.
    pub fn reloaded(&self, ok: bool) {
        self.reloads.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }
}
