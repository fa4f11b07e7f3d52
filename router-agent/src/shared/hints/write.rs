//! Writes down what was sent where: in batches, each load interval.

use std::{collections::HashSet, sync::Arc};

use redis::Cmd;
use tokio::time::{MissedTickBehavior, interval};

use super::now_s;
use crate::{
    shared::{
        SharedState,
        link::{CurrentLink, Fault},
    },
    telemetry::{SharedCondition, SharedOutcome, SharedUse},
};

/// Workers that are remembered for one prefix: those that were sent it last.
const HOLDERS_MAX: i64 = 8;
/// Prefixes of one batch: three commands each.
const BATCH: usize = 512;

/// Writes for ever.
pub(in crate::shared) async fn write(state: Arc<SharedState>, link: CurrentLink) {
    let Some(hints) = &state.hints else { return };
    let mut ticks = interval(state.settings.load_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let notes = std::mem::take(&mut *hints.notes.lock());
        let mut written = HashSet::new();
        let of_all = notes
            .waiting
            .iter()
            .flat_map(|(worker, hashes)| hashes.iter().map(move |hash| (*hash, &*worker.address_text)));
        let pairs: Vec<_> = of_all.filter(|pair| written.insert(*pair)).collect();
        for batch in pairs.chunks(BATCH) {
            let outcome = if state.condition() == SharedCondition::Up {
                let commands = batch.iter().flat_map(|(hash, worker)| note(&state, *hash, worker));
                let wrote = link.load_full().run(commands.collect()).await;
                wrote.as_ref().map_or_else(Fault::outcome, |_| SharedOutcome::Ok)
            } else {
                SharedOutcome::Dropped
            };
            state.metrics.shared.count(SharedUse::HintWrite, outcome);
        }
    }
}

/// The worker among the last few of this prefix.
fn note(state: &SharedState, hash: u64, worker: &str) -> [Cmd; 3] {
    let key = state.hint_key(hash);
    let command = |name| {
        let mut command = redis::cmd(name);
        command.arg(&key);
        command
    };
    let (mut add, mut trim, mut expire) = (command("ZADD"), command("ZREMRANGEBYRANK"), command("EXPIRE"));
    add.arg(now_s()).arg(worker);
    trim.arg(0).arg(-HOLDERS_MAX - 1);
    expire.arg(state.settings.hints.ttl.as_secs());
    [add, trim, expire]
}
