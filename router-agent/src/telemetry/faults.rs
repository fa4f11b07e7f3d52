//! Metrics of what takes a worker out of the fleet and brings it back: breaker, outlier ejection, hung engines.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::metrics::{Maker, Result};
use crate::fleet::{Pulse, Standout, Worker};

/// All workers'.
#[derive(Debug)]
pub struct FaultMetrics {
    breaker_opened: IntCounterVec,
    ejected: IntGaugeVec,
    ejections: IntCounterVec,
    pulse: IntGaugeVec,
    probes: IntCounterVec,
}

impl FaultMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        Ok(Self {
            breaker_opened: make.counters(
                "warmpath_worker_breaker_opened_total",
                "Times that a worker's circuit breaker opened.",
                &["worker"],
            )?,
            ejected: make.gauges(
                "warmpath_worker_ejected",
                "Whether a worker is left out as an outlier: 1 yes, 0 no.",
                &["worker"],
            )?,
            ejections: make.counters(
                "warmpath_worker_ejections_total",
                "Times that a worker was left out because it stood out from the others, by what in.",
                &["worker", "reason"],
            )?,
            pulse: make.gauges(
                "warmpath_worker_pulse",
                "Whether a worker's engine works: 1 for the state that it is in.",
                &["worker", "state"],
            )?,
            probes: make.counters(
                "warmpath_worker_probes_total",
                "One-token probes of a worker that was silent, by what came of them.",
                &["worker", "result"],
            )?,
        })
    }

    pub(super) fn worker(&self, name: &str) -> WorkerFaultMetrics {
        let probes = |result| self.probes.with_label_values(&[name, result]);
        WorkerFaultMetrics {
            breaker_opened: self.breaker_opened.with_label_values(&[name]),
            ejections: Standout::ALL.map(|why| self.ejections.with_label_values(&[name, why.label()])),
            probes_passed: probes("passed"),
            probes_failed: probes("failed"),
            probes_refused: probes("refused"),
            probes_overtaken: probes("overtaken"),
        }
    }

    pub(super) fn refresh(&self, worker: &Worker) {
        let name = worker.name.as_str();
        self.ejected.with_label_values(&[name]).set(i64::from(worker.record.is_ejected()));
        let pulse = worker.liveness.pulse();
        for state in Pulse::ALL {
            self.pulse.with_label_values(&[name, state.label()]).set(i64::from(state == pulse));
        }
    }
}

/// One worker's, looked up once.
#[derive(Debug)]
pub struct WorkerFaultMetrics {
    /// Its breaker opened.
    pub breaker_opened: IntCounter,
    ejections: [IntCounter; 2],
    /// It gave a token.
    pub probes_passed: IntCounter,
    /// It did not.
    pub probes_failed: IntCounter,
    /// It cannot be asked: a 4xx.
    pub probes_refused: IntCounter,
    /// It said something to somebody else before it answered.
    pub probes_overtaken: IntCounter,
}

impl WorkerFaultMetrics {
    /// It was left out.
    pub fn ejected(&self, why: Standout) {
        self.ejections[why as usize].inc();
    }
}
