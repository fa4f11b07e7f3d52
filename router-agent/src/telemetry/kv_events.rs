//! Metrics of KV events.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::metrics::{Maker, Result};
use crate::fleet::{KvState, Worker};

/// What KV events do; all zero where there are none.
#[derive(Debug)]
pub struct KvEventMetrics {
    state: IntGaugeVec,
    blocks: IntGaugeVec,
    batches: IntCounterVec,
    events: IntCounterVec,
    gaps: IntCounterVec,
    replays: IntCounterVec,
    clears: IntCounterVec,
    hash_checks: IntCounterVec,
    /// Predictions whose blocks the worker then said it holds.
    pub predictions_confirmed: IntCounter,
    /// Predictions of which at least one block never came.
    pub predictions_expired: IntCounter,
    /// Requests not predicted, there being too many already.
    pub predictions_refused: IntCounter,
    /// Choices by what the chosen worker said of its own cache.
    pub matches_exact: IntCounter,
    /// Choices by what was sent there.
    pub matches_approximate: IntCounter,
}

/// The counters of one worker, looked up once.
#[derive(Debug, Clone)]
pub struct KvWorkerMetrics {
    /// Messages applied.
    pub batches: IntCounter,
    /// `BlockStored`.
    pub stored: IntCounter,
    /// `BlockRemoved`.
    pub removed: IntCounter,
    /// `AllBlocksCleared`.
    pub cleared: IntCounter,
    /// Of another memory or KV cache group, or of a type that is not known.
    pub skipped: IntCounter,
    /// Behind a block that is not known.
    pub orphaned: IntCounter,
    /// Could not be read.
    pub undecodable: IntCounter,
    /// Numbers missing in the stream, had again by replay.
    pub gaps_repaired: IntCounter,
    /// Numbers missing for good.
    pub gaps_unrepaired: IntCounter,
    /// Replays that reached back far enough.
    pub replays_complete: IntCounter,
    /// Replays whose beginning the worker no longer had.
    pub replays_cut: IntCounter,
    /// Replays without an answer.
    pub replays_failed: IntCounter,
    /// Caches forgotten because of a reset that no event told of.
    pub cleared_by_scrape: IntCounter,
    /// Caches forgotten because the engine sleeps.
    pub cleared_asleep: IntCounter,
    /// Caches forgotten because the process is another one.
    pub cleared_restart: IntCounter,
    /// Caches forgotten because events add up to more blocks than there are.
    pub cleared_overflow: IntCounter,
    /// Hashes that came out as published.
    pub hashes_match: IntCounter,
    /// Hashes that did not.
    pub hashes_mismatch: IntCounter,
    /// Hashes that cannot be recomputed.
    pub hashes_unknown: IntCounter,
}

impl KvEventMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let predictions = make.counters(
            "warmpath_kv_predictions_total",
            "Prompts expected in a worker's cache before its events say so, by what came of it.",
            &["result"],
        )?;
        let matches = make.counters(
            "warmpath_matches_total",
            "Requests routed by prefix, by how the chosen worker's cached tokens were known.",
            &["match"],
        )?;
        Ok(Self {
            state: make.gauges(
                "warmpath_kv_events_state",
                "A worker's KV events: 1 for the state that they are in.",
                &["worker", "state"],
            )?,
            blocks: make.gauges(
                "warmpath_kv_blocks",
                "Token blocks that the index holds for a worker, by its KV events and by predictions.",
                &["worker"],
            )?,
            batches: make.counters(
                "warmpath_kv_event_batches_total",
                "Messages of KV events applied, replayed ones included.",
                &["worker"],
            )?,
            events: make.counters(
                "warmpath_kv_events_total",
                "KV events by what they say, or by why they could not be used.",
                &["worker", "event"],
            )?,
            gaps: make.counters(
                "warmpath_kv_event_gaps_total",
                "Times that messages were missing in a worker's stream.",
                &["worker", "result"],
            )?,
            replays: make.counters(
                "warmpath_kv_event_replays_total",
                "Replays asked for, by whether they reached back far enough.",
                &["worker", "result"],
            )?,
            clears: make.counters(
                "warmpath_kv_cache_forgotten_total",
                "Times that what a worker had said of its cache was dropped without an event that says so.",
                &["worker", "reason"],
            )?,
            hash_checks: make.counters(
                "warmpath_kv_hash_checks_total",
                "Published block hashes, recomputed from their tokens where that is possible.",
                &["worker", "result"],
            )?,
            predictions_confirmed: predictions.with_label_values(&["confirmed"]),
            predictions_expired: predictions.with_label_values(&["expired"]),
            predictions_refused: predictions.with_label_values(&["refused"]),
            matches_exact: matches.with_label_values(&["exact"]),
            matches_approximate: matches.with_label_values(&["approximate"]),
        })
    }

    /// The handles of one worker.
    pub fn worker(&self, name: &str) -> KvWorkerMetrics {
        let event = |event: &str| self.events.with_label_values(&[name, event]);
        let gap = |result: &str| self.gaps.with_label_values(&[name, result]);
        let replay = |result: &str| self.replays.with_label_values(&[name, result]);
        let clear = |reason: &str| self.clears.with_label_values(&[name, reason]);
        let check = |result: &str| self.hash_checks.with_label_values(&[name, result]);
        KvWorkerMetrics {
            batches: self.batches.with_label_values(&[name]),
            stored: event("stored"),
            removed: event("removed"),
            cleared: event("cleared"),
            skipped: event("skipped"),
            orphaned: event("orphaned"),
            undecodable: event("undecodable"),
            gaps_repaired: gap("repaired"),
            gaps_unrepaired: gap("unrepaired"),
            replays_complete: replay("complete"),
            replays_cut: replay("cut"),
            replays_failed: replay("failed"),
            cleared_by_scrape: clear("reset"),
            cleared_asleep: clear("asleep"),
            cleared_restart: clear("restart"),
            cleared_overflow: clear("overflow"),
            hashes_match: check("match"),
            hashes_mismatch: check("mismatch"),
            hashes_unknown: check("unknown"),
        }
    }

    /// Copies a worker's state and the blocks that the index of tokens holds for it into its gauges.
    pub fn refresh(&self, worker: &Worker, blocks: u64) {
        let name = worker.name.as_str();
        self.blocks.with_label_values(&[name]).set(blocks as i64);
        let now = worker.kv_cache.state();
        for state in KvState::ALL {
            self.state.with_label_values(&[name, state.label()]).set(i64::from(state == now));
        }
    }
}
