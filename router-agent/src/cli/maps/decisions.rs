//! `warmpath maps decisions`: the last ones, or those on one request.
//!
//! JSON has every field. The table has those that fit on a screen, with the workers' names; the whole of one request's
//! decisions, field by field, is what `--request` shows.

use std::collections::HashMap;

use router_common::{
    decisions::{DecisionValue, NO_WORKER},
    workers::WorkerValue,
};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::table::{Line, line, until_nul};
use crate::kernel::{KernelError, PinnedMaps};

/// Decisions shown if nobody says how many.
const LAST: usize = 20;

/// The columns of the table.
const SHOWN: [&str; 12] = [
    "decided_ns",
    "request_id",
    "attempt",
    "worker",
    "reason",
    "matched_tokens",
    "prompt_tokens",
    "queued_prefill_tokens",
    "batch",
    "cost",
    "runner_up",
    "runner_up_cost",
];

/// Which decisions.
pub(super) struct Wanted<'a> {
    pub(super) last: Option<usize>,
    pub(super) request: Option<&'a str>,
}

/// Oldest first.
pub(super) fn lines(
    maps: &PinnedMaps,
    wanted: &Wanted<'_>,
    json: bool,
    now_ns: u64,
) -> Result<Vec<Line>, KernelError> {
    let names: HashMap<u32, String> = maps
        .rows::<WorkerValue>(router_common::names::WORKERS)?
        .iter()
        .map(|row| (row.key, until_nul(&row.value.name)))
        .collect();
    let mut decisions = maps.decisions()?;
    let whole = json || wanted.request.is_some();
    select(&mut decisions, wanted);
    Ok(decisions.iter().map(|decision| decision_line(decision, &names, whole, now_ns)).collect())
}

fn select(decisions: &mut Vec<DecisionValue>, wanted: &Wanted<'_>) {
    if let Some(id) = wanted.request {
        let hash = xxh3_64(id.as_bytes());
        decisions.retain(|decision| decision.request_hash == hash);
    }
    let last = wanted.last.unwrap_or(if wanted.request.is_some() { usize::MAX } else { LAST });
    decisions.drain(..decisions.len().saturating_sub(last));
}

fn decision_line(decision: &DecisionValue, names: &HashMap<u32, String>, whole: bool, now_ns: u64) -> Line {
    let mut line = line(None, decision, now_ns);
    // For readers of the ring itself: here, it says the same as `sequence`.
    line.retain(|(name, ..)| if whole { *name != "claimed" } else { SHOWN.contains(name) });
    for (name, text, value) in &mut line {
        let index = match *name {
            "worker" => decision.worker,
            "runner_up" => decision.runner_up,
            _ => continue,
        };
        if index == NO_WORKER {
            (*text, *value) = ("-".to_owned(), Value::Null);
        } else if let Some(name) = names.get(&index) {
            text.clone_from(name);
        }
    }
    if !whole {
        line.sort_by_key(|(name, ..)| SHOWN.iter().position(|shown| shown == name));
    }
    line
}
