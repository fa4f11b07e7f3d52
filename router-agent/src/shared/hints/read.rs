//! Looks for hints: one round trip for all marks of a prompt.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Cmd, FromRedisValue, Value};
use tokio::sync::mpsc;

use super::{Ask, Hinted, now_s};
use crate::{
    config::Breaker as BreakerSettings,
    fleet::Fleet,
    shared::{
        SharedState,
        link::{CurrentLink, Fault},
    },
    telemetry::{SharedOutcome, SharedUse},
};

/// When no request waits for hints any more: after five in a row that had no answer in time. One tries again each second.
pub(super) const BREAKER: BreakerSettings = BreakerSettings {
    failures: 5,
    window: Duration::from_secs(10),
    volume: 20,
    error_share: 0.5,
    open_for: Duration::from_secs(1),
};

/// Answers the data threads, for ever.
pub(in crate::shared) async fn answer(
    state: Arc<SharedState>,
    fleet: Arc<Fleet>,
    link: CurrentLink,
    mut asked: mpsc::Receiver<Ask>,
) {
    while let Some(Ask { marks, reply }) = asked.recv().await {
        let (state, fleet, link) = (state.clone(), fleet.clone(), link.load_full());
        tokio::spawn(async move {
            let began = Instant::now();
            let limit = state.settings.hints.deadline;
            let commands = marks.iter().map(|(_, hash)| look(&state, *hash)).collect();
            let answers = link.run_within(commands, limit).await;
            let outcome = answers.as_ref().map_or_else(Fault::outcome, |_| SharedOutcome::Ok);
            state.metrics.shared.count(SharedUse::HintRead, outcome);
            if let Ok(answers) = answers {
                state.metrics.shared.round_trip.observe(began.elapsed().as_secs_f64());
                let depths = marks.iter().map(|(blocks, _)| *blocks);
                let oldest = now_s().saturating_sub(state.settings.hints.ttl.as_secs());
                let _ = reply.send(hinted(depths.zip(answers), oldest, &fleet)); // it waits no longer
            }
        });
    }
}

fn look(state: &SharedState, hash: u64) -> Cmd {
    let mut command = redis::cmd("ZRANGE");
    command.arg(state.hint_key(hash)).arg(0).arg(-1).arg("WITHSCORES");
    command
}

/// By worker the longest prefix that was sent there, of the fleet's workers.
fn hinted(answers: impl Iterator<Item = (u32, Value)>, oldest_s: u64, fleet: &Fleet) -> Hinted {
    let mut longest = HashMap::<String, (u32, u64)>::new();
    for (blocks, answer) in answers {
        let holders = Vec::<(String, f64)>::from_redis_value(answer).unwrap_or_default();
        for (worker, second) in holders {
            let second = second as u64;
            if second >= oldest_s {
                longest.insert(worker, (blocks, second)); // the shortest come first
            }
        }
    }
    let workers = fleet.workers();
    let here = workers.iter().filter_map(|worker| {
        let (blocks, second) = longest.get(&*worker.address_text)?;
        (*second >= worker.emptied_s()).then_some((worker.slot, *blocks))
    });
    here.collect()
}
