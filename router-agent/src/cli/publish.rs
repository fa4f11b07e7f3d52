//! What the control thread publishes, again and again: the fleet in the BPF map `workers`, a sample of the prefix index in
//! `prefixes` and for the admin port. Both go on when a publication fails, and say so once.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use router_common::{limits::PREFIXES_MAX, prefixes::PrefixValue};

use crate::{
    fleet,
    gateway::Shared,
    index::{Hottest, Prefix, PrefixIndex},
    kernel::{KernelError, PrefixesMap, WorkersMap, now_ns},
};

/// How often the `workers` map is brought up to date.
const WORKERS_INTERVAL: Duration = Duration::from_millis(200);

/// How often the `prefixes` map is made anew, at most.
const PREFIXES_INTERVAL: Duration = Duration::from_secs(1);

/// Time from one sample of the index to the next, by the time that one takes: a hundredth of a CPU, however large the
/// index is.
const PREFIXES_REST: u32 = 100;

/// The most used prefixes of the last sample, the most used first.
pub(super) type HottestNow = Arc<ArcSwap<Vec<Prefix>>>;

/// Publishes the fleet.
pub(super) async fn workers(shared: Arc<Shared>, mut map: WorkersMap) {
    let mut ticks = tokio::time::interval(WORKERS_INTERVAL);
    let mut failing = false;
    let mut published = HashSet::new();
    loop {
        ticks.tick().await;
        let workers: Vec<_> = shared.fleet.workers().to_vec();
        for slot in published.extract_if(|slot| !workers.iter().any(|worker| worker.slot == *slot)) {
            report("workers", &map.remove(u32::from(slot.0)), &mut failing);
        }
        for worker in &workers {
            published.insert(worker.slot);
            let row = fleet::row(worker, shared.index.blocks(worker.slot));
            let result = map.publish(u32::from(worker.slot.0), &row);
            report("workers", &result, &mut failing);
        }
    }
}

/// Publishes the most used prefixes, in the map where there is one.
pub(super) async fn prefixes(index: Arc<PrefixIndex>, published: HottestNow, mut map: Option<PrefixesMap>) {
    let mut hottest = Hottest::default();
    let mut failing = false;
    loop {
        let now_ns = now_ns();
        let mut spent = Duration::ZERO;
        hottest.begin(&index, now_ns);
        loop {
            let began = Instant::now();
            let more = hottest.step(&index, PREFIXES_MAX as usize, now_ns);
            spent += began.elapsed();
            if !more {
                break;
            }
            // Signals, health checks and the admin port are on this thread, too.
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        let sample = hottest.finish(&index);
        if let Some(map) = &mut map {
            let rows: Vec<_> = sample.iter().map(row).collect();
            report("prefixes", &map.publish(&rows), &mut failing);
        }
        published.store(Arc::new(sample));
        spent += began.elapsed();
        tokio::time::sleep(PREFIXES_INTERVAL.max(spent * PREFIXES_REST)).await;
    }
}

fn row(prefix: &Prefix) -> (u64, PrefixValue) {
    let Prefix { hash, parent_hash, depth_blocks, own_blocks, hits, last_used_ns, workers } = *prefix;
    let hits = u64::from(hits);
    (hash, PrefixValue { parent_hash, hits, last_used_ns, workers, depth_blocks, own_blocks })
}

fn report(map: &str, result: &Result<(), KernelError>, failing: &mut bool) {
    if let Err(error) = result
        && !*failing
    {
        tracing::warn!(%error, "the {map} map is not up to date");
    }
    *failing = result.is_err();
}
