//! Metrics of discovery: a source's series are made when it is configured and go with it.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::metrics::{Maker, Result};

const STATES: [&str; 3] = ["ready", "unready", "missing"];
const RESULTS: [&str; 2] = ["ok", "failed"];

/// See the module.
#[derive(Debug)]
pub struct DiscoveryMetrics {
    workers: IntGaugeVec,
    up: IntGaugeVec,
    answers: IntCounterVec,
    last_answer: IntGaugeVec,
    left_out: IntGauge,
}

/// Those of one source.
#[derive(Debug)]
pub struct SourceMetrics {
    workers: [IntGauge; 3],
    up: IntGauge,
    answers: [IntCounter; 2],
    last_answer: IntGauge,
}

impl DiscoveryMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        Ok(Self {
            workers: make.gauges(
                "warmpath_discovery_workers",
                "Workers that a source has named: ready, unready, missing (not named now, and still used).",
                &["source", "state"],
            )?,
            up: make.gauges(
                "warmpath_discovery_up",
                "1 while a source answers; 0: what it said last holds.",
                &["source"],
            )?,
            answers: make.counters(
                "warmpath_discovery_answers_total",
                "Answers of a source and changes that it told, by result: ok, failed.",
                &["source", "result"],
            )?,
            last_answer: make.gauges(
                "warmpath_discovery_last_answer_timestamp_seconds",
                "When a source last answered; 0 before its first answer.",
                &["source"],
            )?,
            left_out: make.gauge(
                "warmpath_discovery_left_out_workers",
                "Discovered workers that the fleet has no room for.",
            )?,
        })
    }

    /// The series of a source.
    pub fn of(&self, source: &str) -> SourceMetrics {
        SourceMetrics {
            workers: STATES.map(|state| self.workers.with_label_values(&[source, state])),
            up: self.up.with_label_values(&[source]),
            answers: RESULTS.map(|result| self.answers.with_label_values(&[source, result])),
            last_answer: self.last_answer.with_label_values(&[source]),
        }
    }

    /// A source is gone, and its series with it.
    pub fn forget(&self, source: &str) {
        for state in STATES {
            let _ = self.workers.remove_label_values(&[source, state]);
        }
        for result in RESULTS {
            let _ = self.answers.remove_label_values(&[source, result]);
        }
        let _ = self.up.remove_label_values(&[source]);
        let _ = self.last_answer.remove_label_values(&[source]);
    }

    /// So many workers find no room.
    pub fn left_out(&self, count: usize) {
        let before = self.left_out.get();
        self.left_out.set(count as i64);
        if count > 0 && before != count as i64 {
            tracing::warn!(count, "discovery: the fleet is full: these workers are left out");
        }
    }
}

impl SourceMetrics {
    /// It has answered.
    pub fn answered(&self) {
        let [ok, _] = &self.answers;
        ok.inc();
        self.up.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_answer.set(now.as_secs() as i64);
    }

    /// It could not be asked, or said what cannot be used.
    pub fn failed(&self) {
        let [_, failed] = &self.answers;
        failed.inc();
        self.up.set(0);
    }

    /// Its workers now: ready, unready, missing.
    pub fn count(&self, counts: [usize; 3]) {
        for (gauge, count) in self.workers.iter().zip(counts) {
            gauge.set(count as i64);
        }
    }
}
